"""The demo's picture: held-out accuracy against rounds, with the accuracy before training and of backpropagation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import PercentFormatter

from fedspzo.demo.ceiling import Ceiling


def plot_accuracy(path: Path, evaluations: Sequence[tuple[int, float]], ceiling: Ceiling) -> None:
    """Write the picture as PNG.

    Args:
        evaluations: (round, held-out accuracy), from round 0.
        ceiling: drawn as a line.
    """
    rounds, accuracies = zip(*evaluations, strict=True)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(rounds, accuracies, marker="o", color="tab:blue", label="FedSPZO, forward passes only")
    axes.axhline(accuracies[0], color="tab:gray", linestyle=":", label="before training")
    axes.axhline(
        ceiling.accuracy,
        color="tab:orange",
        linestyle="--",
        label=f"backpropagation (Adam) on the first {ceiling.rounds} rounds' batches",
    )
    axes.set(xlabel="round", ylabel="held-out accuracy", ylim=(0, 1), xlim=(0, None))
    axes.set_title("Accuracy on examples that no device has seen")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)
    plt.close(figure)
