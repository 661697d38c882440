"""The opposite of the export: a replica's weights as a Hugging Face checkpoint, or its adapters as a peft folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from fedspzo.device_runtime.errors import ExportError
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import TOKENIZER, TensorSpec
from fedspzo.device_runtime.model.stored import widened
from fedspzo.device_runtime.model.task import MASKED, SIMILARITY
from fedspzo.device_runtime.model.tensor_file import write_tensors
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.export.answering import write_classifier, write_labels
from fedspzo.export.checkpoint import CONFIG, Checkpoint
from fedspzo.export.layout import is_out_by_in, restored
from fedspzo.export.modules.stage_module import ADDED, CORE, DOWN, FACTORS, LEFT, RIGHT, UP, linear_name
from fedspzo.export.output import appearing
from fedspzo.export.quiet import quiet
from fedspzo.export.sentence import module_folders

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Endings of what old checkpoints hold apart from weights: indices that transformers makes itself.
_NOT_WEIGHTS = ("position_ids", "token_type_ids")
#: What peft calls the parts of adapters; cores are folded into one of their bases.
_PEFT = {DOWN: DOWN, UP: UP, RIGHT: DOWN, LEFT: UP, FACTORS: ".ia3_l"}
#: What goes with the weights as it is: configs, vocabularies, chat templates.
_BESIDE = (".json", ".txt", ".model", ".jinja")
#: What a config says of the files that it was saved with, among it a path of whoever saved it.
_ONCE = ("torch_dtype", "_name_or_path", "transformers_weights")
#: What a model is and where it comes from, for people and for the hub.
CARD = "README.md"


def write_checkpoint(replica: Replica, out: Path, source: str | None = None, card: str = "") -> None:
    """Write the original checkpoint with what was trained in it, in float32, one tensor at a time.

    Adapters are merged into the matrices that they belong to. The labels' vectors, where they were trained, are in
    ``labels.safetensors``: ``labels`` [labels, width], and the names in its metadata. In the similarity form they are
    there in any case, with a script that answers by them, for the model would embed the labels otherwise by now.

    Args:
        replica: the trained weights.
        out: the folder; it must not exist, and appears only when it is whole.
        source: the original model, by default where it was at the export.
        card: text of ``README.md``, which is not written where this is empty.

    Raises:
        ExportError: the folder exists, or the original is not there or is another model.
    """
    checkpoint = _original(replica.bundle, source)
    with appearing(out) as root:
        folder = _beside(checkpoint, root)
        _copy_beside(checkpoint.folder, folder)
        if not (folder / TOKENIZER).exists():
            shutil.copyfile(replica.bundle.folder / TOKENIZER, folder / TOKENIZER)
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        for name in _ONCE:
            config.pop(name, None)
        (folder / CONFIG).write_text(json.dumps({**config, "dtype": "float32"}, indent=2), encoding="utf-8")
        shapes = {name: checkpoint.shape(name) for name in checkpoint.files if not name.endswith(_NOT_WEIGHTS)}
        trained = _Trained(checkpoint, replica)
        write_tensors(folder / "model.safetensors", shapes, map(trained.tensor, shapes), {"format": "pt"})
        write_labels(replica, root)
        if replica.bundle.manifest.task.form == SIMILARITY:
            write_classifier(replica, root, checkpoint.is_sentence_model)
        _write_card(card, root)


def write_adapter(
    replica: Replica, out: Path, source: str | None = None, base_model: str | None = None, card: str = ""
) -> None:
    """Write the trained adapters, with the tokenizer, as a folder that peft's auto classes load.

    Args:
        replica, out, source, card: see :func:`write_checkpoint`.
        base_model: what the folder calls the original model, for whoever loads it: by default its id on the hub, or
            else its path from the present working directory.

    Raises:
        ExportError: the bundle has no adapters, or its original is a GGUF file, which needs a name that peft can load;
            or as :func:`write_checkpoint` does.
    """
    manifest = replica.bundle.manifest
    if manifest.adapters is None:
        raise ExportError(
            "export.no-adapters",
            f"{replica.bundle.folder} has no adapters, because its own tensors are trained; leave out --peft",
        )
    checkpoint = _original(replica.bundle, source)
    base = base_model or manifest.model.get("hub") or os.path.relpath(checkpoint.folder)
    if checkpoint.gguf and not (base_model or manifest.model.get("hub")):
        raise ExportError(
            "export.base-model",
            f"{checkpoint.source} is a GGUF file, which peft cannot load by itself; name the model that it was made"
            " from with --base-model",
        )
    model = _model(checkpoint, manifest.task.form)
    modules = [name for name, _ in model.named_modules()]
    arrays: dict[str, np.ndarray] = {}
    targets = []
    for index, spec in enumerate(manifest.tensors):
        if spec.name.endswith(ADDED):
            linear = linear_name(spec.name)
            module = _module(modules, linear)
            array = widened(replica.tensor(index))
            if spec.name.endswith(LEFT):  # a core and this base together are LoRA's second factor
                core = next(i for i, other in enumerate(manifest.tensors) if other.name == linear + CORE)
                array = widened(replica.tensor(core)) @ array
            part = spec.name.removeprefix(linear)
            if part in _PEFT:
                arrays[f"base_model.model.{module}{_PEFT[part]}"] = restored(spec, array, array.shape[:0:-1])
            targets.append(module)
    lora = {"peft_type": "LORA", "r": manifest.adapters.rank, "lora_alpha": manifest.adapters.alpha}
    kinds: dict[str, dict[str, object]] = {
        "low-rank": lora,
        "cores": lora,
        "output-scales": {"peft_type": "IA3", "feedforward_modules": []},
    }
    config = {
        **kinds[manifest.adapters.kind],
        **_auto_class(model, manifest.task.form),
        "base_model_name_or_path": base,
        "target_modules": sorted(set(targets)),
        "fan_in_fan_out": not is_out_by_in(next(spec for spec in manifest.tensors if spec.name == f"{linear}.weight")),
        "inference_mode": True,
    }
    with appearing(out) as folder:
        shapes = {name: array.shape for name, array in arrays.items()}
        write_tensors(folder / "adapter_model.safetensors", shapes, arrays.values(), {"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        checkpoint.texts.save(folder)
        write_labels(replica, folder)
        _write_card(card, folder)


def _write_card(card: str, folder: Path) -> None:
    if card:
        (folder / CARD).write_text(card, encoding="utf-8")


def _auto_class(model: PreTrainedModel, form: str) -> dict[str, object]:
    """The fields by which peft's auto classes find the model's class; peft has no type of task for masked models."""
    if form == MASKED:
        names = {"base_model_class": type(model).__name__, "parent_library": type(model).__module__}
        return {"task_type": None, "auto_mapping": names}
    return {"task_type": "FEATURE_EXTRACTION" if form == SIMILARITY else "CAUSAL_LM"}


def _original(bundle: Bundle, source: str | None) -> Checkpoint:
    """The checkpoint that a bundle came from. Raises ExportError when it is not there or is another one."""
    model = bundle.manifest.model
    if not {"hash", "config"} <= model.keys():
        raise ExportError(
            "export.unknown-source", f"{bundle.folder} does not say which model it came from; export it again"
        )
    try:
        checkpoint = Checkpoint(source or bundle.source)
    except ExportError as error:
        raise ExportError(
            "export.no-source", f"the original model is needed ({error}); give its folder with --source"
        ) from None
    modules = model.get("modules")
    if (
        checkpoint.hash != model["hash"]
        or checkpoint.config_hash != model["config"]
        or (modules and modules != (checkpoint.sentence and checkpoint.sentence.hash))
    ):
        raise ExportError(
            "export.other-source",
            f"{checkpoint.source} is not the model that the bundle came from; give that model with --source",
        )
    return checkpoint


def _beside(checkpoint: Checkpoint, root: Path) -> Path:
    """Copy what sentence-transformers has beside the transformer into a folder; where the transformer goes in it."""
    if not checkpoint.is_sentence_model:
        return root
    _copy_beside(checkpoint.source, root)
    for module in module_folders(checkpoint.source):
        shutil.copytree(module, root / module.relative_to(checkpoint.source))
    folder = root / checkpoint.folder.relative_to(checkpoint.source)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _copy_beside(source: Path, folder: Path) -> None:
    """Copy what goes with the weights; an index of theirs would name files that are not there."""
    for file in source.iterdir():
        if file.is_file() and file.suffix in _BESIDE and not file.name.endswith(".index.json"):
            shutil.copyfile(file, folder / file.name)


def _module(modules: Sequence[str], linear: str) -> str:
    """The module of transformers' model that a checkpoint's linear map is.

    Models of several parts are nested otherwise than their files: ``language_model.model.layers.0…`` is the module
    ``model.language_model.layers.0…``.
    """
    named = (name for name in modules if name == linear or name.endswith(f".{linear}"))
    nested = (name for name in modules if sorted(name.split(".")) == sorted(linear.split(".")))
    return next(chain(named, nested))


def _model(checkpoint: Checkpoint, form: str) -> PreTrainedModel:
    """The model that transformers makes of a checkpoint for a form of task, without its weights."""
    factories = {MASKED: AutoModelForMaskedLM, SIMILARITY: AutoModel}
    with quiet(), torch.device("meta"):
        return factories.get(form, AutoModelForCausalLM).from_config(checkpoint.config)


class _Trained:
    """A checkpoint's tensors, with what a replica has trained of them."""

    def __init__(self, checkpoint: Checkpoint, replica: Replica) -> None:
        self._checkpoint, self._replica = checkpoint, replica
        self._specs = replica.bundle.manifest.tensors
        self._indices = {spec.name: index for index, spec in enumerate(self._specs)}
        self._by_stored_name = {checkpoint.stored_name(s.source): s for s in self._specs if s.source}

    def tensor(self, stored: str) -> np.ndarray:
        """A tensor by its name in the files, in the checkpoint's shape."""
        spec = self._by_stored_name.get(stored)
        if spec is None:
            return self._checkpoint.tensor(stored)
        index = self._indices[spec.name]
        if spec.trainable:
            return restored(spec, widened(self._replica.tensor(index)), self._checkpoint.shape(stored))
        original = self._checkpoint.tensor(stored)  # its own numbers, however the bundle rounds them
        return np.ascontiguousarray(self._adapted(original, spec))

    def _adapted(self, original: np.ndarray, spec: TensorSpec) -> np.ndarray:
        """A weight or bias with the adapter of its linear map merged in, where it has one."""
        linear, part = spec.name.rsplit(".", 1)
        added = {end: widened(self._replica.tensor(self._indices[linear + end]))[0] for end in self._parts(linear)}
        if FACTORS in added:
            factors = added[FACTORS][0]
            return original * (factors[:, None] if part == "weight" and is_out_by_in(spec) else factors)
        if CORE in added and part == "weight":
            product = added[RIGHT] @ added[CORE] @ added[LEFT]
            return original + (product.T if is_out_by_in(spec) else product)
        adapters = self._replica.bundle.manifest.adapters
        if UP in added and part == "weight" and adapters is not None:
            product = np.float32(adapters.scale) * (added[DOWN] @ added[UP])
            return original + (product.T if is_out_by_in(spec) else product)
        return original

    def _parts(self, linear: str) -> list[str]:
        return [end for end in ADDED if linear + end in self._indices]
