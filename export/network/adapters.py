"""Adapters over a frozen base: which linear maps get one, and how they start."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from fedspzo.device_runtime.errors import ExportError
from fedspzo.device_runtime.model.manifest import AdapterSpec
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import Architecture, Stage
from fedspzo.export.modules.heads import LABELS
from fedspzo.export.modules.stage_module import CORE, DOWN, FACTORS, LEFT, RIGHT, UP, StageModule, linear_name

#: Targets: all linear maps, and those of the last layer.
ALL, LAST = "all", "last"
#: Of alpha; far beyond these, float32 has no numbers for what adapters add.
_SMALLEST, _LARGEST = 0.001, 1_000_000


@dataclass(frozen=True)
class Adapters(ABC):
    """What is trained beside linear maps that stay as they are.

    Attributes:
        targets: names of linear maps or their endings, as peft's ``target_modules``, or patterns of either (as in a
            shell); :data:`ALL` for all in the layers, :data:`LAST` for those of the last layer.
        parts: endings of the names of what each of them gets.
        spec: what the manifest says of them.
    """

    targets: Sequence[str] = field(default=(ALL,), kw_only=True)
    parts: ClassVar[tuple[str, ...]]

    @property
    @abstractmethod
    def spec(self) -> AdapterSpec:
        """What the manifest says of them."""

    @abstractmethod
    def start(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """First values, which leave the model as it is."""

    @abstractmethod
    def shape(self, name: str, weight: tuple[int, int]) -> tuple[int, int, int]:
        """Shape in the bundle of what is beside a linear map from ``weight[0]`` to ``weight[1]`` features."""

    def trains(self, name: str) -> bool:
        """Whether a tensor is trained; the labels' vectors are, too."""
        return name == LABELS or name.endswith(self.parts)

    def chosen(self, name: str, last: bool) -> bool:
        """Whether the linear map of that name in the checkpoint, which may be in the last layer, gets an adapter."""
        return any(
            target == ALL or (last and target == LAST) or fnmatchcase(f".{name}", f"*.{target}")
            for target in self.targets
        )


@dataclass(frozen=True)
class LowRank(Adapters):
    """Low-rank adapters (LoRA, arXiv 2106.09685).

    Attributes:
        rank: inner width.
        alpha: what they add is scaled by alpha/rank.
        train_down: whether the first factor is trained too; it starts random, the second at zero.
        seed: of the random start.
    """

    rank: int = 8
    alpha: float = 16.0
    train_down: bool = True
    seed: int = 0
    parts = (DOWN, UP)

    def __post_init__(self) -> None:
        """Raises ExportError when something is out of range."""
        if self.rank < 1 or not _SMALLEST <= self.alpha <= _LARGEST or not self.targets:
            raise ExportError(
                "export.adapter-settings",
                f"an adapter needs a rank of at least 1, an alpha from {_SMALLEST} to {_LARGEST:,}, and a target;"
                " correct these",
            )

    @property
    def spec(self) -> AdapterSpec:
        """See :class:`Adapters`."""
        return AdapterSpec("low-rank", self.rank, self.alpha)

    def start(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """peft's: Kaiming-uniform for the first factor and zero for the second."""
        if name.endswith(UP):
            return np.zeros(shape, np.float32)
        key = int.from_bytes(hashlib.blake2b(f"{self.seed} {name}".encode(), digest_size=8).digest(), "little")
        words = np.random.Philox(key=np.array([key, 0], np.uint64)).random_raw(math.prod(shape))
        uniform = (words >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)
        bound = 1.0 / math.sqrt(shape[1])
        return ((2 * uniform - 1) * np.float32(bound)).reshape(shape)

    def shape(self, name: str, weight: tuple[int, int]) -> tuple[int, int, int]:
        """Of one factor. Raises ExportError when the rank is larger than the matrix."""
        _check_rank(self.rank, name, weight, "--lora-rank")
        return (1, weight[0], self.rank) if name.endswith(DOWN) else (1, self.rank, weight[1])

    def trains(self, name: str) -> bool:
        """See :class:`Adapters`."""
        return name == LABELS or name.endswith(self.parts if self.train_down else UP)


@dataclass(frozen=True)
class OutputScales(Adapters):
    """A factor on each output of a linear map: the scales of a quantised base are what is trained.

    QZO (arXiv 2505.13430) perturbs the scales alone; (IA)³ (arXiv 2205.05638), which peft loads, has the same factors.
    """

    parts = (FACTORS,)

    @property
    def spec(self) -> AdapterSpec:
        """See :class:`Adapters`."""
        return AdapterSpec("output-scales", 0, 0.0)

    def start(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Ones."""
        return np.ones(shape, np.float32)

    def shape(self, name: str, weight: tuple[int, int]) -> tuple[int, int, int]:
        """See :class:`Adapters`."""
        return (1, 1, weight[1])


class Bases(NamedTuple):
    """Two bases of a linear map, float32 with orthonormal columns.

    Attributes:
        right: [in, rank].
        left: [out, rank].
    """

    right: np.ndarray
    left: np.ndarray


@dataclass(frozen=True)
class Cores(Adapters):
    """A core [rank, rank] between two fixed bases of each linear map: W + L·C·Rᵀ, where only C is trained.

    The bases are the leading singular vectors of what short trainings on tasks of public examples change: see
    :mod:`fedspzo.export.prior`.

    Attributes:
        rank: width of the core.
        prior: files of public examples.
        tasks: how many tasks are drawn from them.
        labels: labels of each, at most.
        seed: of what is drawn.
        bases: linear map → its bases; the export finds them.
        left_out: labels of the prior that it left out → the labels of the target that they mean.
    """

    targets: Sequence[str] = field(default=(LAST,), kw_only=True)
    rank: int = 64
    prior: Sequence[str | Path] = ()
    tasks: int = 48
    labels: int = 10
    seed: int = 0
    bases: Mapping[str, Bases] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    parts = (RIGHT, CORE, LEFT)

    def __post_init__(self) -> None:
        """Raises ExportError when something is out of range, or there is no prior."""
        if self.rank < 1 or self.tasks < 1 or self.labels < 2 or not self.targets:
            raise ExportError(
                "export.core-settings",
                "cores need a rank of at least 1, a task, two labels of each and a target; correct these",
            )
        if not self.prior:
            raise ExportError(
                "export.cores-without-prior",
                "cores are trained between bases that come from public examples, and between random ones they learn"
                " less than the layer does; name files of such examples with --prior",
            )

    @property
    def spec(self) -> AdapterSpec:
        """See :class:`Adapters`."""
        return AdapterSpec("cores", self.rank, float(self.rank))

    def start(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The bases, and cores of zeros."""
        if name.endswith(CORE):
            return np.zeros(shape, np.float32)
        bases = self.bases[linear_name(name)]
        return (bases.right if name.endswith(RIGHT) else bases.left.T)[None]

    def shape(self, name: str, weight: tuple[int, int]) -> tuple[int, int, int]:
        """Of a core or a base. Raises ExportError when the rank is larger than the matrix."""
        _check_rank(self.rank, name, weight, "--rank")
        rows = weight[0] if name.endswith(RIGHT) else self.rank
        return (1, rows, weight[1] if name.endswith(LEFT) else self.rank)

    def trains(self, name: str) -> bool:
        """Cores alone: labels, which learn much faster, would need rates of their own."""
        return name.endswith(CORE)


def _check_rank(rank: int, name: str, weight: tuple[int, int], option: str) -> None:
    if rank > min(weight):
        raise ExportError(
            "export.rank-too-large",
            f"'{linear_name(name)}' is a matrix of {weight[1]} × {weight[0]} and cannot have the rank {rank}; choose a"
            f" smaller {option}",
        )


def adapt(architecture: Architecture, checkpoint: Checkpoint, adapters: Adapters) -> Architecture:
    """The architecture with adapters on the linear maps of its layers that are chosen.

    Raises:
        ExportError: no linear map is.
    """
    chosen = chosen_linears(architecture, checkpoint, adapters)
    adapted: dict[tuple[int, tuple[str, ...]], StageModule] = {}
    stages = []
    for stage, names in zip(architecture.stages, chosen, strict=True):
        if names:
            module = stage.module.adapted(names, adapters.parts, adapters.spec.scale)
            stage = replace(stage, module=adapted.setdefault((id(stage.module), names), module))
        stages.append(stage)
    return replace(architecture, stages=tuple(stages))


def chosen_linears(
    architecture: Architecture, checkpoint: Checkpoint, adapters: Adapters
) -> tuple[tuple[str, ...], ...]:
    """The linear maps of each stage that get an adapter, by their names in its module.

    Raises:
        ExportError: there are none.
    """
    linears = [
        [
            name.removesuffix(".weight")
            for name in stage.module.tensors
            if _is_linear(architecture, checkpoint, stage, name)
        ]
        for stage in architecture.stages
    ]
    last = max((number for number, names in enumerate(linears) if names), default=0)
    chosen = tuple(
        tuple(name for name in names if adapters.chosen(stage.prefix + name, number == last))
        for number, (stage, names) in enumerate(zip(architecture.stages, linears, strict=True))
    )
    if not any(chosen):
        known = sorted(
            {s.prefix + name for s, names in zip(architecture.stages, linears, strict=True) for name in names}
        )
        raise ExportError(
            "export.targets-unmatched",
            f"the adapters' targets match no linear map; choose from {', '.join(known[:8])}, …",
        )
    return chosen


def linear_shape(checkpoint: Checkpoint, name: str, conv1d: bool) -> tuple[int, int]:
    """Features in and out of the linear map that a part of an adapter belongs to."""
    weight = checkpoint.shape(linear_name(name) + ".weight")
    return (weight[0], weight[1]) if conv1d else (weight[1], weight[0])


def _is_linear(architecture: Architecture, checkpoint: Checkpoint, stage: Stage, name: str) -> bool:
    name = stage.full_name(name)
    return name.endswith(".weight") and name not in architecture.tables and len(checkpoint.shape(name)) == 2
