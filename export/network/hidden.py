"""Hidden states of tokenised texts, computed in PyTorch with the weights of one stage at a time in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedspzo.device_runtime.model.manifest import HIDDEN
from fedspzo.export.families import Architecture, Stage
from fedspzo.export.layout import Tensor
from fedspzo.export.modules.stage_module import Weights

#: Texts that go through a stage together.
_BATCH = 32


@dataclass(frozen=True)
class Texts:
    """Tokenised texts.

    Attributes:
        ids: int64 [texts, length], zero after each text's end.
        lengths, starts: int64 [texts]; the position whose output scores the labels.
    """

    ids: np.ndarray
    lengths: np.ndarray
    starts: np.ndarray

    def feeds(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """What stages take of some of the texts, apart from hidden states."""
        positions = np.arange(self.ids.shape[1])
        mask = positions < self.lengths[rows, None]
        select = positions == self.starts[rows, None, None]
        return {name: torch.from_numpy(feed.astype(np.float32)) for name, feed in (("mask", mask), ("select", select))}


def padded(encoded: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """``ids`` and ``lengths`` of :class:`Texts`."""
    lengths = np.array([len(ids) for ids in encoded])
    ids = np.zeros((len(encoded), max(4, int(lengths.max()))), np.int64)
    for row, tokens in zip(ids, encoded, strict=True):
        row[: len(tokens)] = tokens
    return ids, lengths


def embedded(tensors: Mapping[str, Tensor], architecture: Architecture, texts: Texts) -> torch.Tensor:
    """The rows of the token table [texts, length, width]: what the first stage takes."""
    return torch.from_numpy(np.take(tensors[architecture.embedding].load()[0], texts.ids, axis=0))


def stage_weights(tensors: Mapping[str, Tensor], stage: Stage, without: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """A stage's tensors by their names in its module, without some."""
    found = {}
    for name in stage.module.tensors:
        if name not in without:
            full = stage.full_name(name)
            tensor = tensors[full if full in tensors else name]
            found[name] = torch.from_numpy(np.ascontiguousarray(tensor.load()))
    return found


@torch.no_grad()
def pass_through(stage: Stage, tensors: Mapping[str, Tensor], texts: Texts, hidden: torch.Tensor) -> torch.Tensor:
    """What a stage makes of all texts' hidden states; a stage may change their width (OPT-350m)."""
    weights = stage_weights(tensors, stage)
    parts = np.split(np.arange(len(hidden)), range(_BATCH, len(hidden), _BATCH))
    return torch.cat([run_stage(stage, weights, {**texts.feeds(here), HIDDEN: hidden[here]}) for here in parts])


def run_stage(stage: Stage, weights: Mapping[str, torch.Tensor], feeds: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A stage's first output: the next hidden states, or of a head the losses."""
    outputs = stage.module.compute(Weights(weights), *(feeds[name] for name in stage.module.feeds))
    return outputs[0] if isinstance(outputs, tuple) else outputs
