"""The axis along which a loss is steep for the vectors of label words: what all texts' last hidden states share.

A language model's last hidden states differ little from their mean. The loss is then many times steeper along the mean
than along anything else, and what allows no longer steps says nothing of the text. Whoever exports can find the axis
without any data of the task: from sentences of a text that comes with the project, in the task's template.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import torch

from fedspzo.device_runtime.model.task import Task
from fedspzo.export.calibrate import TEXT
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import Architecture, Stage
from fedspzo.export.modules.stage_module import Weights
from fedspzo.export.network.hidden import Texts, embedded, padded, pass_through, stage_weights
from fedspzo.export.network.target import Target
from fedspzo.export.network.tensors import network_tensors
from fedspzo.export.network.tokens import answer_place, encode_within

#: Sentences that are asked, from all over the text, and the characters of the shortest and the longest.
_SENTENCES, _SHORT, _LONG = 16, 20, 120
#: So much is kept at least of what is learned along the axis, since a label may be more frequent than the model thinks.
_LEAST = 0.1
#: Decimal places of the axis, on which machines agree that sum in another order.
_PLACES = 4


def steep_axis(checkpoint: Checkpoint, describe: Callable[[int], Architecture], task: Task, length: int) -> np.ndarray:
    """What :class:`fedspzo.export.modules.heads.LabelWords` takes as its axis, float32 [width].

    With it, states vary along their mean as they do along the next steepest direction, and no more.

    Args:
        describe: gives the architecture for texts of a length, without adapters.
        task: by a masked word or the next one.
        length: most tokens of a text.
    """
    encoded = [encode_within(checkpoint, task, fields, length) for fields in _fields(task)]
    texts = Texts(*padded(encoded), np.array([answer_place(checkpoint, task, ids) for ids in encoded]))
    architecture = describe(texts.ids.shape[1])
    tensors = network_tensors(checkpoint, architecture, task, Target())
    hidden = embedded(tensors, architecture, texts)
    for stage in architecture.stages:
        hidden = pass_through(stage, tensors, texts, hidden)
    assert architecture.final is not None
    return axis_of(_at_labels(architecture.final, stage_weights(tensors, architecture.final), texts, hidden))


def axis_of(states: np.ndarray) -> np.ndarray:
    """The axis of some states [texts, width]: zero where their mean is no steeper than the rest, or is no number."""
    states = np.nan_to_num(states.astype(np.float64), posinf=0.0, neginf=0.0)  # the export refuses such weights
    mean = states.mean(axis=0)
    along = mean / (np.linalg.norm(mean) or 1.0)
    shares = states @ along
    rest = states - shares[:, None] * along
    steepest = np.linalg.norm(rest - rest.mean(axis=0), ord=2) ** 2
    kept = np.clip(np.sqrt(steepest / (shares @ shares or 1.0)), _LEAST, 1.0)
    return np.round(np.sqrt(1.0 - kept) * along, _PLACES).astype(np.float32)


def _fields(task: Task) -> Sequence[dict[str, str]]:
    """Sentences of the text, each in turn in every field."""
    text = " ".join(TEXT.read_text(encoding="utf-8").split())
    found = [each for each in re.split(r"(?<=[.!?]) ", text) if _SHORT <= len(each) <= _LONG]
    found = found[:: len(found) // _SENTENCES][:_SENTENCES]
    return [
        {name: found[(number + place) % len(found)] for place, name in enumerate(task.fields)}
        for number in range(len(found))
    ]


@torch.no_grad()
def _at_labels(final: Stage, weights: dict[str, torch.Tensor], texts: Texts, hidden: torch.Tensor) -> np.ndarray:
    select = texts.feeds(np.arange(len(hidden)))["select"]
    at = final.module.compute(Weights(weights), torch.bmm(select, hidden))
    assert isinstance(at, torch.Tensor)
    return at[:, 0].numpy()
