"""How a step's time and memory grow with layers, width, tokens and perturbations: none may grow faster than its cause.

Each point is a fresh process that takes ± pairs over a whole model of RoBERTa's kind with random weights, batch 1, 2
threads. Growth is the slope of the logarithms; 1 is in proportion. Memory counts above what the process held before its
model.

    python benchmarks/growth.py --png growth.png
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from memory import OURS, run_job
from setting import Figure, export, make_model, print_figures

#: Steeper is more than in proportion; the rest is for noise.
BAR = 1.1
SECONDS, MEMORY = "seconds a step", "MB above the bare process"
#: The vocabulary is small: its table is not part of a step.
VOCABULARY = 1000


@dataclass(frozen=True)
class Point:
    """A model and a step.

    Attributes:
        layers, width: of the model, as RoBERTa has them (64 values a head, four times the width inside).
        tokens: in the one example of the batch.
        perturbations: ± pairs over the whole model.
    """

    layers: int = 4
    width: int = 768
    tokens: int = 64
    perturbations: int = 1

    @property
    def weights(self) -> float:
        """Millions of weights in the layers' matrices."""
        return self.layers * 12 * self.width**2 / 1e6


#: What grows → its points and where each lies on the axis.
AXES: dict[str, list[tuple[float, Point]]] = {
    "layers": [(layers, Point(layers=layers)) for layers in (2, 4, 8, 16)],
    "million weights, by width": [
        (point.weights, point) for point in (Point(width=width) for width in (512, 768, 1024, 1536))
    ],
    "tokens": [(tokens, Point(tokens=tokens)) for tokens in (64, 128, 256, 512)],
    "perturbations P": [(count, Point(perturbations=count)) for count in (1, 2, 4, 8)],
}


def measure(points: Collection[Point], engine: str, repeats: int) -> dict[Point, dict[str, float]]:
    """Time and memory of points that differ in what is done with one model."""
    first = next(iter(points))
    with tempfile.TemporaryDirectory(prefix="growth-") as name:
        checkpoint = make_model(
            Path(name), first.layers, vocab_size=VOCABULARY, hidden_size=first.width,
            intermediate_size=4 * first.width, num_attention_heads=first.width // 64,
        )  # fmt: skip
        export(checkpoint, engine, [1], sorted({point.tokens for point in points}))
        found = {
            point: run_job(OURS, checkpoint, engine, 1, point.tokens, repeats, point.perturbations) for point in points
        }
    return {
        point: {SECONDS: result["seconds"], MEMORY: result["peak_mb"] - result["start_mb"]}
        for point, result in found.items()
    }


def slope(at: list[float], values: list[float]) -> float:
    """Growth of values along an axis: the slope of the line through their logarithms."""
    return float(np.polyfit(np.log(at), np.log(values), 1)[0])


def draw(found: dict[str, dict[str, list[float]]], path: Path) -> None:
    """A panel for each axis and quantity, with the line of growth in proportion through the first point."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(2, len(found), figsize=(11, 5), layout="constrained")
    styles = (("Time", SECONDS, "#1f6feb"), ("Memory", MEMORY, "#b35900"))
    for row, (name, quantity, colour) in zip(rows, styles, strict=True):
        for panel, (axis, values) in zip(row, found.items(), strict=True):
            at, measured = values["at"], values[quantity]
            panel.plot(at, [measured[0] * x / at[0] for x in at], ":", color="grey", label="growth in proportion")
            panel.plot(at, measured, "o-", color=colour, label=f"measured, slope {slope(at, measured):.2f}")
            panel.set(xlabel=axis, xlim=(0, None), ylim=(0, 1.3 * max(*measured, measured[0] * at[-1] / at[0])))
            panel.set_title(f"{name} against {axis.split(',')[0]}", fontsize=10)
            panel.legend(frameon=False, fontsize=8, loc="upper left")
            panel.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel(quantity)
    figure.savefig(path, dpi=110)


def main() -> int:
    """Measure all points, and exit with 1 when something grows faster than its cause."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="litert", choices=("litert", "executorch"))
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--png", type=Path, help="where to draw the curves")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    models: dict[tuple[int, int], set[Point]] = {}
    for point in (point for points in AXES.values() for _, point in points):
        models.setdefault((point.layers, point.width), set()).add(point)
    known: dict[Point, dict[str, float]] = {}
    for points_of_model in models.values():
        known |= measure(points_of_model, options.engine, options.repeats)
    found: dict[str, dict[str, list[float]]] = {}
    for axis, points in AXES.items():
        curves = {quantity: [known[point][quantity] for _, point in points] for quantity in (SECONDS, MEMORY)}
        found[axis] = {"at": [at for at, _ in points], **curves}
    figures = [
        Figure(f"growth of {quantity} with {axis}", slope(values["at"], values[quantity]), BAR)
        for quantity in (SECONDS, MEMORY)
        for axis, values in found.items()
    ]
    if options.png:
        draw(found, options.png)
    if options.json:
        said: dict[str, Any] = {"engine": options.engine, "growth": found}
        print(json.dumps({**said, "figures": [figure.as_dict() for figure in figures]}))
    else:
        print_figures(figures)
    return 0 if all(figure.passed for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
