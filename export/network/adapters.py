"""Adapters over a frozen base: which linear maps get one, and how they start."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from fedspzo.device_runtime.errors import ExportError
from fedspzo.device_runtime.model.manifest import AdapterSpec
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import Architecture, Stage
from fedspzo.export.modules.stage_module import DOWN, FACTORS, UP, StageModule, linear_name


@dataclass(frozen=True)
class Adapters(ABC):
    """What is trained beside linear maps that stay as they are.

    Attributes:
        targets: names of linear maps or their endings, as peft's ``target_modules``; "all" for all in the layers.
        parts: endings of the names of what each of them gets.
        spec: what the manifest says of them.
    """

    targets: Sequence[str] = field(default=("all",), kw_only=True)
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
        """Whether a tensor is trained."""
        return name.endswith(self.parts)

    def chosen(self, name: str) -> bool:
        """Whether the linear map of that name in the checkpoint gets an adapter."""
        return any(target == "all" or name == target or name.endswith(f".{target}") for target in self.targets)


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
        if self.rank < 1 or not self.alpha > 0 or not self.targets:
            raise ExportError(
                "export.adapter-settings",
                "an adapter needs a rank of at least 1, a positive alpha and a target; correct these",
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
        if self.rank > min(weight):
            raise ExportError(
                "export.rank-too-large",
                f"'{linear_name(name)}' is a matrix of {weight[1]} × {weight[0]} and cannot have the rank"
                f" {self.rank}; choose a smaller --lora-rank",
            )
        return (1, weight[0], self.rank) if name.endswith(DOWN) else (1, self.rank, weight[1])

    def trains(self, name: str) -> bool:
        """See :class:`Adapters`."""
        return name.endswith(self.parts if self.train_down else UP)


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


def adapt(architecture: Architecture, checkpoint: Checkpoint, adapters: Adapters) -> Architecture:
    """The architecture with adapters on the linear maps of its layers that are chosen.

    Raises:
        ExportError: no linear map is.
    """
    adapted: dict[int, StageModule] = {}
    linears: set[str] = set()
    stages = []
    for stage in architecture.stages:
        names = [
            name.removesuffix(".weight")
            for name in stage.module.tensors
            if _is_linear(architecture, checkpoint, stage, name)
        ]
        linears.update(stage.prefix + name for name in names)
        chosen = [name for name in names if adapters.chosen(stage.prefix + name)]
        if chosen:
            module = adapted.setdefault(
                id(stage.module), stage.module.adapted(chosen, adapters.parts, adapters.spec.scale)
            )
            stage = replace(stage, module=module)
        stages.append(stage)
    if not adapted:
        raise ExportError(
            "export.targets-unmatched",
            f"the adapters' targets match no linear map; choose from {', '.join(sorted(linears)[:8])}, …",
        )
    return replace(architecture, stages=tuple(stages))


def linear_shape(checkpoint: Checkpoint, name: str, conv1d: bool) -> tuple[int, int]:
    """Features in and out of the linear map that a part of an adapter belongs to."""
    weight = checkpoint.shape(linear_name(name) + ".weight")
    return (weight[0], weight[1]) if conv1d else (weight[1], weight[0])


def _is_linear(architecture: Architecture, checkpoint: Checkpoint, stage: Stage, name: str) -> bool:
    name = stage.full_name(name)
    return name.endswith(".weight") and name not in architecture.tables and len(checkpoint.shape(name)) == 2
