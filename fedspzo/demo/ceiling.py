"""What backpropagation reaches on the same batches: the upper limit that the demo prints with its own result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel

from fedspzo.broker.server.state_folder import read_history, read_journal
from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.step.estimator import draw_examples
from fedspzo.export.modules.heads import TEMPERATURE
from fedspzo.export.modules.pooling import pool
from fedspzo.export.modules.stage_module import Weights
from fedspzo.export.quiet import quiet
from fedspzo.export.sentence import Pooling

LEARNING_RATE = 5e-5


@dataclass(frozen=True)
class Ceiling:
    """Adam with backpropagation over the batches of a run's first rounds.

    Attributes:
        rounds: optimiser steps, one a round.
        accuracy: on the held-out set afterwards.
        loss: on the training examples afterwards.
    """

    rounds: int
    accuracy: float
    loss: float


class _Classifier(torch.nn.Module):
    """The demo's model in plain transformers, for autograd."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        with quiet():
            self.encoder = AutoModel.from_pretrained(bundle.source, dtype=torch.float32).eval()
        self.encoder.embeddings.requires_grad_(False)
        self.labels = torch.tensor(bundle.weights.view("labels"))[0]

    def forward(self, store: DataStore, indices: np.ndarray) -> torch.Tensor:
        mask = torch.from_numpy(np.arange(store.ids.shape[1]) < store.lengths[indices, None]).float()
        ids = torch.from_numpy(store.ids[indices]).long()
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return TEMPERATURE * pool(Pooling(), Weights({}), hidden, mask) @ self.labels


def measure_ceiling(
    bundle: Bundle, server: Path, stores: dict[str, DataStore], held_out: DataStore, rounds: int
) -> Ceiling:
    """Train centrally on exactly the examples that the devices of each round drew, one Adam step a round.

    Args:
        server: the state folder of the run's server.
        stores: device → its examples.
        held_out: the test set.
        rounds: how many of the run's rounds to follow.
    """
    closed_rounds = zip(read_journal(server), read_history(server), strict=True)
    model = _Classifier(bundle)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    steps = 0
    for entry, closed in islice(closed_rounds, rounds):
        optimizer.zero_grad()
        for device in closed.devices:
            store = stores[device]
            drawn = draw_examples(entry.plan, store, device, step=0)
            loss = torch.nn.functional.cross_entropy(model(store, drawn), _targets(store, drawn))
            (loss / len(closed.devices)).backward()
        optimizer.step()
        steps += 1
    accuracy, _ = _evaluate(model, [held_out])
    _, train_loss = _evaluate(model, list(stores.values()))
    return Ceiling(steps, accuracy, train_loss)


def _evaluate(model: _Classifier, stores: Sequence[DataStore]) -> tuple[float, float]:
    correct, loss, count = 0, 0.0, 0
    with torch.inference_mode():
        for store in stores:
            for indices in np.array_split(np.arange(len(store)), -(-len(store) // 64)):
                logits, targets = model(store, indices), _targets(store, indices)
                correct += int((logits.argmax(dim=1) == targets).sum())
                loss += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
                count += len(indices)
    return correct / count, loss / count


def _targets(store: DataStore, indices: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(store.labels[indices]).long()
