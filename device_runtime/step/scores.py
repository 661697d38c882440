"""How well a model answers: loss and accuracy over labels, or exact match and F1 of what it generates (as SQuAD's)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedspzo.device_runtime.data.encoder import Encoder
from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.model.task import GENERATION
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


def generate(forward: Forward[ModelWeights], store: DataStore) -> list[str]:
    """The answers that the model gives by itself, the likeliest token at a time, one forward pass a token."""
    encoder = Encoder(forward.bundle)
    task = forward.manifest.task
    answers = [""] * len(store)
    # Prompts alone: whatever the store knows of the answers is left out.
    prompts = DataStore(store.ids.copy(), store.starts + 1, store.starts, store.labels)
    order = np.argsort(prompts.lengths, kind="stable")
    for first in range(0, len(order), forward.manifest.batch):
        pending = order[first : first + forward.manifest.batch]
        while len(pending):
            prompts.ids[pending, prompts.lengths[pending]] = _next_tokens(forward, prompts, pending)
            prompts.lengths[pending] += 1
            going = []
            for index in pending:
                length, start = prompts.lengths[index], prompts.starts[index]
                text = encoder.decode(prompts.ids[index, start + 1 : length].tolist())
                ends = [at for at in map(text.find, filter(None, (task.answer_end, task.stop))) if at >= 0]
                answers[index] = text[: min(ends)] if ends else text
                if not ends and length - 1 - start < task.answer_tokens and length < prompts.ids.shape[1]:
                    going.append(index)
            pending = np.array(going, dtype=order.dtype)
    return [answer.strip() for answer in answers]


def _next_tokens(forward: Forward[ModelWeights], store: DataStore, indices: np.ndarray) -> np.ndarray:
    """The likeliest next token of some examples."""
    if forward.manifest.decoder is None:
        raise ValueError("the bundle's task generates nothing")
    batch = forward.batch(store, indices)
    outputs = forward.run_all((*forward.manifest.stages[:-1], forward.manifest.decoder), batch)
    tokens = outputs[0].argmax(axis=0)[: batch.count].copy()
    forward.release(outputs)
    return tokens


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
