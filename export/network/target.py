"""What to export to: formats, shapes, and what is trained."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from fedspzo.device_runtime.engines.protocol import SUFFIXES
from fedspzo.device_runtime.errors import ExportError
from fedspzo.device_runtime.model.manifest import TensorSpec
from fedspzo.device_runtime.model.modes import MODES
from fedspzo.device_runtime.model.stored import NAMES, QUANTISED
from fedspzo.device_runtime.protocol.signing import KEY_BYTES
from fedspzo.export.network.adapters import Adapters

#: How matrices are rounded to 4 bits: so that their outputs stay, or each weight to the nearest code.
COMPENSATED, NEAREST = "compensated", "nearest"
#: Above this number of weights, compensating takes long enough to be asked for.
_LARGE = 1_000_000_000
#: Largest size of a shape along one axis.
_MOST = 1_000_000


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
        adapters: train what they say and leave all else frozen; None to train the model's own tensors.
        weights: what matrices and the token table are stored as, one of ``model.stored.NAMES``.
        rounding: of 4 bits, :data:`COMPENSATED` or :data:`NEAREST`; "" for the first, except for models of a billion
            weights and more the second.
        calibration: text files that the outputs are kept for, instead of the text that comes with the project.
        groups: with adapters, numbers of branches that go through a graph together (even ones, in addition to 1).
        least: the weakest mode in which its devices take part, one of ``model.modes.MODES``.
        enrolment_key: public key (32 bytes) that certifies the devices whose results are summed; empty for none.
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
    rounding: str = ""
    calibration: Sequence[Path] = ()
    least: str = MODES[0]
    enrolment_key: bytes = b""

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
        if max(*self.batches, *self.lengths, *self.groups, 1) > _MOST:
            raise ExportError(
                "export.shape-too-large",
                f"--batch, --max-length and --groups take numbers up to {_MOST:,}; give smaller ones",
            )
        if self.least not in MODES:
            raise ExportError("export.unknown-mode", f"there is no mode '{self.least}'; choose from {', '.join(MODES)}")
        if self.enrolment_key and len(self.enrolment_key) != KEY_BYTES:
            raise ExportError(
                "export.enrolment-key",
                f"an enrolment key has {KEY_BYTES} bytes, not {len(self.enrolment_key)}; give the line that fedspzo"
                " certify --key FILE prints",
            )
        if self.weights not in NAMES:
            raise ExportError(
                "export.unknown-dtype", f"weights cannot be stored as '{self.weights}'; choose from {', '.join(NAMES)}"
            )
        if self.rounding not in ("", COMPENSATED, NEAREST):
            raise ExportError(
                "export.unknown-rounding",
                f"there is no rounding '{self.rounding}'; choose {COMPENSATED} or {NEAREST}",
            )
        if (self.rounding or self.calibration) and self.weights != "int4":
            raise ExportError(
                "export.rounding-without-int4",
                f"--rounding and --calibration are for int4, and weights are stored as {self.weights}; leave them out",
            )
        if self.calibration and self.rounding == NEAREST:
            raise ExportError(
                "export.calibration-unused",
                f"--rounding {NEAREST} takes no calibration text; leave out one of the two options",
            )
        if self.weights in QUANTISED and self.adapters is None:
            raise ExportError(
                "export.quantised-without-adapters",
                f"weights stored as {self.weights} cannot be trained; train adapters over them (--lora-rank,"
                " --output-scales, --train cores)",
            )
        if self.groups and self.adapters is None:
            raise ExportError(
                "export.groups-without-adapters",
                "--groups needs adapters; give --lora-rank, --output-scales or --train cores, or leave --groups out",
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

    def rounding_of(self, tensors: Iterable[TensorSpec]) -> str:
        """How a model with such tensors is rounded to 4 bits, "" when it is not."""
        if self.weights != "int4":
            return ""
        large = sum(math.prod(tensor.shape) for tensor in tensors) >= _LARGE
        return self.rounding or (NEAREST if large and not self.calibration else COMPENSATED)
