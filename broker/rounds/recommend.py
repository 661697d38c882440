"""Settings of a step for a job that says none: what was found to suit most models and tasks (docs/methods.md).

All but the end of the network is frozen, and its activations are kept. The end is the labels' vectors, or the last
layer where there are none. It is perturbed around the centre, along as many directions as cost about what the frozen
part does. A round moves the weights by a share of their own size. This needs no rate for each model: in ten settings
that ``fedspzo plan`` chose, of two models whose weights differ by a factor of 4 and whose derivatives by one of 8, the
share lies between 0.02 and 0.07.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fedspzo.broker.rounds.objective import coarseness, steepness
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import Manifest
from fedspzo.device_runtime.model.stored import widened

if TYPE_CHECKING:
    from fedspzo.broker.rounds.job import Job

log = logging.getLogger(__name__)

#: A round moves a weight by this share of the weights' root mean square, and a perturbation by the other.
STEP, PERTURBATION = 0.04, 0.01
#: Root mean square of derivatives that learning rates are meant for until a round has measured it.
DERIVATIVE = 4.0
#: Fewest and most directions.
FEWEST, MOST = 16, 256


def recommend(job: Job, bundle: Bundle) -> Job:
    """The job with blocks of its own; batch and stages are filled in already, and split unless one block is all."""
    kept, frozen = len(job.split), job.split[0] if job.split else 0
    sources = job.cohort if job.seeds == "device" else 1
    count = max(_directions(bundle, frozen) // sources, FEWEST)
    size = step_size(bundle, range(frozen, job.stages))
    share = step_share(count * sources)
    adapt = job.adapt or (() if job.privacy != "none" else ("steps", "rates"))
    derivative = DERIVATIVE * (1.0 if "steps" in adapt else steepness(job.objective))  # or else nobody measures it
    rate = share * size * math.sqrt(count * sources) / derivative
    log.info(
        "nothing is said of the steps, so they suit the bundle: what comes before '%s' is frozen, and a round moves the"
        " rest by %.1f %% of its size along %d directions; --method takes a published method",
        *(bundle.manifest.stages[frozen].name, 100 * share, count),
    )
    return replace(
        job,
        fanouts=(*(0,) * kept, count),
        scales=(*(1.0,) * kept, _round(coarseness(job.objective) * PERTURBATION * size / type(job).epsilon)),
        learning_rates=(*(0.0,) * kept, _round(rate)),
        sides=1,
        adapt=adapt,
    )


def last_layer(manifest: Manifest) -> int:
    """The last stage before the head in which a matrix is trained, or else anything; a norm may follow it."""
    return max(range(len(manifest.stages) - 1), key=lambda stage: (_trains(manifest, stage), stage))


def last_trained(manifest: Manifest) -> int:
    """The head, where a matrix of it is trained, as labels are, or else the last layer."""
    head = len(manifest.stages) - 1
    return head if _trains(manifest, head) == 2 else last_layer(manifest)


def _trains(manifest: Manifest, stage: int) -> int:
    """2 where a matrix of a stage is trained, 1 where vectors alone are, and 0 where nothing is."""
    tensors = (manifest.tensors[index] for index in manifest.stages[stage].tensors)
    return max((1 + (len(tensor.shape) > 1) for tensor in tensors if tensor.trainable), default=0)


def step_share(directions: int) -> float:
    """Of the weights' size, that a round moves them by: more where more directions leave less of a step to noise."""
    return float(STEP * (directions / FEWEST) ** (1 / 3))


def step_size(bundle: Bundle, stages: Sequence[int]) -> float:
    """How far a trained weight must go for a change as large as the weights that matter, those of linear maps.

    Adapters' second factor starts at zero, so the first one's size counts, trained or not. Cores start at zero between
    orthonormal bases: what they add is as large as the matrix W when their elements are as large as |W|/rank. Where no
    matrix is trained, the size of what is counts; that of all weights where it is zero, as biases of many models are.
    """
    manifest = bundle.manifest
    own = [manifest.stages[number] for number in stages]
    indices = {manifest.tensors[i].name: i for stage in own for i in (*stage.tensors, *stage.constants)}
    if cored := [name.removesuffix(".core_C") for name in indices if name.endswith(".core_C")]:
        matrices = [widened(bundle.tensor(indices[f"{name}.weight"])) for name in cored]
        rank = manifest.tensors[indices[f"{cored[0]}.core_C"]].shape[-1]
        return float(np.median([np.linalg.norm(matrix) for matrix in matrices])) / rank
    specs = [(index, manifest.tensors[index]) for index in sorted(indices.values())]
    mapping = [index for index, spec in specs if len(spec.shape) > 1 and (spec.trainable or "lora_A" in spec.name)]
    trained = [index for index, spec in specs if spec.trainable]
    return _rms(bundle, mapping) or _rms(bundle, trained) or _rms(bundle, [index for index, _ in specs])


def _directions(bundle: Bundle, frozen: int) -> int:
    """A power of two: about how many passes of what follows the frozen stages cost as much as one through these."""
    shape = max(bundle.manifest.shapes, key=lambda shape: shape.batch)
    flops = [shape.graphs[stage.graph].flops for stage in bundle.manifest.stages]
    passes = sum(flops[:frozen]) / max(1, sum(flops[frozen:]))
    return min(max(1 << (math.ceil(passes) - 1).bit_length(), FEWEST), MOST)


def _rms(bundle: Bundle, indices: Sequence[int]) -> float:
    """Root mean square of some tensors together; 0 of none."""
    arrays = [widened(bundle.tensor(index)) for index in indices]
    squares = math.fsum(float(np.square(array, dtype=np.float64).sum()) for array in arrays)
    return math.sqrt(squares / max(1, sum(array.size for array in arrays)))


def _round(number: float) -> float:
    """To three digits: no more is known."""
    return float(f"{number:.3g}")
