"""A replica: the trainable weights at a journal position, with the snapshot that it restarts from."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fedspzo.device_runtime.directions import halves
from fedspzo.device_runtime.directions.format import DirectionKernel, Step, derive_seed
from fedspzo.device_runtime.directions.halves import DTYPES
from fedspzo.device_runtime.directions.native import make_kernel
from fedspzo.device_runtime.errors import BundleError, PlanError, StateError
from fedspzo.device_runtime.files import PRIVATE, cure
from fedspzo.device_runtime.model.arrays import aligned_empty
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.stored import Stored
from fedspzo.device_runtime.model.tensor_file import TensorFile, write_tensors
from fedspzo.device_runtime.protocol.codec import encode
from fedspzo.device_runtime.protocol.entry import Entry
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.protocol.sums import EMPTY_SUMS, Sums, follow_all, pack, unpack
from fedspzo.device_runtime.replica.chain import EMPTY, chain

DIGEST_BYTES = 16
#: Most rounds that are applied in one pass over the weights.
TOGETHER = 64


class Replica:
    """Trainable weights in memory, at the bundle's θ₀ or at a snapshot, moved on by journal entries.

    Attributes:
        round: the last round applied.
        head: hash of the journal up to that round.
        sums: of the journal's coefficients up to that round; None where it is not of one pool of seeds.
        ahead: makes perturbed weights ahead of their use; None where they are made when they are asked for.
    """

    def __init__(self, bundle: Bundle, snapshot: Path | None = None, threads: int = 1, ahead: bool = False) -> None:
        """Load θ₀, or the snapshot when there is such a file.

        Args:
            threads: that directions are added with.
            ahead: whether perturbed weights are made ahead of their use, on another thread.

        Raises:
            StateError: the snapshot is damaged or of another bundle.
        """
        self.bundle = bundle
        self._threads = threads
        self.ahead = ThreadPoolExecutor(1, "ahead") if ahead else None
        specs = bundle.manifest.tensors
        self._trainable = {
            index: aligned_empty(spec.shape, DTYPES[spec.dtype]) for index, spec in enumerate(specs) if spec.trainable
        }
        stages = (*bundle.manifest.stages, *filter(None, [bundle.manifest.decoder]))
        used = {index for stage in stages for index in stage.tensors} - self._trainable.keys()
        self._frozen = {i: _aligned(bundle.tensor(i)) for i in sorted(used)}
        self._kernels: dict[str, DirectionKernel] = {}
        self._changes = Counter(tuple(self._trainable))  # of each tensor, how often it was changed
        self._digests: dict[tuple[int, ...], tuple[tuple[int, ...], bytes]] = {}
        self.restore(snapshot if snapshot is not None and snapshot.exists() else None)

    def restore(self, snapshot: Path | None) -> None:
        """Go to a snapshot, or to θ₀.

        Raises:
            StateError: the snapshot is damaged or of another bundle; the weights are then undefined.
        """
        if snapshot is not None:
            self._load_snapshot(snapshot)
        else:
            self.round, self.head = 0, EMPTY
            self.sums: Sums | None = EMPTY_SUMS
            self._load(self.bundle.weights)

    def adopt(self, weights: Mapping[int, np.ndarray], round: int) -> None:
        """Go to trainable weights of elsewhere, to which no journal leads: ``head`` is that of an empty one.

        Args:
            weights: tensor index → float32 of the tensor's shape; rounded to the nearest where 16 bits are stored.
            round: that they are called after.
        """
        for index, array in weights.items():
            stored = self._trainable[index]
            if stored.dtype == np.float32:
                stored[...] = array
            else:
                half = np.full(array.size, 1 << 15, np.uint16)
                halves.narrow(array.astype(np.float32).ravel(), half, stored.reshape(-1))
        self._changes.update(tuple(weights))
        self.round, self.head, self.sums = round, EMPTY, None

    def tensor(self, index: int) -> Stored:
        """A tensor as it is stored; not to be written. Graphs take float32."""
        return self._trainable[index] if index in self._trainable else self._frozen[index]

    @property
    def trainable(self) -> Mapping[int, np.ndarray]:
        """Tensor index → trainable weights; not to be written."""
        return self._trainable

    def check(self, entry: Entry, ahead: int = 0) -> None:
        """See whether an entry can be applied, after ``ahead`` others.

        Raises:
            StateError: the entry is not the next round's.
            PlanError: the entry does not fit the bundle.
        """
        if entry.round != self.round + ahead + 1:
            raise StateError(
                "journal.wrong-round",
                f"a replica at round {self.round + ahead} cannot apply round {entry.round}; get the journal again",
            )
        check_blocks(self.bundle, entry.plan)

    def apply(self, entry: Entry) -> None:
        """Move on by one round. Raises as :meth:`check` does, before anything changed."""
        self.apply_all([entry])

    def apply_all(self, entries: Sequence[Entry], head: bytes | None = None) -> None:
        """Move on by some rounds, in one pass over the weights where the entries cut the network alike.

        Those up to the last one that rebases are added up, and not applied one by one.

        Args:
            head: hash of the journal with them, where it is known.

        Raises as :meth:`check` does, before anything changed.
        """
        for ahead, entry in enumerate(entries):
            self.check(entry, ahead)
        course = follow_all(self.sums, entries)
        if course.superseded:
            self._make_anew(course.rebased, entries[course.superseded - 1].round)
        for _, alike in itertools.groupby(entries[course.superseded :], key=self._walk):
            while together := list(itertools.islice(alike, TOGETHER)):
                self._step_through(together)
        self.round += len(entries)
        self.head = head or functools.reduce(chain, map(encode, entries), self.head)
        self.sums = course.sums

    def rebase(self, round: int, head: bytes, sums: Sums) -> None:
        """Go to a round that rebases, by its sums and the hash of the journal up to it.

        Raises:
            PlanError: the sums do not fit the bundle; the replica is then as it was.
        """
        if any(block.stop > len(self.bundle.manifest.stages) for block in sums.blocks):
            raise PlanError(
                "plan.sums-of-other-network",
                f"the sums need more than the {len(self.bundle.manifest.stages)} stages of this bundle; use the job's"
                " bundle",
            )
        self._make_anew(sums, round)
        self.round, self.head, self.sums = round, head, sums

    def _make_anew(self, sums: Sums, round: int) -> None:
        """θ₀, and then the directions of each block in one step."""
        self._load(self.bundle.weights)
        rounding = derive_seed(round, "rebase", 0, 0, ())
        for block in sums.blocks:
            moved = self.trainable_in(range(block.start, block.stop))
            step = Step(block.directions(), rounding)
            self.kernel(sums.distribution).step({index: self._trainable[index] for index in moved}, [step])

    def _walk(self, entry: Entry) -> tuple[object, ...]:
        """What entries that can be added in one pass have in common."""
        blocks = tuple(tuple(self.trainable_in(stages)) for stages in entry.plan.stages())
        shared = len(set().union(*blocks)) < sum(map(len, blocks))  # then a block's steps wait for the other's
        return blocks, entry.plan.distribution, shared and entry.round

    def _step_through(self, entries: Sequence[Entry]) -> None:
        plan = entries[0].plan
        roundings = [derive_seed(entry.plan.base_seed, "rounding", 0, 0, ()) for entry in entries]
        updates = [entry.updates() for entry in entries]
        for block, stages in enumerate(plan.stages()):
            steps = [Step(made[block], rounding) for made, rounding in zip(updates, roundings, strict=True)]
            moved = self.trainable_in(stages) if any(step.directions for step in steps) else []
            self.kernel(plan.distribution).step({index: self._trainable[index] for index in moved}, steps)
            self._changes.update(moved)

    def trainable_in(self, stages: Sequence[int]) -> list[int]:
        """Indices of the trainable tensors of some stages, each once, in the stages' order."""
        manifest = self.bundle.manifest
        indices = (index for stage in stages for index in manifest.stages[stage].tensors)
        return [index for index in dict.fromkeys(indices) if index in self._trainable]

    def kernel(self, distribution: str) -> DirectionKernel:
        """The kernel for a distribution of directions."""
        if distribution not in self._kernels:
            self._kernels[distribution] = make_kernel(distribution, self._threads)
        return self._kernels[distribution]

    def digest(self) -> bytes:
        """BLAKE2b-128 over the trainable bytes in tensor order: equal digests mean bit-identical models."""
        return self.digest_of(tuple(self._trainable))

    def digest_of(self, indices: Sequence[int]) -> bytes:
        """As :meth:`digest`, of some trainable tensors; while they stay as they are it is computed once."""
        key, stamps = tuple(indices), tuple(self._changes[index] for index in indices)
        if self._digests.get(key, (None,))[0] != stamps:
            hashed = hashlib.blake2b(digest_size=DIGEST_BYTES)
            for weights in (self._trainable[index] for index in indices):
                little = weights.astype(weights.dtype.newbyteorder("<"), copy=False)
                hashed.update(little.reshape(-1).view(np.uint8).data)
            self._digests[key] = stamps, hashed.digest()
        return self._digests[key][1]

    def save_snapshot(self, path: Path) -> None:
        """Write the weights and their round to a file that appears whole or not at all.

        Raises:
            StateError: the system refuses the file; the snapshot before it is as it was.
        """
        specs = self.bundle.manifest.tensors
        shapes = {specs[index].name: weights.shape for index, weights in self._trainable.items()}
        sums, described = pack(self.sums)
        shapes.update((name, values.shape) for name, values in sums.items())
        metadata = {
            "round": str(self.round),
            "head": self.head.hex(),
            "bundle": self.bundle.identity.hex(),
            "digest": self.digest().hex(),
            **described,
        }
        dtypes = {specs[index].name: weights.dtype for index, weights in self._trainable.items()}
        try:
            arrays = [*self._trainable.values(), *sums.values()]
            write_tensors(path, shapes, arrays, metadata, dtypes=dtypes, mode=PRIVATE)
        except OSError as error:
            raise StateError(
                "state.snapshot-unwritable",
                f"the snapshot {path} cannot be written ({error.strerror}); {cure(error)}, and start again: nothing is"
                " lost",
            ) from None

    def _load(self, file: TensorFile) -> None:
        for index, weights in self._trainable.items():
            file.read_into(self.bundle.manifest.tensors[index].name, weights)
        self._changes.update(tuple(self._trainable))

    def _load_snapshot(self, path: Path) -> None:
        try:
            file = TensorFile(path)
            if file.metadata["bundle"] != self.bundle.identity.hex():
                raise StateError(
                    "state.other-bundle", f"{path} belongs to another bundle; give each bundle its own state folder"
                )
            self._load(file)
            self.round = int(file.metadata["round"])
            self.head = bytes.fromhex(file.metadata["head"])
            if self.digest().hex() != file.metadata["digest"]:
                raise ValueError("its weights do not match its digest")
            self.sums = unpack(file)
        except (BundleError, PlanError, KeyError, ValueError, TypeError) as error:
            if isinstance(error, BundleError) and error.kind == "bundle.tensors-refused":
                raise StateError("state.snapshot-refused", f"the snapshot is left as it is: {error}") from None
            raise StateError(
                "state.snapshot-damaged",
                f"the snapshot {path} is damaged ({error}); a device starts again with --afresh, a server from its"
                " backup",
            ) from None


def check_blocks(bundle: Bundle, plan: Plan) -> None:
    """Raise PlanError unless a plan fits the bundle: its blocks, each with something to train, and its batch."""
    manifest = bundle.manifest
    if plan.blocks[-1].stop != len(manifest.stages):
        raise PlanError(
            "plan.other-network", f"the blocks end at stage {plan.blocks[-1].stop}, not at {len(manifest.stages)}"
        )
    for stages, block in zip(plan.stages(), plan.blocks, strict=True):
        tensors = [index for stage in manifest.stages[stages.start : stages.stop] for index in stage.tensors]
        if block.fanout and not any(manifest.tensors[index].trainable for index in tensors):
            raise PlanError(
                "plan.nothing-to-train",
                f"the block of stages {stages.start} to {block.stop - 1} has nothing to train; cut the blocks otherwise"
                " (split), freeze the first (--method frozen), or have one block (one number in fanouts)",
            )
    if plan.batch > manifest.batch:
        raise PlanError(
            "plan.batch-above-bundle",
            f"batch is at most the {manifest.batch} examples that the bundle takes, not {plan.batch}",
        )


def _aligned(stored: Stored) -> Stored:
    """The tensor, copied where engines would take it as it lies and it does not lie at a multiple of 64 bytes."""
    if not isinstance(stored, np.ndarray) or stored.ctypes.data % 64 == 0:
        return stored
    copy = aligned_empty(stored.shape, stored.dtype)
    copy[...] = stored
    return copy
