"""What a step costs at equal perturbations of the second block: FedSPZO with K of them, whole-model with P = K.

    python benchmarks/methods/step_cost.py --json step-cost.json --png step-cost.png    # minutes, on 2 cores left alone

RoBERTa-large's layer shapes with random weights. With shares F1 and F2 of a forward pass's FLOPs in the two blocks,
whole-model takes 2·K of them and the split, one perturbation of block 1 and K of block 2 under it, 2·(F1 + K·F2): the
ratio is 1/(F1/K + F2). Counted by the runtime, and timed in turn in one process.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # where the benchmarks' models are
from setting import OurDevice, export, make_model, random_store, time_in_turn

from fedspzo.device_runtime.protocol.plan import Plan

COUNTS = (2, 4, 8, 12, 16, 32)
COUNTED, TIMED, PAID, ENOUGH = 0.05, 0.15, 3.0, 12


@dataclass(frozen=True)
class Cost:
    """A split's step with K perturbations of its second block, beside whole-model steps with as many.

    Attributes:
        layers: in block 2, with the head.
        share: F2, of a forward pass's FLOPs.
        count: K.
        flops, seconds: of the split, two-sided.
        one_sided_flops, one_sided_seconds: of the split, one-sided.
        whole_flops, whole_seconds: of the whole model, two-sided.
        whole_one_sided_flops, whole_one_sided_seconds: of the whole model, one-sided.
    """

    layers: int
    share: float
    count: int
    flops: int
    seconds: float
    one_sided_flops: int
    one_sided_seconds: float
    whole_flops: int
    whole_seconds: float
    whole_one_sided_flops: int
    whole_one_sided_seconds: float

    @property
    def predicted(self) -> float:
        """1/(F1/K + F2)."""
        return 1 / ((1 - self.share) / self.count + self.share)

    @property
    def counted(self) -> float:
        """Times fewer FLOPs."""
        return self.whole_flops / self.flops

    @property
    def timed(self) -> float:
        """Times less wall time."""
        return self.whole_seconds / self.seconds

    def failures(self) -> list[str]:
        """Which bars it misses."""
        name = f"block 2 of {self.layers} layers and the head, K = {self.count}"
        found = []
        for kind, value, allowed in (("FLOPs", self.counted, COUNTED), ("wall time", self.timed, TIMED)):
            if abs(value / self.predicted - 1) > allowed:
                found.append(f"{name}: the ratio of {kind} is {value:.2f}, and the formula's {self.predicted:.2f}")
        return found


def counted(device: OurDevice, plan: Plan) -> int:
    """FLOPs of a step as the runtime counts them."""
    before = device.forward.flops
    device.measure(plan)
    return device.forward.flops - before


def compare(device: OurDevice, layers: Sequence[int], counts: Sequence[int], repeats: int) -> list[Cost]:
    """All splits, for each K in turn with the whole model."""
    flops = [device.forward.manifest.shapes[0].graphs[s.graph].flops for s in device.forward.manifest.stages]
    found = []
    for count in counts:
        two = {0: device.whole(count)} | {
            n: device.plan((device.stages - 1 - n, 1), (device.stages, count)) for n in layers
        }
        plans = {(n, sides): replace(plan, sides=sides) for n, plan in two.items() for sides in (2, 1)}
        costs = {which: counted(device, plan) for which, plan in plans.items()}
        timed = time_in_turn({str(which): partial(device.measure, plan) for which, plan in plans.items()}, repeats)
        seconds = {which: timed[str(which)] for which in plans}
        for n in layers:
            share = sum(flops[device.stages - 1 - n :]) / sum(flops)
            kinds = ((n, 2), (n, 1), (0, 2), (0, 1))
            cost = Cost(n, share, count, *(figure for kind in kinds for figure in (costs[kind], seconds[kind])))
            found.append(cost)
            print(json.dumps(asdict(cost)), file=sys.stderr, flush=True)
    return sorted(found, key=lambda cost: (cost.layers, cost.count))


def table(costs: Sequence[Cost]) -> str:
    """Markdown: ratios to the whole model, and what one-sided steps cost beside two-sided ones."""
    lines = [
        "| block 2 | F2 | K | 1/(F1/K + F2) | FLOPs | wall time | deviation | seconds | one-sided: FLOPs | wall time"
        " | one-sided whole model / split: FLOPs | wall time |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for cost in costs:
        lines.append(
            f"| {cost.layers} layer{'s' * (cost.layers > 1)} | {cost.share:.3f} | {cost.count} | {cost.predicted:.2f}"
            f" | {cost.counted:.2f} | {cost.timed:.2f} | {100 * (cost.timed / cost.predicted - 1):+.0f} %"
            f" | {cost.seconds:.3f} | {cost.one_sided_flops / cost.flops:.2f}"
            f" | {cost.one_sided_seconds / cost.seconds:.2f}"
            f" | {cost.whole_one_sided_flops / cost.one_sided_flops:.2f}"
            f" | {cost.whole_one_sided_seconds / cost.one_sided_seconds:.2f} |"
        )
    return "\n".join(lines)


def draw(costs: Sequence[Cost], layers: int, path: Path) -> None:
    """Ratios against K: the formula's lines, FLOPs and wall time as points."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for number, size in enumerate(dict.fromkeys(cost.layers for cost in costs)):
        chosen = [cost for cost in costs if cost.layers == size]
        counts, colour = [cost.count for cost in chosen], f"C{number}"
        panel.plot(counts, [c.predicted for c in chosen], color=colour, label=f"{size} of {layers} layers in block 2")
        panel.plot(counts, [c.counted for c in chosen], "x", color=colour)
        panel.plot(counts, [c.timed for c in chosen], "o", color=colour, fillstyle="none")
    for label, mark in (("formula", "-"), ("operations, counted", "x"), ("seconds, measured", "o")):
        panel.plot([], [], mark, color="#57606a", fillstyle="none", label=label)
    panel.set(xscale="log", xlabel="perturbations of block 2", ylabel="times less than for the whole model", ylim=0)
    panel.set_xticks(COUNTS, [str(count) for count in COUNTS])
    panel.minorticks_off()
    panel.set_title("What a step with a split saves, with as many perturbations", fontsize=10)
    panel.legend(fontsize=8, frameon=False, loc="upper left")
    panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Export, measure all, and say what misses its bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="litert", choices=("litert", "executorch"))
    parser.add_argument("--layers", type=int, default=8, help="of the model (%(default)s)")
    parser.add_argument("--splits", default="1,2,4,6", help="layers in block 2, with the head (%(default)s)")
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)), help="K (%(default)s)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5, help="of which the median counts (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    parser.add_argument("--png", type=Path, metavar="FILE", help="where to draw them")
    options = parser.parse_args()
    splits, counts = ([int(text) for text in listed.split(",")] for listed in (options.splits, options.counts))
    with tempfile.TemporaryDirectory(prefix="step-cost-") as name:
        checkpoint = make_model(Path(name), options.layers)
        bundle = export(checkpoint, options.engine, [options.batch], [options.length])
        device = OurDevice(bundle, options.engine, random_store(bundle, options.batch, options.length))
        costs = compare(device, splits, counts, options.repeats)
    print(f"{options.layers} layers, batch {options.batch} × {options.length}, {options.engine}\n")
    print(table(costs))
    if options.json:
        options.json.write_text(json.dumps([asdict(cost) for cost in costs], indent=1))
    if options.png:
        draw(costs, options.layers, options.png)
    missed = [failure for cost in costs for failure in cost.failures()]
    quarter = [c for c in costs if 4 * c.layers == options.layers and c.count >= ENOUGH]
    missed += [
        f"block 2 a quarter, K = {c.count}: {c.counted:.2f} times fewer FLOPs and {c.timed:.2f} times less wall time, "
        f"where {PAID:g} is the bar"
        for c in quarter
        if min(c.counted, c.timed) < PAID
    ]
    for failure in missed:
        print(f"MISSED: {failure}")
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()
