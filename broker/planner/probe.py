"""Measures a :class:`Profile`: each segment is perturbed alone, on batches of several devices, in pairs.

The gradient of an example's loss is never computed. Along a direction z (independent signs) a pair of losses gives
z·g ≈ (l₊ − l₋)/2ε, whose mean square over directions is |g|², and zᵀHz ≈ (l₊ + l₋ − 2l₀)/ε², whose mean is tr(H)
(Hutchinson, 1989) and whose variance is 2·tr(H²) (less the diagonal's share). Losses come example by example, so the
products of derivatives of two examples along one direction give the inner products of their gradients, for two
examples of one device and of two devices: how much of a batch's gradient is signal.

A segment's own inner products are noisy, a few directions being all there are. Their ratio to the magnitude is a
property of the examples more than of a layer and is pooled over the segments; so is the sharpness. Where a second
difference is lost in noise, or the curvature is negative, the magnitude stands for the trace: for a model whose
probabilities are right, the mean |g|² is the trace of the Gauss–Newton matrix (Fisher's identity), and steps must be
small for that.

All of it holds for another objective than the loss, whose costs stand where the losses do. Fisher's identity does not;
in its place the magnitude counts in units of the largest cost, as a curvature does. A cost that has few values is
measured with perturbations as large as jobs take for it, and what is said of it is said of its mean over those.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedspzo.broker.planner.profile import Profile, Segment
from fedspzo.broker.planner.segments import cut, size_of_weights, trained_weights
from fedspzo.broker.rounds.objective import coarseness
from fedspzo.broker.rounds.recommend import PERTURBATION, step_size
from fedspzo.broker.simulation.partition import Shares
from fedspzo.device_runtime.directions.format import Direction, derive_seed
from fedspzo.device_runtime.errors import DataError, PlanError
from fedspzo.device_runtime.model.task import Task
from fedspzo.device_runtime.protocol.objective import LOSS, METRIC, Objective
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.branches import START, Activations, advance, release
from fedspzo.device_runtime.step.objectives import Measure, check_examples, check_task, find_measure
from fedspzo.device_runtime.step.runner import Batch, Forward
from fedspzo.device_runtime.step.spread import standard_error
from fedspzo.device_runtime.step.stage_pass import Perturbations, StagePass, both_signs, perturbed_weights

#: Size of a perturbation: small against weights, and its differences large against a loss's rounding.
EPSILON = 1e-3
#: A segment's magnitude is at least this share of the largest one's, for one that nothing was measured of.
LEAST_MAGNITUDE = 1e-9
#: A signal that is smaller than this share of its magnitude is taken for as large; one cannot measure it.
LEAST_SIGNAL = 1e-3


@dataclass(frozen=True)
class Sample:
    """What one batch of a device gave.

    Attributes:
        device: whose it is.
        first: float64 [segments, directions, examples], z·g of each example.
        second: float64 [segments, directions], zᵀHz of the batch's mean loss.
        losses: float64 [examples], unperturbed.
        shifted: seconds of each segment's stages, perturbed.
        nonzero: share of the batch's one-sided differences that are not zero.
    """

    device: str
    first: np.ndarray
    second: np.ndarray
    losses: np.ndarray
    shifted: Sequence[float]
    nonzero: float = 1.0


@dataclass(frozen=True)
class Statistics:
    """What samples say together; see :class:`Profile`.

    Attributes:
        magnitude, trace: of each segment, as measured.
        between, within, sharpness: pooled.
    """

    magnitude: np.ndarray
    trace: np.ndarray
    between: float
    within: float
    sharpness: float


def probe(
    forward: Forward[Replica],
    shares: Shares,
    directions: int,
    batches: int,
    seed: int,
    objective: Objective | None = None,
) -> Profile:
    """Measure a profile at the replica's weights.

    Args:
        directions: for each segment, at least 2.
        batches: of devices in turn, at least 2.
        objective: what is measured; None for the loss.

    Raises:
        DataError: the devices have too few examples to tell signal from noise, or nothing changes what is measured.
        PlanError: the objective is not for the task or the examples, or needs answers to be generated.
    """
    manifest = forward.manifest
    measure = find_costs(objective, manifest.task)
    cuts = cut(manifest)
    coarse = coarseness(objective.name if objective else LOSS)
    sizes = [_probed(forward, range(*bounds), coarse) for bounds in cuts]
    draws = [
        [Direction(derive_seed(seed, "probe", 0, segment, (k,)), size) for k in range(directions)]
        for segment, size in enumerate(sizes)
    ]
    order = np.random.default_rng(seed).permutation(len(shares.devices))
    counts = sorted({shape.batch for shape in manifest.shapes})
    samples, costs = [], []
    for number in range(batches):
        device = shares.devices[order[number % len(order)]]
        store = shares.of(device)
        check_examples(objective, store)
        indices = store.sample(derive_seed(seed, f"probe of {device}", number, 0, ()), manifest.batch)
        samples.append(_sample(forward, forward.batch(store, indices), device, cuts, draws, measure))
        costs.append([_cost(forward, forward.batch(store, indices[:count]), cuts) for count in counts])
    found = evaluate_samples(samples)
    largest = float(found.magnitude.max())
    if not largest:
        raise DataError(
            "planner.nothing-changes",
            f"no perturbation changed {objective.name if objective else LOSS} on {batches} batches; give more --batches"
            " and --directions, or take an objective that has more values, such as expected-error",
        )
    magnitude = np.maximum(found.magnitude, LEAST_MAGNITUDE * largest)
    measured = np.abs(np.concatenate([sample.losses for sample in samples]))
    floor = magnitude / (float(measured.max()) or 1.0) if objective else magnitude
    flops, seconds = np.median(np.array(costs), axis=0).transpose(2, 1, 0)  # [1 + segments, batch sizes]
    plain = seconds[1:, -1]
    shifted = np.median([sample.shifted for sample in samples], axis=0)
    segments = tuple(
        Segment(
            start,
            stop,
            trained_weights(manifest, start, stop),
            size_of_weights(forward.weights, start, stop) or step_size(forward.bundle, range(start, stop)),
            float(magnitude[segment]),
            float(max(found.trace[segment], floor[segment])),
            _by_size(counts, flops[1 + segment]),
            _by_size(counts, seconds[1 + segment]),
            float(max(shifted[segment] - plain[segment], 0.0)),
            sizes[segment],
        )
        for segment, (start, stop) in enumerate(cuts)
    )
    return Profile(
        segments=segments,
        stages=len(manifest.stages),
        flops=_by_size(counts, flops[0]),
        seconds=_by_size(counts, seconds[0]),
        between=found.between,
        within=found.within,
        sharpness=found.sharpness,
        devices=len(shares.devices),
        examples=float(np.mean([len(shares.of(sample.device)) for sample in samples])),
        loss=float(np.mean([sample.losses.mean() for sample in samples])),
        unit=float(np.mean([np.abs(sample.losses).mean() for sample in samples])),
        loss_uncertainty=standard_error([float(sample.losses.mean()) for sample in samples]),
        nonzero=float(np.mean([sample.nonzero for sample in samples])),
        coarse=coarse > 1,
    )


def find_costs(objective: Objective | None, task: Task) -> Measure:
    """The function that an objective names; None for the loss.

    Raises:
        PlanError: it is not for the task, or needs answers to be generated.
    """
    if objective and objective.name.startswith(METRIC):
        check_task(objective.name, task)
        raise PlanError(
            "planner.metric",
            f"the planner generates no answers, as {objective.name} needs; leave out the steps' settings, which then"
            " suit the bundle, or compare some by fedspzo simulate",
        )
    return find_measure(objective, task)


def evaluate_samples(samples: Sequence[Sample]) -> Statistics:
    """Moments of the derivatives.

    Raises:
        DataError: there are no two devices, or no batch of two examples.
    """
    devices = [sample.device for sample in samples]
    sums = np.stack([sample.first.sum(axis=2) for sample in samples])  # [batches, segments, directions]
    squares = np.stack([(sample.first**2).sum(axis=2) for sample in samples])
    counts = np.array([sample.first.shape[2] for sample in samples])
    pairs = counts * (counts - 1)
    own = np.array([[a == b for b in devices] for a in devices])
    if not pairs.any() or own.all():
        raise DataError(
            "planner.too-few-examples",
            "the planner needs two devices with examples, one of them with two or more; add devices or data",
        )
    magnitude = squares.sum(axis=0).mean(axis=1) / counts.sum()
    within = (sums**2 - squares).sum(axis=0).mean(axis=1) / pairs.sum()
    others = np.einsum("apk,bpk,ab->p", sums, sums, ~own) / sums.shape[2]
    between = others / (np.outer(counts, counts) * ~own).sum()
    curved = np.average([sample.second for sample in samples], axis=0, weights=counts)  # [segments, directions]
    trace = curved.mean(axis=1)
    floor = np.finfo(np.float64).tiny
    return Statistics(
        magnitude=magnitude,
        trace=trace,
        between=float(np.clip(np.mean(between / np.maximum(magnitude, floor)), 0.0, 1.0)),
        within=float(np.clip(np.mean(within / np.maximum(magnitude, floor)), LEAST_SIGNAL, 1.0)),
        sharpness=float(np.clip(curved.var(axis=1, ddof=1).sum() / (2 * max((trace**2).sum(), floor)), 0.0, 1.0)),
    )


def _sample(
    forward: Forward[Replica],
    batch: Batch,
    device: str,
    cuts: Sequence[tuple[int, int]],
    draws: Sequence[Sequence[Direction]],
    measure: Measure,
) -> Sample:
    """All segments and directions on one batch."""
    last = cuts[-1][1]
    starts, kept, activations, at = [start for start, _ in cuts], [], START, 0
    for stop in [*starts, last]:
        before, activations = activations, _run(forward, batch, range(at, stop), [None], activations)
        if before is not activations:
            kept.append(before)
        at = stop
    entered = kept if starts[0] == 0 else kept[1:]  # the activations that each segment starts from
    (centre,) = (measure(end, batch.known) for end in activations.ends(batch))
    first = np.empty((len(cuts), len(draws[0]), batch.count))
    second, shifted, changes = np.empty(first.shape[:2]), [], []
    for segment, (start, stop) in enumerate(cuts):
        times = []
        for k, direction in enumerate(draws[segment]):
            started = time.perf_counter()
            changed = _run(forward, batch, range(start, stop), both_signs([direction]), entered[segment])
            times.append((time.perf_counter() - started) / 2)
            ended = _run(forward, batch, range(stop, last), [None, None], changed)
            above, below = (measure(end, batch.known) for end in ended.ends(batch))
            size = direction.coefficient
            first[segment, k] = (above - below) / (2 * size)
            second[segment, k] = np.mean(above + below - 2 * centre) / size**2
            changes += [bool(np.mean(side - centre)) for side in (above, below)]
            for done in {id(each): each for each in (changed, ended)}.values():
                release(forward, done)
        shifted.append(float(np.median(times)))
    for each in (*kept, activations):
        release(forward, each)
    return Sample(device, first, second, centre, shifted, float(np.mean(changes)))


def _run(
    forward: Forward[Replica], batch: Batch, stages: range, own: Sequence[Direction | None], activations: Activations
) -> Activations:
    """Through some stages, each branch with its own perturbation of all of them; ``activations`` stays as it is."""
    perturbations = Perturbations([], own, "rademacher")
    groups = forward.groups(batch)
    passes = [StagePass.of(forward, batch, 0, stage, perturbations, groups) for stage in stages]
    perturbed = perturbed_weights(forward, passes, None)
    for number, stage_pass in enumerate(passes):
        activations = advance(forward, batch, stage_pass, activations, perturbed, keep=number == 0)
    return activations


def _cost(forward: Forward[Replica], batch: Batch, cuts: Sequence[tuple[int, int]]) -> list[tuple[float, float]]:
    """Operations and seconds of the stages before all segments, and of each segment."""
    costs, activations = [], START
    for start, stop in [(0, cuts[0][0]), *cuts]:
        before, counted, started = activations, forward.flops, time.perf_counter()
        activations = _run(forward, batch, range(start, stop), [None], activations)
        costs.append((float(forward.flops - counted), time.perf_counter() - started))
        if before is not activations:
            release(forward, before)
    release(forward, activations)
    return costs


def _by_size(counts: Sequence[int], values: np.ndarray) -> Mapping[int, float]:
    return dict(zip(counts, values.tolist(), strict=True))


def _probed(forward: Forward[Replica], stages: range, coarse: float) -> float:
    """Size of the perturbation that a segment is measured with: for a coarse cost, as large as jobs take for it."""
    return coarse * PERTURBATION * step_size(forward.bundle, stages) if coarse > 1 else EPSILON
