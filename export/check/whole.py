"""A whole bundle on each of its engines, on texts of its task, against transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedspzo.device_runtime.data.encoder import Encoder
from fedspzo.device_runtime.data.sources import Example
from fedspzo.device_runtime.data.store import DataStore, tokenise
from fedspzo.device_runtime.errors import ExportError
from fedspzo.device_runtime.model.arrays import aligned_empty
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import ROWS, Comparison
from fedspzo.device_runtime.model.task import CAUSAL, GENERATION, MASKED
from fedspzo.export.check import examples, reference
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.compare import difference
from fedspzo.export.network.build import Network
from fedspzo.export.network.tokens import label_tokens
from fedspzo.export.quiet import quiet
from fedspzo.export.stages import StageRunner

_CURE = "this version of fedspzo does not compute the model as transformers does; choose another model"


def check_bundle(
    checkpoint: Checkpoint, network: Network, runners: Sequence[StageRunner], tolerance: float
) -> Comparison:
    """Compare a bundle with transformers.

    Args:
        network: that of the bundle's largest shape.
        runners: of the bundle, one for each engine.
        tolerance: largest difference that one stage may have, relative to the largest value. Those of several stages
            add up as independent errors do.

    Raises:
        ExportError: tokens or scores differ.
    """
    bundle = runners[0].bundle
    task = bundle.manifest.task
    if not reference.has_reference(checkpoint, task.form):
        return Comparison(skipped=f"transformers has no model of type {checkpoint.config.model_type} for this task")
    if any(spec.dtype != "float32" for spec in bundle.manifest.tensors):
        return Comparison(skipped="the bundle's weights are rounded")
    asked = list(examples.ask(task, Encoder(bundle)))
    _check_tokens(checkpoint, bundle, asked)
    store = tokenise(bundle, asked)
    words = label_tokens(checkpoint, task) if task.form in (MASKED, CAUSAL) else []
    expected = reference.score(checkpoint, task, store, words)
    allowed = tolerance * math.sqrt(len(network.stages))
    deviations: dict[str, float] = {}
    for runner in runners:
        with quiet():
            found = run_bundle(runner, network, store)
        deviations[runner.engine] = max(difference(a, b) for a, b in zip(found, expected, strict=True))
        if not deviations[runner.engine] <= allowed:
            _refuse_scores(checkpoint, runner.engine, found, expected, [task.render(e.fields) for e in asked], allowed)
    return Comparison(reference.versions(checkpoint, task.form), len(store), deviations)


def run_bundle(runner: StageRunner, network: Network, store: DataStore) -> tuple[np.ndarray, ...]:
    """Scores of examples by an engine, as :func:`fedspzo.export.check.reference.score` gives them."""
    batches = []
    for indices, batch in runner.forward.batches(store):
        feeds = {name: _copied(feed) for name, feed in batch.feeds.items()}  # the next batch takes their place
        batches.append((indices, replace(batch, feeds=feeds)))
    hidden = [batch.feeds[ROWS] for _, batch in batches]
    outputs: list[list[np.ndarray]] = []
    head = len(network.stages) - 1
    for number, stage in enumerate(network.all_stages):
        forward = runner.load(stage, network)
        found = [forward.run(stage, batch, before, {}) for (_, batch), before in zip(batches, hidden, strict=True)]
        if number < head:
            hidden = [_copied(out[0]) for out in found]
        else:
            outputs.append([(out[-1].T if stage == network.decoder else out[-1]).copy() for out in found])
        for arrays in found:
            forward.release(arrays)
    places = [indices for indices, _ in batches]
    return tuple(_in_order(parts, places) for parts in outputs)


def _copied(array: np.ndarray) -> np.ndarray:
    copy = aligned_empty(array.shape)
    copy[...] = array
    return copy


def _in_order(parts: Sequence[np.ndarray], indices: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of batches, which may have more of them than examples, as one array in the order of the examples."""
    rows = np.concatenate([part[: len(places)] for part, places in zip(parts, indices, strict=True)])
    return np.asarray(rows[np.argsort(np.concatenate(indices))])


def _check_tokens(checkpoint: Checkpoint, bundle: Bundle, asked: Sequence[Example]) -> None:
    """Raise ExportError when a text that is not cut has other tokens than transformers gives it."""
    task, encoder = bundle.manifest.task, Encoder(bundle)
    found: dict[str, list[int]] = {}
    for example in asked:
        encoded = encoder.encode(example.fields)
        if not encoded.cut:
            found[task.render(example.fields)] = encoded.ids
    closed = task.form not in (CAUSAL, GENERATION)
    expected = reference.token_ids(checkpoint, list(found), closed)
    for (text, ours), theirs in zip(found.items(), expected, strict=True):
        if ours != theirs:
            at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), len(ours))
            raise ExportError(
                "export.tokens-differ",
                f"{checkpoint.name} gives the text {text[:60]!r} other tokens in transformers, from token {at} on"
                f" ({ours[at : at + 4]} here, {theirs[at : at + 4]} there); {_CURE}",
            )


def _refuse_scores(
    checkpoint: Checkpoint,
    engine: str,
    found: Sequence[np.ndarray],
    expected: Sequence[np.ndarray],
    texts: Sequence[str],
    allowed: float,
) -> None:
    """Raise the ExportError that says at which text scores differ the most."""
    worst = max(range(len(found)), key=lambda i: difference(found[i], expected[i]))
    ours, theirs = (scores[worst].reshape(len(texts), -1) for scores in (found, expected))
    apart = np.nan_to_num(np.abs(ours - theirs), nan=np.inf).max(axis=1)
    at = int(apart.argmax())
    column = int(np.nan_to_num(np.abs(ours[at] - theirs[at]), nan=np.inf).argmax())
    raise ExportError(
        "export.differs-from-transformers",
        f"{checkpoint.name} scores the text {texts[at][:60]!r} {theirs[at, column]:.4f} in transformers and"
        f" {ours[at, column]:.4f} on {engine}, which is {difference(ours, theirs):.1e} apart and more than"
        f" {allowed:.0e}; {_CURE}",
    )
