"""A whole bundle on each of its engines, on texts of its task, against transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from fedspzo.device_runtime.data.encoder import Encoder
from fedspzo.device_runtime.data.sources import Example
from fedspzo.device_runtime.data.store import DataStore, tokenise
from fedspzo.device_runtime.errors import ExportError
from fedspzo.device_runtime.model.arrays import aligned_empty
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import ROWS, Comparison
from fedspzo.device_runtime.model.stored import widened
from fedspzo.device_runtime.model.task import CAUSAL, GENERATION, MASKED
from fedspzo.export.check.examples import ask
from fedspzo.export.check.layered import Replaced
from fedspzo.export.check.reference import Reference
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.compare import difference, in_pytorch
from fedspzo.export.layout import restored
from fedspzo.export.network.build import Network
from fedspzo.export.network.tokens import label_tokens
from fedspzo.export.quiet import in_transformers, quiet
from fedspzo.export.stages import StageRunner

#: How many texts are scored, the longest first. Those that are only tokenised are more.
_SCORED = 4
_CURE = "choose another model, for this one is not computed as transformers does (--no-check exports it unchecked)"

Scores = tuple[np.ndarray, ...]


def check_bundle(
    checkpoint: Checkpoint, networks: Sequence[Network], runners: Sequence[StageRunner], tolerance: float
) -> Comparison:
    """Compare a bundle with transformers.

    A bundle with rounded weights is compared with transformers' model of the same weights; how far they are from the
    checkpoint's is only said. Engines take 8 bits of activations to quantised matrices, which transformers does not:
    what is judged then are the stages in PyTorch. How far an engine is from transformers is only said, since each of
    its stages has been compared with PyTorch's from the same activations.

    Args:
        networks: the bundle's, those of the largest shape first.
        runners: of the bundle, one for each engine.
        tolerance: largest difference that one stage may have, relative to the largest value. Those of several stages
            add up as independent errors do: with the square root of their number.

    Raises:
        ExportError: tokens or scores differ.
    """
    bundle = runners[0].bundle
    task = bundle.manifest.task
    reference = Reference(checkpoint, task)
    if not reference.exists:
        return Comparison(skipped=f"transformers has no model of type {checkpoint.config.model_type} for this task")
    asked = ask(task, Encoder(bundle))
    texts = [reference.text(example.fields) for example in asked]
    with in_transformers(checkpoint.name):
        ids = reference.token_ids(texts, closed=task.form not in (CAUSAL, GENERATION))
    _check_tokens(checkpoint, bundle, asked, texts, ids)
    if not asked:
        return Comparison(skipped=f"no text fits into {bundle.manifest.length} tokens with an answer")
    store, texts = tokenise(bundle, asked[:_SCORED]), texts[:_SCORED]
    words = label_tokens(checkpoint, task) if task.form in (MASKED, CAUSAL) else []
    rounded = _rounded(checkpoint, bundle)
    with in_transformers(checkpoint.name):
        expected = reference.scores(store, texts, words, rounded)
    judge = partial(_judge, checkpoint, expected, texts, tolerance * math.sqrt(len(networks[0].stages)))
    quantised = bool(bundle.manifest.constants)
    if quantised:
        judge("PyTorch", run_bundle(runners[0], networks, store, in_full=True))
    deviations: dict[str, float] = {}
    for runner in runners:
        with quiet():
            found = run_bundle(runner, networks, store)
        deviations[runner.engine] = _apart(found, expected) if quantised else judge(runner.engine, found)
    rounding = None
    if rounded:
        with in_transformers(checkpoint.name):
            rounding = _apart(expected, reference.scores(store, texts, words, {}))
    return Comparison(reference.versions, len(store), deviations, rounding)


def run_bundle(runner: StageRunner, networks: Sequence[Network], store: DataStore, in_full: bool = False) -> Scores:
    """Scores of examples, as :meth:`fedspzo.export.check.reference.Reference.scores` gives them.

    Args:
        in_full: whether PyTorch computes the stages, with activations in float32, and not the runner's engine.
    """
    batches = []
    for indices, batch in runner.forward.batches(store):
        feeds = {name: _copied(feed) for name, feed in batch.feeds.items()}  # the next batch takes their place
        size = 1, batch.shape.batch, batch.shape.length
        network = next(network for network in networks if network.size == size and not network.continues)
        batches.append((indices, replace(batch, feeds=feeds), network))
    hidden = [batch.feeds[ROWS] for _, batch, _ in batches]
    stages, decoder = networks[0].stages, networks[0].decoder
    scores = []
    for stage in networks[0].all_stages:
        forward = runner.load(stage, networks[0])
        outputs = []
        for (_, batch, network), before in zip(batches, hidden, strict=True):
            if in_full:
                module = network.graphs[stage.graph]
                outputs.append(in_pytorch(forward.weights, batch, stage, module, before, "torch"))
            else:
                outputs.append(forward.run(stage, batch, before, {}))
        if stage in stages[:-1]:
            hidden = [_copied(found[0]) for found in outputs]
        else:
            rows = [found[-1].T if stage == decoder else found[-1] for found in outputs]
            scores.append(_in_order(rows, [indices for indices, _, _ in batches]))
        if not in_full:
            for found in outputs:
                forward.release(found)
    return tuple(scores)


def _copied(array: np.ndarray) -> np.ndarray:
    copy = aligned_empty(array.shape)
    copy[...] = array
    return copy


def _in_order(parts: Sequence[np.ndarray], indices: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of batches, which may have more of them than examples, as one array in the order of the examples."""
    rows = np.concatenate([part[: len(places)] for part, places in zip(parts, indices, strict=True)])
    return np.asarray(rows[np.argsort(np.concatenate(indices))])


def _rounded(checkpoint: Checkpoint, bundle: Bundle) -> Replaced:
    """What the bundle has of tensors that it does not store in float32, by their names in the checkpoint."""

    def load(index: int) -> np.ndarray:
        spec = bundle.manifest.tensors[index]
        return restored(spec, widened(bundle.tensor(index)), checkpoint.shape(spec.source))

    rounded = ((i, spec) for i, spec in enumerate(bundle.manifest.tensors) if spec.source and spec.dtype != "float32")
    return {checkpoint.stored_name(spec.source): partial(load, index) for index, spec in rounded}


def _apart(found: Scores, expected: Scores) -> float:
    return max(difference(a, b) for a, b in zip(found, expected, strict=True))


def _judge(
    checkpoint: Checkpoint,
    expected: Scores,
    texts: Sequence[str],
    allowed: float,
    engine: str,
    found: Scores,
) -> float:
    """How far scores are from those expected. Raises ExportError when it is too far, and says at which text."""
    apart = _apart(found, expected)
    if apart <= allowed:
        return apart
    worst = max(range(len(found)), key=lambda number: difference(found[number], expected[number]))
    ours, theirs = (scores[worst].reshape(len(texts), -1) for scores in (found, expected))
    gaps = np.nan_to_num(np.abs(ours - theirs), nan=np.inf)
    row, column = np.unravel_index(gaps.argmax(), gaps.shape)
    raise ExportError(
        "export.differs-from-transformers",
        f"{checkpoint.name} gives the text {texts[row][:60]!r} a score of {theirs[row, column]:.4f} in transformers,"
        f" and of {ours[row, column]:.4f} on {engine}: {apart:.1e} apart, where {allowed:.0e} is allowed; {_CURE}",
    )


def _check_tokens(
    checkpoint: Checkpoint,
    bundle: Bundle,
    asked: Sequence[Example],
    texts: Sequence[str],
    expected: Sequence[Sequence[int]],
) -> None:
    """Raise ExportError when a text has other tokens than transformers gives it."""
    encoder = Encoder(bundle)
    for example, text, theirs in zip(asked, texts, expected, strict=True):
        encoded = encoder.encode(example.fields)
        ours = encoded.ids
        if ours != list(theirs) and not encoded.cut:
            at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), len(ours))
            raise ExportError(
                "export.tokens-differ",
                f"{checkpoint.name} gives the text {text[:60]!r} other tokens in transformers, from token {at} on:"
                f" {theirs[at : at + 4]}, and {ours[at : at + 4]} here; {_CURE}",
            )
