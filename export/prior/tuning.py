"""Short trainings of some linear maps by backpropagation, and what all of them together changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedspzo.device_runtime.errors import ExportError
from fedspzo.device_runtime.model.manifest import HIDDEN
from fedspzo.device_runtime.model.task import SIMILARITY, Task
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import Architecture, Stage
from fedspzo.export.modules.heads import LABEL_ALONG, LABEL_AXIS, LABEL_BIAS, LABELS, LabelWords, Similarity
from fedspzo.export.network.adapters import Bases
from fedspzo.export.network.hidden import Texts, embedded, pass_through, run_stage, stage_weights
from fedspzo.export.network.target import Target
from fedspzo.export.network.tensors import network_tensors

#: Tensors of the head that are the questions' own.
_HEAD = (LABELS, LABEL_BIAS, LABEL_AXIS, LABEL_ALONG)


@dataclass(frozen=True)
class Questions(Texts):
    """Examples, each with the label that is right.

    Attributes:
        labels: int64 [examples].
        rows, biases: float32 [labels, width], [labels]: what scores each label.
    """

    labels: np.ndarray
    rows: np.ndarray
    biases: np.ndarray


class Tuning:
    """A model whose chosen linear maps are trained from the same start again and again."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        architecture: Architecture,
        task: Task,
        chosen: Sequence[Sequence[str]],
        questions: Questions,
    ) -> None:
        """Run the layers before the first that is trained.

        Args:
            architecture: for texts of the questions' length, without adapters.
            task: whose form the head has.
            chosen: the linear maps of each stage that are trained, see
                :func:`fedspzo.export.network.adapters.chosen_linears`.
        """
        tensors = network_tensors(checkpoint, architecture, task, Target())
        self._questions = questions
        first = next(number for number, names in enumerate(chosen) if names)
        final = architecture.closing if task.form == SIMILARITY else architecture.final
        module = final.module if final else None
        if task.form == SIMILARITY:
            head = Stage("head", "head", Similarity(architecture.pooling, module), final.prefix if final else "")
        else:
            assert final is not None
            head = Stage("head", "head", LabelWords(final.module, architecture.scoring), final.prefix)
        self._hidden = embedded(tensors, architecture, questions)
        for stage in architecture.stages[:first]:
            self._hidden = pass_through(stage, tensors, questions, self._hidden)
        self._stages = [(stage, stage_weights(tensors, stage, _HEAD)) for stage in (*architecture.stages[first:], head)]
        #: Linear map → its weight [1, in, out].
        self._start = {
            stage.prefix + name: self._stages[number - first][1][f"{name}.weight"]
            for number, (stage, names) in enumerate(zip(architecture.stages, chosen, strict=True))
            for name in names
        }
        self._products = {
            name: tuple(torch.zeros(features, features, dtype=torch.float64) for features in weight.shape[1:])
            for name, weight in self._start.items()
        }

    def train(self, batches: Iterable[np.ndarray], rate: float) -> tuple[float, float]:
        """Train from the start by Adam, and keep what it changed.

        Args:
            batches: the examples of each step. The labels are those that occur in them.
            rate: the learning rate.

        Returns:
            The mean losses of the first and the last quarter of the steps.
        """
        steps = list(batches)
        labels = np.unique(self._questions.labels[np.concatenate(steps)])
        leaves = {name: weight.clone().requires_grad_() for name, weight in self._start.items()}
        optimiser = torch.optim.Adam(leaves.values(), rate)
        losses = []
        for batch in steps:
            optimiser.zero_grad()
            loss = self._loss(batch, labels, leaves)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        for name, leaf in leaves.items():
            change = (leaf.detach() - self._start[name])[0]
            rows, columns = self._products[name]
            rows += change @ change.T
            columns += change.T @ change
        quarter = max(1, len(losses) // 4)
        return float(np.mean(losses[:quarter])), float(np.mean(losses[-quarter:]))

    def bases(self, rank: int) -> dict[str, Bases]:
        """The leading singular vectors of all changes of each linear map, side by side.

        Raises:
            ExportError: a linear map was never changed.
        """
        for name, (rows, _) in self._products.items():
            if not rows.any():
                raise ExportError(
                    "prior.teaches-nothing",
                    f"learning from the prior does not change '{name}', so that it has no bases; give longer texts with"
                    " --prior, or leave it out with --targets",
                )
        return {name: Bases(*(_leading(product, rank) for product in both)) for name, both in self._products.items()}

    def _loss(self, batch: np.ndarray, labels: np.ndarray, leaves: Mapping[str, Tensor]) -> Tensor:
        hidden = self._hidden[batch]
        given = self._questions
        head = {
            LABELS: torch.from_numpy(given.rows[labels].T.copy())[None],
            LABEL_BIAS: torch.from_numpy(given.biases[labels]),
            LABEL_AXIS: torch.zeros(given.rows.shape[1]),
            LABEL_ALONG: torch.zeros(len(labels)),
        }
        feeds = given.feeds(batch)
        feeds["targets"] = torch.from_numpy((given.labels[batch, None] == labels).astype(np.float32))
        for stage, known in self._stages:
            own = {
                name: leaves.get(stage.prefix + name.removesuffix(".weight"), tensor) for name, tensor in known.items()
            }
            hidden = run_stage(stage, {**own, **head}, {**feeds, HIDDEN: hidden})
        return hidden.mean()


def _leading(product: Tensor, rank: int) -> np.ndarray:
    """The eigenvectors [n, rank] of the largest eigenvalues, each with its largest number positive."""
    _, vectors = np.linalg.eigh(product.numpy())
    leading = vectors[:, ::-1][:, :rank]
    signs = np.sign(np.take_along_axis(leading, np.abs(leading).argmax(axis=0)[None], axis=0))
    return np.ascontiguousarray(leading * signs, np.float32)
