"""Configs that differ from a family's defaults, each a small model whose network must score as transformers' own does.

Nothing is lowered: the stages' modules run in PyTorch on the checkpoint's weights.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, PretrainedConfig

from fedspzo.device_runtime.errors import ExportError
from fedspzo.device_runtime.model.task import MASKED, SIMILARITY
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.checks import check_tensors
from fedspzo.export.families import Architecture, Stage, find_family
from fedspzo.export.layout import table, weight
from fedspzo.export.modules.heads import LABEL_ALONG, LABEL_AXIS, LABEL_BIAS, LABELS, LabelWords
from fedspzo.export.modules.tokens import TextStage

#: Two texts, the second one padded.
TOKENS, LENGTHS = 7, (7, 4)
#: What transformers raises for configs that are none.
NO_CONFIG = (
    ValueError,
    AttributeError,
    TypeError,
    KeyError,
    IndexError,
    RuntimeError,
    ZeroDivisionError,
    StrictDataclassError,
)


@dataclass(frozen=True)
class Outcome:
    """What came of a variant.

    Attributes:
        changes: the settings that it changes.
        refused: kind of the error that refused it; "" when it was described.
        difference: largest difference of its scores from transformers', relative to the largest; padding is left out.
    """

    changes: Mapping[str, Any]
    refused: str
    difference: float


def check_variants(
    folder: Path, kind: str, settings: Mapping[str, Any], values: Mapping[str, Sequence[Any]], wanted: int, seed: int
) -> None:
    """Try so many variants that transformers has a model for: each is transformers' or refused, and not most of them.

    Args:
        folder: where models are made.
        kind: the config's model type.
        settings: the config's.
        values: settings that variants change, and the values to draw from.
        wanted: how many variants.
        seed: of the draws.
    """
    found: list[Outcome] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads would wait for each other longer than these sizes take
    try:
        for number in count():
            outcome = try_variant(folder / "model", kind, settings, draw_changes(values, f"{seed} {kind} {number}"))
            if outcome is not None:
                found.append(outcome)
            if len(found) == wanted:
                break
    finally:
        torch.set_num_threads(threads)
    wrong = [outcome for outcome in found if not outcome.refused and not outcome.difference < 1e-4]
    assert wrong == [], wrong
    assert sum(not outcome.refused for outcome in found) >= wanted // 3, found


def draw_changes(settings: Mapping[str, Sequence[Any]], seed: str) -> dict[str, Any]:
    """A few settings, each with one of its values."""
    draw = random.Random(seed)
    names = draw.sample(sorted(settings), draw.randint(1, min(4, len(settings))))
    return {name: draw.choice(settings[name]) for name in names}


def try_variant(folder: Path, kind: str, settings: Mapping[str, Any], changes: Mapping[str, Any]) -> Outcome | None:
    """Make a model, run it both ways; None when transformers itself has no such model.

    Args:
        folder: where it is made; what is there goes.
        kind: the config's model type.
        settings: the config's.
        changes: those of the variant.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        save_random(folder, AutoConfig.for_model(kind, **{**settings, **changes}))
        reference, form = load_reference(folder)
        mask = (torch.arange(TOKENS) < torch.tensor(LENGTHS)[:, None]).long()
        ids = torch.randint(3, 40, mask.shape, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            output = reference(input_ids=ids, attention_mask=mask)
    except NO_CONFIG:
        return None
    expected = output.last_hidden_state if form == SIMILARITY else output.logits
    try:
        checkpoint = Checkpoint(str(folder))
        architecture = find_family(checkpoint).describe(checkpoint, TOKENS)
        check_tensors(checkpoint, architecture)
        found = scores(checkpoint, architecture, ids, mask)
    except ExportError as error:
        return Outcome(changes, error.kind, 0.0)
    there = mask.bool()
    difference = (found[there] - expected[there]).abs().max() / expected[there].abs().max()
    return Outcome(changes, "", float(difference) if bool(torch.isfinite(difference)) else float("inf"))


def save_random(folder: Path, config: PretrainedConfig) -> None:
    """Save a model with random weights, larger than the usual start, so that every part matters to the scores."""
    torch.manual_seed(0)
    factory = _factory(config)
    model = factory.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter) + (parameter.ndim == 1) * parameter.mean())
    model.save_pretrained(folder)


def load_reference(folder: Path) -> tuple[torch.nn.Module, str]:
    """Transformers' own model of a folder, and MASKED, CAUSAL or SIMILARITY for what it gives."""
    factory, form = _factory(AutoConfig.from_pretrained(folder)), ""
    if factory is AutoModel:
        form = SIMILARITY
    elif factory is AutoModelForMaskedLM:
        form = MASKED
    return factory.from_pretrained(folder, dtype=torch.float32).eval(), form


def _factory(config: PretrainedConfig) -> Any:
    for factory in (AutoModelForCausalLM, AutoModelForMaskedLM):
        if type(config) in factory._model_mapping and not (
            factory is AutoModelForCausalLM and type(config) in AutoModelForMaskedLM._model_mapping
        ):
            return factory
    return AutoModel


@torch.inference_mode()
def scores(checkpoint: Checkpoint, architecture: Architecture, ids: Tensor, mask: Tensor) -> Tensor:
    """What the network gives at every token: scores [B, S, V], or where it has no head the last activations [B, S, H].

    Args:
        ids, mask: [B, S].
    """
    feeds = {"mask": mask.float()}
    hidden = torch.from_numpy(checkpoint.tensor(architecture.embedding))[ids]
    for stage in architecture.stages:
        given = [hidden if feed == "hidden" else feeds[feed] for feed in stage.module.feeds]
        weights = [*_weights(checkpoint, architecture, stage).values()]
        before = hidden
        (hidden,) = stage.module(*given, *weights)
        if isinstance(stage.module, TextStage):
            torch.testing.assert_close(token_by_token(stage.module, before, weights), hidden, rtol=1e-4, atol=1e-4)
    final = architecture.final
    if final is None:
        return hidden
    rows = torch.from_numpy(checkpoint.tensor(architecture.output))
    bias = torch.zeros(len(rows))
    if architecture.output_bias:
        bias = torch.from_numpy(checkpoint.tensor(architecture.output_bias))
    head = LabelWords(final.module, architecture.scoring)
    known = {**_weights(checkpoint, architecture, final), LABELS: rows.T[None], LABEL_BIAS: bias}
    known |= {LABEL_AXIS: torch.zeros(rows.shape[1]), LABEL_ALONG: torch.zeros(len(rows))}
    found = []
    for at in range(ids.shape[1]):
        select = torch.nn.functional.one_hot(torch.full((len(ids), 1), at), ids.shape[1]).float()
        _, logits = head(hidden, select, torch.zeros(len(ids), len(rows)), *(known[name] for name in head.tensors))
        found.append(logits)
    return torch.stack(found, dim=1)


def token_by_token(module: TextStage, before: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """What a stage gives for texts [B, S, W] when it takes each token after the keys and values of those before it."""
    texts, tokens, _ = before.shape
    outputs, past = (
        [],
        [torch.full((texts, shape[1], tokens, shape[3]), 3.0) for shape in _kept(module, before, weights)],
    )
    for at in range(tokens):
        feeds = {"hidden": before[:, at : at + 1], "position": torch.full((texts, 1), float(at))}
        feeds |= dict(zip(("keys", "values"), past, strict=False))
        output, *kept = module.continuing()(*(feeds[name] for name in module.continuing().feeds), *weights)
        for array, new in zip(past, kept, strict=True):
            array[:, :, at] = new[:, :, 0]
        outputs.append(output)
    return torch.cat(outputs, dim=1)


def _kept(module: TextStage, before: Tensor, weights: Sequence[Tensor]) -> list[torch.Size]:
    return [kept.shape for kept in module.keeping()(before, *weights)[1:]]


def _weights(checkpoint: Checkpoint, architecture: Architecture, stage: Stage) -> dict[str, Tensor]:
    """A stage's tensors as its module takes them."""
    found = {}
    for name, full in zip(stage.module.tensors, stage.tensors, strict=True):
        kept = full in architecture.tables
        tensor = table(checkpoint, full) if kept else weight(checkpoint, full, False, "float32", architecture.conv1d)
        found[name] = torch.from_numpy(np.ascontiguousarray(tensor.load()))
    return found
