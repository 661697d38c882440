"""How well a model answers: loss and accuracy over labels, or exact match and F1 of what it generates (as SQuAD's)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.model.task import GENERATION
from fedspzo.device_runtime.step.generation import generate
from fedspzo.device_runtime.step.runner import Forward, ModelWeights


@dataclass(frozen=True)
class Evaluation:
    """How a model does on examples with known answers.

    Attributes:
        loss: mean over the examples of the cross-entropy (for generation, the mean over the answer's tokens).
        scores: name of a score → its value, 0 to 1: ``accuracy``, or ``exact_match`` and ``f1``.
        examples: how many there were.
    """

    loss: float
    scores: Mapping[str, float]
    examples: int


def evaluate(forward: Forward[ModelWeights], store: DataStore) -> Evaluation:
    """Loss and scores of the unperturbed model on all examples of a store."""
    losses, logits = predict(forward, store)
    if forward.manifest.task.form == GENERATION:
        return Evaluation(float(losses.mean()), score_answers(generate(forward, store), store.references), len(store))
    correct = int((logits.argmax(axis=1) == store.labels).sum())
    return Evaluation(float(losses.mean()), {"accuracy": correct / len(store)}, len(store))


def predict(forward: Forward[ModelWeights], store: DataStore) -> tuple[np.ndarray, np.ndarray]:
    """Losses float64 [examples] and logits float32 [examples, labels] (for generation [examples, 0])."""
    losses = np.empty(len(store))
    logits = np.empty((len(store), len(forward.manifest.task.labels)), np.float32)
    for indices, batch in forward.batches(store):
        outputs = forward.run_all(forward.manifest.stages, batch)
        losses[indices] = outputs[0][: batch.count]
        if len(outputs) > 1:
            logits[indices] = outputs[1][: batch.count]
        forward.release(outputs)
    return losses, logits


def score_answers(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Exact match and F1 over words, the best over each example's references, as SQuAD defines them."""
    pairs = list(zip(answers, references, strict=True))
    return {
        "exact_match": float(np.mean([any(_words(a) == _words(r) for r in known) for a, known in pairs])),
        "f1": float(np.mean([max(_f1(_words(a), _words(r)) for r in known) for a, known in pairs])),
    }


def _f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    common = sum((Counter(answer) & Counter(reference)).values())
    return 2 * common / (len(answer) + len(reference))


def _words(text: str) -> list[str]:
    """Words in lower case without punctuation and articles."""
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()
