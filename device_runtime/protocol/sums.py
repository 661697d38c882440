"""Sums of coefficients: what a journal adds up to where all its seeds are from one pool (FedKSeed, arXiv 2312.06353).

With seeds from a pool of S the weights are θ₀ + Σ aₛ·z(s), so that a device that is late needs the S sums aₛ of each
block and no entries, however many there were. Entries that are applied one by one round the weights at every step, and
the sums do not. Hence rounds that *rebase*: after one, every replica makes weights again, θ₀ and then for each block
all its directions in the order of the pool, as one step of the kernel that applies entries. From there on, those that
were there and those that come late have the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fedspzo.device_runtime.directions.format import DISTRIBUTIONS, Direction
from fedspzo.device_runtime.errors import PlanError
from fedspzo.device_runtime.model.tensor_file import TensorFile
from fedspzo.device_runtime.protocol.entry import Entry
from fedspzo.device_runtime.protocol.plan import Plan, pool_seed

_METADATA = ("pool", "distribution", "sums")
_PREFIX = "sums/"


@dataclass(frozen=True)
class BlockSums:
    """The sums of one block.

    Attributes:
        block: its index, which its seeds derive from.
        start, stop: its stages.
        coefficients: float32, that of each direction of the pool.
    """

    block: int
    start: int
    stop: int
    coefficients: tuple[float, ...]

    def directions(self) -> list[Direction]:
        """What they stand for, in the order of the pool."""
        pool = len(self.coefficients)
        return [Direction(pool_seed(pool, self.block, i), c) for i, c in enumerate(self.coefficients) if c]


@dataclass(frozen=True)
class Sums:
    """The sums of a journal.

    Attributes:
        pool: seeds of each block's pool; 0 for the empty journal.
        distribution: of the directions.
        blocks: in ascending order; a network that was cut in several ways has blocks that overlap.
    """

    pool: int
    distribution: str
    blocks: tuple[BlockSums, ...]

    def __post_init__(self) -> None:
        """Raises PlanError when they contradict themselves."""
        places = [(sums.block, sums.start, sums.stop) for sums in self.blocks]
        if self.distribution not in DISTRIBUTIONS:
            raise PlanError(
                "plan.unknown-distribution",
                f"the distribution '{self.distribution}' is unknown; choose one of {', '.join(DISTRIBUTIONS)}",
            )
        if places != sorted(set(places)) or not all(block <= start < stop for block, start, stop in places):
            raise PlanError(
                "plan.sums-blocks",
                "each block of sums holds at least one stage, and blocks come in order without repetition",
            )
        if any(len(sums.coefficients) != self.pool for sums in self.blocks):
            raise PlanError(
                "plan.sums-size", f"each block of sums has one coefficient for each of the {self.pool} seeds"
            )


#: Those of the empty journal.
EMPTY_SUMS = Sums(0, DISTRIBUTIONS[0], ())


def continues(sums: Sums | None, plan: Plan) -> bool:
    """Whether a plan's round can be added: it is of the pool of all before it, in a journal that rebases."""
    if sums is None or not plan.rebase_every:
        return False
    return not sums.pool or (sums.pool, sums.distribution) == (plan.seed_pool, plan.distribution)


def check_continues(sums: Sums | None, plan: Plan) -> None:
    """Raise PlanError when a job asks to rebase and its journal does not allow it."""
    if plan.rebase_every and not continues(sums, plan):
        raise PlanError(
            "plan.rebase-journal",
            "the journal has rounds without --rebase-every, or with another --seed-pool or --distribution, and cannot"
            " rebase; leave --rebase-every out, or start with a new state folder",
        )


def follow(sums: Sums | None, entry: Entry) -> Sums | None:
    """The sums after another entry; None, for good, when it is not of the same pool.

    Coefficients are added in the order in which the entry's directions are applied, each sum rounded to float32.
    """
    plan = entry.plan
    if sums is None or not continues(sums, plan):
        return None
    added = {(own.block, own.start, own.stop): np.array(own.coefficients, np.float32) for own in sums.blocks}
    for block, (stages, directions) in enumerate(zip(plan.stages(), entry.updates(), strict=True)):
        if directions:
            indices = _indices(plan.seed_pool, block)
            own = added.setdefault((block, stages.start, stages.stop), np.zeros(plan.seed_pool, np.float32))
            for direction in directions:
                own[indices[direction.seed]] += np.float32(direction.coefficient)
    blocks = tuple(BlockSums(*at, tuple(added[at].tolist())) for at in sorted(added))
    return Sums(plan.seed_pool, plan.distribution, blocks)


@dataclass(frozen=True)
class Course:
    """Where some entries lead.

    Attributes:
        sums: after the last of them.
        rebased: after the last of them that rebases, if one does.
        superseded: how many there are up to that one, 0 if none does: ``rebased`` stands for them and all before.
    """

    sums: Sums | None
    rebased: Sums
    superseded: int


def follow_all(sums: Sums | None, entries: Sequence[Entry]) -> Course:
    """Where entries lead that come after some sums. Where there are no sums, a round does not rebase."""
    rebased, superseded = EMPTY_SUMS, 0
    for number, entry in enumerate(entries, start=1):
        sums = follow(sums, entry)
        if sums is not None and entry.plan.rebases:
            rebased, superseded = sums, number
    return Course(sums, rebased, superseded)


def pack(sums: Sums | None) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Sums as tensors and metadata of a snapshot."""
    if sums is None:
        return {}, {}
    tensors = {f"{_PREFIX}{own.block}/{own.start}/{own.stop}": np.array(own.coefficients, "<f4") for own in sums.blocks}
    return tensors, dict(zip(_METADATA, (str(sums.pool), sums.distribution, _digest(tensors)), strict=True))


def unpack(file: TensorFile) -> Sums | None:
    """The sums in a snapshot, if it has any.

    Raises:
        ValueError, PlanError: they are damaged.
    """
    if _METADATA[0] not in file.metadata:
        return None
    tensors = {name: file.view(name) for name in file.names if name.startswith(_PREFIX)}
    if _digest(tensors) != file.metadata["sums"]:
        raise ValueError("its sums do not match their digest")
    blocks = []
    for name, values in tensors.items():
        block, start, stop = map(int, name.removeprefix(_PREFIX).split("/"))
        blocks.append(BlockSums(block, start, stop, tuple(values.tolist())))
    return Sums(int(file.metadata["pool"]), file.metadata["distribution"], tuple(blocks))


def _digest(tensors: Mapping[str, np.ndarray]) -> str:
    hashed = hashlib.blake2b(digest_size=16)
    for name, values in tensors.items():
        hashed.update(name.encode() + values.tobytes())
    return hashed.hexdigest()


@lru_cache(maxsize=8)
def _indices(pool: int, block: int) -> Mapping[int, int]:
    """Seed → its index in a block's pool."""
    return {pool_seed(pool, block, index): index for index in range(pool)}
