"""The estimator's variance, measured with many seeds on an engine, against its formula (`broker/rounds/variance.py`).

    python benchmarks/methods/variance.py --json variance.json --png variance.png        # some minutes

A small RoBERTa with random weights. For each block E|ĝ − g|², where ĝ is what a round's scalars stand for and g comes
from autograd: of one device on a given batch, of a cohort with directions shared or each device's own, and about the
gradient of all examples where batches are drawn.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.append(str(Path(__file__).parents[1]))  # where the benchmarks' models are
from gradients import Autograd, Curvature
from setting import export, make_model, random_store

from fedspzo.broker.rounds.variance import batch_variance, cohort_variance, curvature_variance, step_variance
from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.directions.format import DISTRIBUTIONS
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.estimator import draw_examples, measure_step
from fedspzo.device_runtime.step.runner import Forward

LAYERS, BATCH, LENGTH, EXAMPLES = 3, 4, 16, 16
TINY = {
    "vocab_size": 600, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "initializer_range": 0.3,
}  # fmt: skip
COUNTS = (1, 2, 4, 8, 16)
#: Ends of blocks and their scales, by the number of blocks.
CUTS = {1: ((5, 1.0),), 2: ((3, 0.25), (5, 1.0)), 3: ((2, 0.5), (3, 0.25), (5, 1.0))}
#: Independent directions behind each figure at least: squares of normal numbers vary by √2, so √(2/2400) = 2.9 %.
DRAWS = 2400
EPSILON, LARGE_EPSILON, CURVATURE_DRAWS = 1e-3, 1e-2, 64
TOLERANCE = 0.1

#: The examples of each device's batch in a repetition, given its plan.
Batches = Callable[[Plan], Sequence[np.ndarray]]


@dataclass(frozen=True)
class Row:
    """One block's variance.

    Attributes:
        what: whose estimate.
        distribution: of the directions.
        block: from 1.
        measured, formula: E|ĝ − g|²; ``error`` is the measured one's standard error.
    """

    what: str
    distribution: str
    block: int
    measured: float
    error: float
    formula: float

    @property
    def ratio(self) -> float:
        """Measured over formula."""
        return self.measured / self.formula


def make_plan(distribution: str, fanouts: Sequence[int], sides: int, **changes: Any) -> Plan:
    """A plan whose updates are the gradient estimates themselves."""
    blocks = tuple(Block(stop, k, scale, -1.0) for (stop, scale), k in zip(CUTS[len(fanouts)], fanouts, strict=True))
    plan = Plan(1, 0, True, distribution, 1, BATCH, EPSILON, blocks, 60.0, False, sides=sides)
    return replace(plan, **changes)


def squared_errors(
    forward: Forward[Replica],
    store: DataStore,
    plan: Plan,
    batches: Batches,
    target: Sequence[np.ndarray],
    repeats: int,
) -> np.ndarray:
    """float64 [repeats, blocks]: |ĝ − g|² of rounds with seeds of their own, devices equally weighted.

    Args:
        plan: with learning rates of −1.
        target: g of each block.
    """
    errors = np.empty((repeats, len(target)))
    for repeat in range(repeats):
        seeded = replace(plan, base_seed=repeat)
        found = []
        for number, indices in enumerate(batches(seeded)):
            owner, batch = seeded.owner(f"device-{number}"), forward.batch(store, indices)
            scalars, _ = measure_step(forward, batch, seeded, owner, 0, [[] for _ in plan.blocks])
            found.append(Contribution(owner, 1.0, tuple(scalars)))
        if plan.shared:
            found = [Contribution("", 1.0, tuple(np.mean([each.scalars for each in found], axis=0).tolist()))]
        entry = Entry(seeded, tuple(replace(each, weight=1 / len(found)) for each in found))
        estimate = written(forward, entry)
        errors[repeat] = [np.sum((own - exact) ** 2) for own, exact in zip(estimate, target, strict=True)]
    return errors


def written(forward: Forward[Replica], entry: Entry) -> list[np.ndarray]:
    """What an entry adds to each block's weights, float64 in one row."""
    weights, kernel, found = forward.weights, forward.weights.kernel(entry.plan.distribution), []
    for stages, updates in zip(entry.plan.stages(), entry.updates(), strict=True):
        zeros = {index: np.zeros_like(weights.trainable[index]) for index in weights.trainable_in(stages)}
        kernel.shift(zeros, updates, zeros)
        found.append(np.concatenate([step.ravel() for step in zeros.values()]).astype(np.float64))
    return found


class Comparison:
    """Measures on a bundle with directions of one distribution."""

    def __init__(self, bundle: Bundle, distribution: str, draws: int) -> None:
        self.forward = Forward(create_engine("litert"), Replica(bundle))
        self.store = random_store(bundle, EXAMPLES, LENGTH)
        self.autograd = Autograd(self.forward, self.store)
        self.curvature: dict[int, list[Curvature]] = {}  # by the number of blocks, of the given batch
        self.distribution = distribution
        self.draws = draws

    def rows(self) -> list[Row]:
        """All that is compared."""
        found = []
        for count in COUNTS:
            inner = min(2, count)
            for sides in (2, 1):
                for fanouts in ((count,), (1, count), (1, inner, count // inner)):
                    found += self.one_device(make_plan(self.distribution, fanouts, sides))
        found += self.one_device(make_plan(self.distribution, (2, 4), 1, epsilon=LARGE_EPSILON))
        for sides in (2, 1):
            for shared in (True, False):
                found += self.cohort(make_plan(self.distribution, (2, 4), sides, shared=shared))
            found += self.drawn_batches(make_plan(self.distribution, (2, 4), sides))
        return found

    def one_device(self, plan: Plan) -> list[Row]:
        """A given batch."""
        batch = np.arange(BATCH)
        target = self._gradient(plan, batch)
        sizes = [gradient.size for gradient in target]
        formula = step_variance(plan, sizes, _squares(target))
        if plan.sides == 1:
            if len(sizes) not in self.curvature:
                self.curvature[len(sizes)] = self.autograd.curvature(plan, batch, CURVATURE_DRAWS)
            curved = self.curvature[len(sizes)]
            bent = curvature_variance(plan, sizes, [c.trace for c in curved], [c.norm for c in curved])
            formula = [straight + more for straight, more in zip(formula, bent, strict=True)]
        cut = f"{len(sizes)} block{'s' * (len(sizes) > 1)}, K = {','.join(str(block.fanout) for block in plan.blocks)}"
        large = f", ε = {plan.epsilon:g}" if plan.epsilon != EPSILON else ""
        return self._compare(f"{cut}, {_SIDES[plan.sides]}{large}", plan, lambda _: [batch], target, formula)

    def cohort(self, plan: Plan) -> list[Row]:
        """Devices with a batch each, about their mean gradient."""
        batches = np.split(np.arange(EXAMPLES), EXAMPLES // BATCH)
        each = [self._gradient(plan, batch) for batch in batches]
        target = [np.mean(own, axis=0) for own in zip(*each, strict=True)]
        sizes = [gradient.size for gradient in target]
        if plan.shared:
            formula = step_variance(plan, sizes, _squares(target))
        else:
            own = [step_variance(plan, sizes, _squares(gradient)) for gradient in each]
            shares = [1 / len(batches)] * len(batches)
            formula = [cohort_variance(variances, shares) for variances in zip(*own, strict=True)]
        what = f"{len(batches)} devices, {'shared' if plan.shared else 'their own'} directions, {_SIDES[plan.sides]}"
        return self._compare(what, plan, lambda _: batches, target, formula)

    def drawn_batches(self, plan: Plan) -> list[Row]:
        """Batches drawn again each time, about the gradient of all examples."""
        single = self.autograd.gradients(plan, np.arange(BATCH))
        for start in range(BATCH, EXAMPLES, BATCH):
            single += self.autograd.gradients(plan, np.arange(start, start + BATCH))
        target = [np.mean(own, axis=0) for own in zip(*single, strict=True)]
        spreads = [
            float(np.mean([np.sum((gradient - mean) ** 2) for gradient in own]))
            for own, mean in zip(zip(*single, strict=True), target, strict=True)
        ]
        sampling = [batch_variance(spread, BATCH, EXAMPLES) for spread in spreads]
        squares = [square + more for square, more in zip(_squares(target), sampling, strict=True)]
        steps = step_variance(plan, [gradient.size for gradient in target], squares)
        formula = [step + more for step, more in zip(steps, sampling, strict=True)]

        def draw(seeded: Plan) -> list[np.ndarray]:
            return [draw_examples(seeded, self.store, "a", 0)]

        what = f"drawn batches, {_SIDES[plan.sides]}"
        return self._compare(what, plan, draw, target, formula, times=3)  # batches differ: a figure that varies more

    def _compare(
        self,
        what: str,
        plan: Plan,
        batches: Batches,
        target: Sequence[np.ndarray],
        formula: Sequence[float],
        times: int = 1,
    ) -> list[Row]:
        repeats = -(-times * self.draws // plan.blocks[0].fanout)
        errors = squared_errors(self.forward, self.store, plan, batches, target, repeats)
        means, spreads = errors.mean(axis=0), errors.std(axis=0, ddof=1) / np.sqrt(repeats)
        figures = zip(means.tolist(), spreads.tolist(), formula, strict=True)
        return [
            Row(what, plan.distribution, number, measured, error, expected)
            for number, (measured, error, expected) in enumerate(figures, start=1)
        ]

    def _gradient(self, plan: Plan, indices: np.ndarray) -> list[np.ndarray]:
        """Of the mean loss of some examples, for each block."""
        return [np.mean(own, axis=0) for own in zip(*self.autograd.gradients(plan, indices), strict=True)]


_SIDES = {1: "one-sided", 2: "two-sided"}


def _squares(gradient: Sequence[np.ndarray]) -> list[float]:
    return [float(own @ own) for own in gradient]


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = [
        "| estimate | directions | block | measured | formula | ratio | s.e. |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        lines.append(
            f"| {row.what} | {row.distribution} | {row.block} | {row.measured:.4g} | {row.formula:.4g} |"
            f" {row.ratio:.3f} | {100 * row.error / row.measured:.1f} % |"
        )
    return "\n".join(lines)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Measured points on the formula's lines, against K, with two blocks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(8.6, 3.3), layout="constrained", sharey=True)
    for panel, sides in zip(panels, (2, 1), strict=True):
        for number, (block, distribution) in enumerate(product((1, 2), DISTRIBUTIONS)):
            chosen = {
                count: row
                for count in COUNTS
                for row in rows
                if (row.what, row.distribution, row.block)
                == (f"2 blocks, K = 1,{count}, {_SIDES[sides]}", distribution, block)
            }
            colour, mark = f"C{number}", "o+"[number % 2]
            panel.plot(list(chosen), [row.formula for row in chosen.values()], "-", color=colour, linewidth=1)
            measured = [row.measured for row in chosen.values()]
            label = f"block {block}, {distribution} directions"
            panel.plot(list(chosen), measured, mark, color=colour, markersize=6 + 3 * (number % 2), label=label)
        panel.set(xscale="log", yscale="log", xlabel="perturbations of block 2", xticks=COUNTS)
        panel.set_xticks(COUNTS, [str(count) for count in COUNTS])
        panel.minorticks_off()
        panel.set_title(f"{_SIDES[sides]} differences", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("mean squared error of the gradient")
    panels[0].plot([], [], "-", color="#57606a", linewidth=1, label="formula")
    panels[0].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def compare(folder: Path, draws: int, distribution: str) -> list[Row]:
    """All rows of one distribution, in a process of its own."""
    torch.set_num_threads(1)
    return Comparison(Bundle(folder), distribution, draws).rows()


def main() -> None:
    """Make the model, measure, and say whether all agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=DRAWS, help="repetitions of each estimate (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    parser.add_argument("--png", type=Path, metavar="FILE", help="where to draw them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="variance-") as name:
        checkpoint = make_model(Path(name), LAYERS, **TINY)
        bundle = export(checkpoint, "litert,torch", [BATCH], [LENGTH])
        with ProcessPoolExecutor(len(DISTRIBUTIONS), get_context("spawn")) as pool:
            made = pool.map(partial(compare, bundle.folder, options.draws), DISTRIBUTIONS)
            rows = [row for found in made for row in found]
    worst = max(rows, key=lambda row: abs(row.ratio - 1))
    print(table(rows))
    print(f"\nLargest deviation of {len(rows)}: {100 * (worst.ratio - 1):+.1f} % ({worst.what}, {worst.distribution}).")
    if options.json:
        options.json.write_text(json.dumps([{**asdict(row), "ratio": row.ratio} for row in rows], indent=1))
    if options.png:
        draw(rows, options.png)
    if abs(worst.ratio - 1) > TOLERANCE:
        raise SystemExit(f"the measured variance and its formula differ by more than {100 * TOLERANCE:g} %")


if __name__ == "__main__":
    main()
