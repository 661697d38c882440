"""What to export to: formats, shapes, and what is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from fedspzo.device_runtime.engines.protocol import SUFFIXES
from fedspzo.device_runtime.errors import ExportError
from fedspzo.device_runtime.model.stored import NAMES, QUANTISED
from fedspzo.export.network.adapters import Adapters


@dataclass(frozen=True)
class Target:
    """What to export to.

    Attributes:
        formats: formats of the graphs.
        batches: numbers of examples in a batch.
        lengths: numbers of tokens in an example; there are graphs for every pair of the two.
        train: patterns of the names of tensors to train (as in a shell); tables of tokens and positions never are.
        freeze: patterns of those to leave out of them.
        answer_tokens: most tokens of a generated answer, in place of the task's own number.
        adapters: train these and leave all else frozen; None to train the model's own tensors.
        weights: what matrices and the token table are stored as, one of ``model.stored.NAMES``.
        groups: with adapters, numbers of branches that go through a graph together (even ones, in addition to 1).
    """

    formats: Sequence[str] = ("litert",)
    batches: Sequence[int] = (8,)
    lengths: Sequence[int] = (64,)
    train: Sequence[str] = ("*",)
    freeze: Sequence[str] = ()
    answer_tokens: int | None = None
    adapters: Adapters | None = None
    groups: Sequence[int] = ()
    weights: str = "float32"

    def __post_init__(self) -> None:
        """Raises ExportError when something is out of range."""
        unknown = [name for name in self.formats if name not in SUFFIXES]
        if unknown or not self.formats:
            raise ExportError(
                "export.unknown-engine", f"there is no engine '{', '.join(unknown)}'; choose from {', '.join(SUFFIXES)}"
            )
        if not self.batches or not self.lengths or min(self.batches) < 1 or min(self.lengths) < 4:
            raise ExportError(
                "export.shape-too-small",
                "a batch needs at least 1 example, and an example at least 4 tokens; raise --batch or --max-length",
            )
        if self.weights not in NAMES:
            raise ExportError(
                "export.unknown-dtype", f"weights cannot be stored as '{self.weights}'; choose from {', '.join(NAMES)}"
            )
        if self.weights in QUANTISED and self.adapters is None:
            raise ExportError(
                "export.quantised-without-adapters",
                f"weights stored as {self.weights} cannot be trained; train adapters over them (--lora-rank,"
                " --output-scales)",
            )
        if self.groups and self.adapters is None:
            raise ExportError(
                "export.groups-without-adapters",
                "--groups needs adapters; give --lora-rank or --output-scales, or leave --groups out",
            )
        if any(count < 1 or (count % 2 and count > 1) for count in self.groups):
            raise ExportError(
                "export.odd-groups",
                "each number in --groups is even, because perturbations come in pairs of + and −; correct it",
            )

    def trains(self, name: str) -> bool:
        """Whether a tensor shall be trained."""
        if self.adapters is not None and not self.adapters.trains(name):
            return False
        return any(fnmatchcase(name, p) for p in self.train) and not any(fnmatchcase(name, p) for p in self.freeze)
