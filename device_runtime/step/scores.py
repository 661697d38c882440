"""What a model answers, and how well: its loss, and the metrics of its task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.errors import DataError
from fedspzo.device_runtime.model.metrics import MULTI, REGRESSION, SINGLE, score
from fedspzo.device_runtime.model.task import GENERATION, NONE, Task
from fedspzo.device_runtime.step.generation import generate
from fedspzo.device_runtime.step.prefix_cache import Prefix
from fedspzo.device_runtime.step.runner import Forward, ModelWeights
from fedspzo.device_runtime.step.spread import standard_error


@dataclass(frozen=True)
class Evaluation:
    """How a model does on examples with known answers.

    Attributes:
        loss: mean over the examples of the cross-entropy (for generation, the mean over the answer's tokens; for sets
            the mean over the labels; for numbers the squared error).
        scores: name of a metric → its value; the task names them, see
            :data:`fedspzo.device_runtime.model.metrics.METRICS`.
        examples: how many there were.
        loss_uncertainty: standard error of the loss, by its spread over the examples; None where it is not known, as of
            an evaluation that was read again.
    """

    loss: float
    scores: Mapping[str, float]
    examples: int
    loss_uncertainty: float | None = field(default=None, compare=False)


def evaluate(forward: Forward[ModelWeights], store: DataStore, prefix: Prefix | None = None) -> Evaluation:
    """Loss and scores of the unperturbed model on all examples of a store. Raises DataError for reactions.

    Args:
        prefix: see :func:`predict`.
    """
    check_labels(store)
    losses, logits = predict(forward, store, prefix)
    task = forward.manifest.task
    found: Sequence[str] | np.ndarray = ()
    expected: Sequence[Sequence[str]] | np.ndarray = store.references
    if task.form != GENERATION:
        found, expected = read_logits(task, logits), _expected(task, store)
    elif set(task.scores) - {"perplexity"}:  # generating takes long
        found = generate(forward, store)
    values = score(task.answers, task.scores, found, expected, losses)
    return Evaluation(float(losses.mean()), values, len(store), standard_error(losses))


def check_labels(store: DataStore) -> None:
    """Raise DataError where examples have reactions in place of labels."""
    if store.feedback is not None:
        raise DataError(
            "data.feedback-is-no-label", "reactions do not say what is right; evaluate on examples that all have labels"
        )


def predict(
    forward: Forward[ModelWeights], store: DataStore, prefix: Prefix | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Losses float64 [examples] and logits float32 [examples, labels] (for generation [examples, 0]).

    Args:
        prefix: the stages that rest between one call and the next, so that examples need not pass them again.
    """
    stages = forward.manifest.stages[prefix.count if prefix else 0 :]
    losses = np.empty(len(store))
    logits = np.empty((len(store), len(forward.manifest.task.labels)), np.float32)
    for indices, batch in forward.batches(store):
        outputs = forward.run_all(stages, batch, prefix.run(batch) if prefix else ())
        losses[indices] = outputs[0][: batch.count]
        if len(outputs) > 1:
            logits[indices] = outputs[1][: batch.count]
        forward.release(outputs)
    return losses, logits


def read_logits(task: Task, logits: np.ndarray) -> np.ndarray:
    """The answers that logits [examples, labels] stand for, as metrics take them.

    Returns:
        int [examples], the likeliest labels; or bool [examples, labels - 1], those that score above the last label; or
        float64 [examples], numbers.
    """
    if task.kind == MULTI:
        return logits[:, :-1] > logits[:, -1:]
    if task.kind == REGRESSION:
        return np.asarray(_softmax(logits) @ np.array(task.values))
    return np.asarray(logits.argmax(axis=1))


def read_answer(task: Task, logits: np.ndarray) -> tuple[str, dict[str, float]]:
    """An example's answer for people, of its logits [labels], and label → its probability, the likeliest first.

    A number has no probabilities; those of a set's labels are each the label's own.
    """
    if task.kind == REGRESSION:
        return f"{read_logits(task, logits[None])[0]:.4g}", {}
    if task.kind == MULTI:
        above = logits[:-1].astype(np.float64) - logits[-1]
        shares = 1 / (1 + np.exp(-above.clip(-500)))
    else:
        shares = _softmax(logits[None])[0]
    found = {task.labels[index].name: float(shares[index]) for index in np.argsort(-shares)}
    if task.kind == MULTI:
        return ", ".join(name for name, share in found.items() if share > 0.5) or NONE, found
    return next(iter(found)), found


def _expected(task: Task, store: DataStore) -> np.ndarray:
    """What is right, as metrics take it."""
    if task.kind == SINGLE:
        return store.labels
    if store.targets is None:
        raise DataError(
            "data.no-targets", f"the examples have no answers of task '{task.name}'; read them with its bundle"
        )
    return store.targets[:, :-1] > 0 if task.kind == MULTI else task.values[0] - store.targets[:, 0]


def _softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))
