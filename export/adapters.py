"""Low-rank adapters (LoRA, arXiv 2106.09685) over a frozen base: which linear maps get one, and how they start."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from device_runtime.errors import ExportError
from export.checkpoint import Checkpoint
from export.families import Architecture, Part
from export.pieces import DOWN, UP, Piece


@dataclass(frozen=True)
class Adapters:
    """What adapters to train.

    Attributes:
        rank: inner width.
        alpha: what they add is scaled by alpha/rank.
        targets: names of linear maps or their endings, as peft's ``target_modules``; "all" for all in the layers.
        train_down: whether the first factor is trained too; it starts random, the second at zero.
        seed: of the random start.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: Sequence[str] = ("all",)
    train_down: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ExportError when something is out of range."""
        if self.rank < 1 or not self.alpha > 0 or not self.targets:
            raise ExportError("an adapter has a rank of at least 1, a positive alpha and a target")

    @property
    def scale(self) -> float:
        """Factor on what the adapters add."""
        return self.alpha / self.rank

    def start(self, source: str, shape: tuple[int, ...]) -> np.ndarray:
        """First values of a factor: peft's, Kaiming-uniform for the first and zero for the second."""
        if source.endswith(UP):
            return np.zeros(shape, np.float32)
        key = int.from_bytes(hashlib.blake2b(f"{self.seed} {source}".encode(), digest_size=8).digest(), "little")
        words = np.random.Philox(key=np.array([key, 0], np.uint64)).random_raw(math.prod(shape))
        uniform = (words >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)
        bound = 1.0 / math.sqrt(shape[1])
        return ((2 * uniform - 1) * np.float32(bound)).reshape(shape)

    def shape(self, source: str, weight: tuple[int, int]) -> tuple[int, int, int]:
        """Shape in the bundle of a factor beside a linear map from ``weight[0]`` to ``weight[1]`` features."""
        return (1, weight[0], self.rank) if source.endswith(DOWN) else (1, self.rank, weight[1])

    def chosen(self, name: str) -> bool:
        """Whether the linear map of that name in the checkpoint gets an adapter."""
        return any(target == "all" or name == target or name.endswith(f".{target}") for target in self.targets)


def adapt(architecture: Architecture, checkpoint: Checkpoint, adapters: Adapters) -> Architecture:
    """The architecture with adapters on the linear maps of its layers that are chosen.

    Raises:
        ExportError: no linear map is.
    """
    adapted: dict[int, Piece] = {}
    linears: set[str] = set()
    parts = []
    for part in architecture.parts:
        names = [
            name.removesuffix(".weight")
            for name in part.piece.tensors
            if _is_linear(architecture, checkpoint, part, name)
        ]
        linears.update(part.prefix + name for name in names)
        chosen = [name for name in names if adapters.chosen(part.prefix + name)]
        if chosen:
            piece = adapted.setdefault(id(part.piece), part.piece.adapted(chosen, adapters.scale))
            part = replace(part, piece=piece)
        parts.append(part)
    if not adapted:
        raise ExportError(
            f"no linear map is named as the adapters' targets say; there are {', '.join(sorted(linears)[:8])}, …"
        )
    return replace(architecture, parts=tuple(parts))


def linear_shape(checkpoint: Checkpoint, source: str, conv1d: bool) -> tuple[int, int]:
    """Features in and out of the linear map that a factor belongs to."""
    weight = checkpoint.shape(source.removesuffix(DOWN).removesuffix(UP) + ".weight")
    return (weight[0], weight[1]) if conv1d else (weight[1], weight[0])


def _is_linear(architecture: Architecture, checkpoint: Checkpoint, part: Part, name: str) -> bool:
    source = part.prefix + name
    return name.endswith(".weight") and source not in architecture.tables and len(checkpoint.shape(source)) == 2
