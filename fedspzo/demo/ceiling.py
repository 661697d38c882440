"""What backpropagation reaches on the same batches: the upper limit that the demo prints with its own result.

On feedback it is REINFORCE: the gradient of the same clipped estimate of the reward.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel

from fedspzo.broker.rounds.job import Job
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
#: As jobs have it.
REWARD_CAP = Job.reward_cap


@dataclass(frozen=True)
class Ceiling:
    """Adam with backpropagation over the batches of a run's first rounds.

    Attributes:
        rounds: optimiser steps, one a round.
        accuracy: on the held-out set afterwards.
        loss: on the training examples afterwards; of feedback minus the mean reward.
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
            (_costs(model(store, drawn), store, drawn).mean() / len(closed.devices)).backward()
        optimizer.step()
        steps += 1
    with torch.inference_mode():
        right = torch.cat(
            [model(held_out, part).argmax(dim=1) == _targets(held_out, part) for part in _parts(held_out)]
        )
        costs = torch.cat([_costs(model(s, part), s, part) for s in stores.values() for part in _parts(s)])
    return Ceiling(steps, float(right.float().mean()), float(costs.mean()))


def _parts(store: DataStore) -> list[np.ndarray]:
    return np.array_split(np.arange(len(store)), -(-len(store) // 64))


def _costs(logits: torch.Tensor, store: DataStore, indices: np.ndarray) -> torch.Tensor:
    """Of each example: the cross-entropy, or minus the clipped estimate of the reward."""
    if store.feedback is None:
        return torch.nn.functional.cross_entropy(logits, _targets(store, indices), reduction="none")
    feedback = store.feedback.at(indices)
    shown = torch.from_numpy(feedback.shown).long()
    shares = torch.softmax(logits, dim=1).gather(1, shown[:, None])[:, 0] / torch.from_numpy(feedback.probabilities)
    return -torch.from_numpy(feedback.rewards) * shares.clamp(max=REWARD_CAP)


def _targets(store: DataStore, indices: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(store.labels[indices]).long()
