"""Models with adapters, and peft's models of the same, unmodified, to compare them with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from models import ENCODERS, ENGINES, make_checkpoint, wide
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from fedspzo.device_runtime.data.sources import Example
from fedspzo.device_runtime.data.store import DataStore, tokenise
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.stored import Quantised, widened
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.export.answering import counted_labels
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.network.adapters import LowRank
from fedspzo.export.network.target import Target
from fedspzo.export.network.tokens import label_tokens
from fedspzo.export.pipeline import export_bundle
from fedspzo.export.tasks import load_task

SENTENCES = ("the film was good", "a dull end", "one two three four five six seven", "bad music play", "good")
RANK, ALPHA = 4, 8.0


@dataclass(frozen=True)
class Case:
    """A model's bundle with adapters, examples, and peft's model of the same."""

    bundle: Bundle
    store: DataStore
    words: list[int]
    reference: PeftModel


def make_case(
    folder: Path, name: str, weights: str, engines: Sequence[str] = ENGINES, groups: Sequence[int] = (4,)
) -> Case:
    """A model by its name in ``models``; quantised ones are wide enough for it."""
    quantised = weights in ("int8", "int4")
    checkpoint = make_checkpoint(folder / name, name, **(wide(name) if quantised else {}))
    target = Target(engines, [2], [24], adapters=LowRank(RANK, ALPHA), groups=list(groups), weights=weights)
    bundle = export_bundle(str(checkpoint), load_task("sst2"), target, folder / f"{name}-bundle")
    store = tokenise(bundle, [Example({"sentence": text}, i % 2) for i, text in enumerate(SENTENCES)])
    words = label_tokens(Checkpoint(str(checkpoint)), bundle.manifest.task)
    factory = AutoModelForMaskedLM if name in ENCODERS else AutoModelForCausalLM
    base = factory.from_pretrained(checkpoint, dtype=torch.float32)
    maps = [spec.name.removesuffix(".lora_A.weight") for spec in bundle.manifest.tensors if ".lora_A" in spec.name]
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=maps, fan_in_fan_out=name == "gpt2")
    model = get_peft_model(base, config).eval()
    if quantised:
        _quantise(model, bundle)
    return Case(bundle, store, words, model)


class CodesLinear(torch.nn.Module):
    """A linear map by the bundle's codes and activations of 8 bits, summed exactly.

    Scales and codes of the rows are those of XNNPACK (``xnn_f32_qd8_asymmetric_quantization_params``), which multiplies
    by a scale's inverse. To divide, as torchao does, is as good, but takes others of the halves between two codes: rows
    of a token table in 8 bits are full of them.
    """

    def __init__(self, matrix: Quantised, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = matrix.shape[-2:]
        self.weight = torch.nn.Parameter(torch.from_numpy(widened(matrix)).reshape(matrix.shape[-2:]), False)
        self.bias = bias

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        low, high = rows.amin(-1, keepdim=True).clamp(max=0), rows.amax(-1, keepdim=True).clamp(min=0)
        span = torch.where(high > low, high - low, 255)
        inverse = torch.full_like(span, 255) / span  # torch rounds twice for a number over a tensor
        low, high = low * inverse, high * inverse
        zero = torch.where(low + high > 1, -128 - low, 127 - high).clamp(-128, 127).round()
        codes = ((rows * inverse).round() + zero).clamp(-128, 127) - zero
        products = (codes.double() @ self.weight.double().T / inverse).float()
        return products if self.bias is None else products + self.bias


def _quantise(model: PeftModel, bundle: Bundle) -> None:
    """Put a bundle's codes in the place of a model's matrices."""
    manifest = bundle.manifest
    for index in sorted(manifest.constants):
        matrix, name = bundle.tensor(index), manifest.tensors[index].name.removesuffix(".weight")
        assert isinstance(matrix, Quantised)
        found = model.get_submodule(f"base_model.model.{name}")
        base = getattr(found, "base_layer", found)
        within = f"base_model.model.{name}" + (".base_layer" if base is not found else "")
        model.set_submodule(within, CodesLinear(matrix, base.bias))
    scoring_table(model)  # label words keep their own numbers
    table = next(i for i, spec in enumerate(manifest.tensors) if spec.name == manifest.embedding)
    model.get_input_embeddings().weight = torch.nn.Parameter(torch.from_numpy(widened(bundle.tensor(table))[0]))


def scoring_table(model: PreTrainedModel | PeftModel) -> torch.nn.Parameter:
    """The table that scores tokens, where it is the embedding as well made a copy of it."""
    output = model.get_output_embeddings()
    if output.weight is model.get_input_embeddings().weight:
        output.weight = torch.nn.Parameter(output.weight.detach().clone())
    return output.weight


def read_labels(model: PreTrainedModel | PeftModel, folder: Path, words: list[int]) -> None:
    """Give a model the vectors of labels that are beside a checkpoint or an adapter, in place of the words' own."""
    scoring_table(model).data[words] = load_file(folder / "labels.safetensors")["labels"]


@torch.no_grad()
def reference_losses(case: Case, weights: dict[str, np.ndarray], indices: np.ndarray) -> np.ndarray:
    """Losses of peft's model with adapters, and vectors of labels, of these values."""
    parameters = dict(case.reference.named_parameters())
    for name, value in weights.items():
        if name == "labels":
            rows = counted_labels(case.bundle, value[0]).T
            scoring_table(case.reference)[case.words] = torch.from_numpy(np.ascontiguousarray(rows))
            continue
        parameter = parameters[f"base_model.model.{name.removesuffix('.weight')}.default.weight"]
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(value[0].T)))
    store = case.store
    ids = torch.from_numpy(store.ids[indices]).long()
    mask = torch.from_numpy((np.arange(ids.shape[1]) < store.lengths[indices, None]).astype(np.int64))
    logits = case.reference(input_ids=ids, attention_mask=mask).logits
    at = logits[torch.arange(len(indices)), torch.from_numpy(store.starts[indices]).long()][:, case.words]
    labels = torch.from_numpy(store.labels[indices]).long()
    return torch.nn.functional.cross_entropy(at, labels, reduction="none").numpy()


def trained(replica: Replica, seed: int = 3) -> dict[str, np.ndarray]:
    """Adapters and labels as they are after some training, in the replica and by name."""
    random = np.random.default_rng(seed)
    for weights in replica.trainable.values():
        weights += 0.2 * random.standard_normal(weights.shape, np.float32)
    return {replica.bundle.manifest.tensors[i].name: weights.copy() for i, weights in replica.trainable.items()}
