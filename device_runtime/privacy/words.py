"""The words of a masked result, and what a sum of them says: scalars and loss as whole numbers, then what is counted.

In order: a word of each scalar and of the loss (:mod:`fedspzo.device_runtime.privacy.quantise`), examples,
milliseconds; where the plan asks for energy, then how many devices said it, how many of them did not measure, and
millijoules and their uncertainty. Each is within :attr:`Grid.limit`, so that no sum of a group overflows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedspzo.device_runtime.errors import MessageError
from fedspzo.device_runtime.privacy.quantise import Grid, quantise
from fedspzo.device_runtime.privacy.release import mean, words_of
from fedspzo.device_runtime.protocol.entry import GroupSum
from fedspzo.device_runtime.protocol.messages import Energy, Result
from fedspzo.device_runtime.protocol.plan import Plan

#: Words after those of scalars and loss, and those of them about energy.
_COUNTED, _ENERGY = 2, 4


@dataclass(frozen=True)
class Total:
    """What the results of some devices come to.

    Attributes:
        devices, examples: how many.
        scalars, loss: mean, weighted by examples; float32 of shape (scalars,).
        seconds: of all devices together.
        energy: of the devices that said it together; empty where none did.
        told, estimated: devices that said it, and those of them that did not measure.
    """

    devices: int
    examples: int
    scalars: np.ndarray
    loss: float
    seconds: float
    energy: tuple[Energy, ...]
    told: int
    estimated: int


def make_grid(plan: Plan) -> Grid:
    """The whole numbers that a masked plan's results are cut to. Raises PlanError where they would be too coarse."""
    (masking,) = plan.masking
    return Grid(masking.clip, plan.most_examples, masking.most)


def count_words(plan: Plan) -> int:
    """Words of a result."""
    return plan.scalars + 1 + _COUNTED + _ENERGY * plan.energy


def pack(plan: Plan, result: Result) -> np.ndarray:
    """The words of a result, int64 of shape (count_words,)."""
    grid = make_grid(plan)
    counted = [result.examples, _whole(1e3 * result.seconds, grid)]
    if plan.energy:
        counted += [0] * _ENERGY
        for energy in result.energy[:1]:
            millijoules = [_whole(1e3 * energy.joules, grid), _whole(1e3 * energy.uncertainty, grid)]
            counted[-_ENERGY:] = [1, int(energy.estimated), *millijoules]
    if plan.noise:
        measured = words_of(plan, result.scalars, result.loss)
    else:
        measured = quantise(result.scalars, result.loss, result.examples, grid)
    return np.append(measured, np.array(counted, np.int64))


def add_up(words: np.ndarray, devices: int) -> GroupSum:
    """A sum of some devices' words (int64, within 32 bits), as it is kept."""
    return GroupSum(devices, np.asarray(words).astype("<i4").tobytes())


def unpack(plan: Plan, summed: GroupSum) -> Total:
    """What a sum says.

    Raises:
        MessageError: no results of as many devices add up to it: masks did not cancel, or a device cheats.
    """
    grid = make_grid(plan)
    if len(summed.words) != 4 * count_words(plan):
        raise MessageError("sum.word-count", f"it is not a sum of {count_words(plan)} words")
    words = np.frombuffer(summed.words, "<i4").astype(np.int64)
    vector, counted = words[: plan.scalars + 1], words[plan.scalars + 1 :].tolist()
    devices, examples = summed.devices, counted[0]
    square = 0 if plan.noise else sum(word**2 for word in vector.tolist())  # noise may have any size
    if not devices <= examples <= devices * grid.examples or square > (examples * grid.steps) ** 2:
        raise MessageError("sum.out-of-range", f"no {devices} results add up to it")
    told, estimated = counted[_COUNTED : _COUNTED + 2] if plan.energy else (0, 0)
    if min(counted[1:]) < 0 or not estimated <= told <= devices:
        raise MessageError("sum.out-of-range", f"no {devices} results add up to its times or joules")
    scalars, loss = mean(plan, vector, devices) if plan.noise else grid.mean(vector, examples)
    joules = [Energy(1e-3 * counted[-2], 1e-3 * counted[-1], estimated > 0)] if told else []
    return Total(devices, examples, scalars, loss, 1e-3 * counted[1], tuple(joules), told, estimated)


def _whole(number: float, grid: Grid) -> int:
    return min(max(round(number), 0), grid.limit)
