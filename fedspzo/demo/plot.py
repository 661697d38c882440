"""The demo's pictures: held-out accuracy against rounds, with the accuracy before training and of backpropagation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import PercentFormatter

from fedspzo.demo.ceiling import Ceiling

#: Rounds that the reward's line is a mean of.
WINDOW = 10


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


def plot_feedback(
    path: Path,
    evaluations: Sequence[tuple[int, float]],
    costs: Sequence[float],
    reinforce: Ceiling,
    labelled: Mapping[int, float],
) -> None:
    """Write the picture of a run on feedback as PNG: accuracy above, reward below.

    Args:
        evaluations: (round, held-out accuracy), from round 0.
        costs: minus the reward that each round measured, from round 1.
        reinforce: backpropagation on the same feedback.
        labelled: round → held-out accuracy of the same rounds with labels.
    """
    figure, (above, below) = plt.subplots(2, 1, figsize=(7, 6), layout="constrained", sharex=True, height_ratios=(2, 1))
    rounds, accuracies = zip(*evaluations, strict=True)
    above.plot(rounds, accuracies, marker="o", color="tab:blue", label="feedback, forward passes only")
    above.plot(
        list(labelled), list(labelled.values()), marker="s", color="tab:green", label="labels, forward passes only"
    )
    above.axhline(accuracies[0], color="tab:gray", linestyle=":", label="before training")
    above.axhline(
        reinforce.accuracy,
        color="tab:orange",
        linestyle="--",
        label=f"feedback, backpropagation (REINFORCE, {reinforce.rounds} rounds' batches)",
    )
    above.set(ylabel="held-out accuracy", ylim=(0, 1), xlim=(0, None))
    above.set_title("Users only accept or reject what is shown to them")
    above.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    rewards = -np.array(costs)
    below.plot(np.arange(1, len(rewards) + 1), rewards, color="tab:blue", alpha=0.3, label="of a round's examples")
    width = min(WINDOW, len(rewards))
    means = np.convolve(rewards, np.ones(width) / width, mode="valid")
    below.plot(np.arange(width, len(rewards) + 1), means, color="tab:blue", label=f"mean of {width} rounds")
    below.set(xlabel="round", ylabel="estimated reward")
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)
