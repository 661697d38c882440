"""Segments of a network: runs of stages that the planner measures alone, and that blocks are not cut within."""

from __future__ import annotations

import math

import numpy as np

from fedspzo.broker.rounds.recommend import last_trained
from fedspzo.device_runtime.model.manifest import Manifest
from fedspzo.device_runtime.replica.weights import Replica

#: Most segments: deeper networks are cut more coarsely, except their last layers.
MOST_SEGMENTS = 8
#: A stage with so much fewer trained weights than the largest begins no segment: alone, it soon learned what it can.
#: The labels' vectors do begin one: they learn most of what there is to learn, for next to nothing.
LEAST_SHARE = 0.25


def cut(manifest: Manifest) -> list[tuple[int, int]]:
    """First stage and the stage after the last one of each segment."""
    last = len(manifest.stages)
    weights = [trained_weights(manifest, stage, stage + 1) for stage in range(last)]
    labels = last_trained(manifest)
    least = LEAST_SHARE * max(weights)
    starts = [stage for stage in range(last) if weights[stage] >= (1 if stage == labels else least)]
    if len(starts) > MOST_SEGMENTS:
        early, late = starts[: -MOST_SEGMENTS // 2], starts[-MOST_SEGMENTS // 2 :]
        starts = [*early[:: math.ceil(len(early) / (MOST_SEGMENTS // 2))], *late]
    starts[0] = next(stage for stage in range(last) if weights[stage])
    return list(zip(starts, [*starts[1:], last], strict=True))


def trained_weights(manifest: Manifest, start: int, stop: int) -> int:
    """How many weights of some stages are trained."""
    stages = manifest.stages[start:stop]
    tensors = {index for stage in stages for index in stage.tensors if manifest.tensors[index].trainable}
    return sum(math.prod(manifest.tensors[index].shape) for index in tensors)


def size_of_weights(replica: Replica, start: int, stop: int) -> float:
    """Root mean square of the trained weights of some stages."""
    arrays = [replica.trainable[index] for index in replica.trainable_in(range(start, stop))]
    squares = math.fsum(float(np.square(array, dtype=np.float64).sum()) for array in arrays)
    return math.sqrt(squares / sum(array.size for array in arrays))
