"""What is measured: a bundle on an engine with a plan, and a batch of generated tokens that fills a shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import Manifest
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.budget import open_engine
from fedspzo.device_runtime.step.estimator import measure
from fedspzo.device_runtime.step.runner import Forward


@dataclass(frozen=True)
class Setting:
    """What to measure.

    Attributes:
        bundle: the bundle's folder.
        engine: the engine's name.
        memory: most that the process should take, see ``step.budget.parse_memory``.
        threads: of the engine and of the direction kernel.
        ahead: whether the next weights are made while the engine runs.
        blocks, sides: of the plan.
        shape: batch size and length, those of one of the bundle's shapes.
    """

    bundle: Path
    engine: str
    memory: str
    threads: int
    ahead: bool
    blocks: tuple[Block, ...]
    sides: int
    shape: tuple[int, int]

    @property
    def plan(self) -> Plan:
        """A round of one step on a whole batch."""
        return Plan(1, 7, True, "rademacher", 1, self.shape[0], 1e-3, self.blocks, 60.0, False, sides=self.sides)


def choose_shape(manifest: Manifest, wanted: str | None) -> tuple[int, int]:
    """The shape that ``BATCHxLENGTH`` names, or the largest. Raises ValueError when the bundle has no such one."""
    shapes = {(shape.batch, shape.length) for shape in manifest.shapes}
    if wanted is None:
        return max(shapes)
    batch, _, length = wanted.partition("x")
    if not (batch.isdecimal() and length.isdecimal()) or (int(batch), int(length)) not in shapes:
        raise ValueError(", ".join(f"{batch}x{length}" for batch, length in sorted(shapes)))
    return int(batch), int(length)


def open_forward(setting: Setting) -> Forward[Replica]:
    """The bundle at θ₀ on its engine."""
    replica = Replica(Bundle(setting.bundle), threads=setting.threads, ahead=setting.ahead)
    return Forward(open_engine(replica.bundle.manifest, setting.engine, setting.threads, setting.memory), replica)


def generate(manifest: Manifest, shape: tuple[int, int]) -> DataStore:
    """Examples that fill a batch to the last token; what they say is of no account."""
    count, length = shape
    rows = next(spec.shape[1] for spec in manifest.tensors if spec.name == manifest.embedding)
    ids = np.random.default_rng(0).integers(0, rows, (count, length), np.int32)
    answers = np.full(count, length - 1 - manifest.task.answer_tokens, np.int32)
    return DataStore(ids, np.full(count, length, np.int32), answers, np.zeros(count, np.int32))


def take_step(forward: Forward[Replica], store: DataStore, plan: Plan) -> None:
    """One step of the estimator."""
    measure(forward, store, plan, "bench")


def run_forwards(forward: Forward[Replica], store: DataStore, runs: Sequence[int]) -> None:
    """Run each stage ``runs`` times with the weights as they are: the forward passes of a step and nothing else.

    Where a step writes weights to the engine's own memory, these runs compute with what stands there.
    """
    batch = forward.batch(store, np.arange(len(store)))
    hidden: list[np.ndarray] = []
    for index, count in enumerate(runs):
        stage, trained = forward.manifest.stages[index], forward.weights.trainable_in([index])
        packed = forward.packed(batch.shape, stage, trained) if forward.weights.ahead is None else {}
        outputs: list[np.ndarray] = []
        for _ in range(count):
            forward.release(outputs)
            outputs = forward.run(stage, batch, hidden[0] if hidden else None, packed, packed=bool(packed))
        forward.release(hidden)
        hidden = outputs
    forward.release(hidden)
