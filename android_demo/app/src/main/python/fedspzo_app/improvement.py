"""Whether the model gets better on this phone's held-back examples: measured now and then, at a bounded cost."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedspzo.device_runtime.data.store import DataStore, subset
from fedspzo.device_runtime.files import write_atomically
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.metrics import SINGLE
from fedspzo.device_runtime.model.task import Task
from fedspzo.device_runtime.step.runner import Forward, ModelWeights
from fedspzo.device_runtime.step.scores import predict, read_logits
from fedspzo.device_runtime.step.spread import standard_error
from fedspzo_app.held_back import keys

#: Fewest examples that tell anything, and most that are measured.
FEWEST, MOST = 20, 200
#: Share of the time that measuring may take.
_SHARE = 0.05
#: Measurements that are kept.
_KEPT = 200
#: Neighbours on each side that a measurement is averaged with.
_NEIGHBOURS = 2
#: Standard errors from zero at which a difference counts.
_CLEAR = 2.0
BETTER, WORSE, SAME = "better", "worse", "same"
RIGHT, LOSS = "right", "loss"
#: Rounds, each with a value.
Points = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Measured:
    """What is known so far.

    Attributes:
        bundle: the identity of the bundle, in hexadecimal.
        examples: keys of those that are measured, in hexadecimal; the same ones each time, so that times compare.
        first: of each of them, the value of the first measurement that the verdict is of: 1 for right and 0 for wrong,
            or the loss.
        right: [round, share of right answers] of each measurement; none where answers are not counted.
        losses: [round, mean loss] of each measurement.
        verdict: of the last one beside the first: BETTER, WORSE, SAME, or "" before there are two.
    """

    bundle: str = ""
    examples: tuple[str, ...] = ()
    first: tuple[float, ...] = ()
    right: Points = ()
    losses: Points = ()
    verdict: str = ""


class Improvement:
    """Measures, and keeps what it found in a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._measured = _read(file)
        self._held = len(self._measured.examples)
        self._due = -math.inf

    def due(self, round: int, last: bool = False) -> bool:
        """Whether the model after a round should be measured; at the end of a job even soon after the time before."""
        losses = self._measured.losses
        return not (losses and losses[-1][0] == round) and (last or time.monotonic() >= self._due)

    def measure(self, forward: Forward[ModelWeights], round: int, held_back: DataStore) -> None:
        """Measure the model after a round, where there are examples enough; then not for some time.

        Args:
            round: that its weights are of.
            held_back: all examples that no round uses.
        """
        before, task = time.monotonic(), forward.manifest.task
        rows = {key.hex(): row for row, key in enumerate(keys(held_back, task))}
        self._held = len(rows)
        if self._held >= FEWEST:
            known = _choose(self._measured, forward.bundle.identity.hex(), rows)
            losses, right = _values(forward, subset(held_back, np.array([rows[key] for key in known.examples])))
            if np.isfinite(losses).all():
                self._keep(known, round, losses, right)
        now = time.monotonic()
        self._due = now + (now - before) / _SHARE

    def _keep(self, known: Measured, round: int, losses: np.ndarray, right: np.ndarray | None) -> None:
        values = losses if right is None else right
        first = known.first or tuple(values.tolist())
        self._measured = replace(
            known,
            first=first,
            right=_thin((*known.right, (round, float(right.mean())))) if right is not None else (),
            losses=_thin((*known.losses, (round, float(losses.mean())))),
            verdict=verdict_of(np.array(first), values, right is not None) if known.losses else "",
        )
        write_atomically(self._file, json.dumps(asdict(self._measured)).encode())

    def describe(self, bundle: Bundle) -> dict[str, Any]:
        """For the screen: ``examples``, ``fewest``, ``verdict`` and ``courses``: of RIGHT, where answers are counted,
        and of LOSS the ``points`` as they were measured and ``smooth``, both [[round, value], …]."""
        known = self._measured if self._measured.bundle == bundle.identity.hex() else Measured()
        courses = {RIGHT: known.right, LOSS: known.losses} if counts(bundle.manifest.task) else {LOSS: known.losses}
        return {
            "examples": len(known.examples) or self._held,
            "fewest": FEWEST,
            "verdict": known.verdict,
            "courses": {name: {"points": points, "smooth": smooth(points)} for name, points in courses.items()},
        }


def counts(task: Task) -> bool:
    """Whether answers are right or wrong, and are counted; else the loss is all there is."""
    return task.kind == SINGLE and bool(task.labels)


def smooth(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Each value averaged with up to two neighbours on each side, as many on the one as on the other."""
    found = []
    for index, (round, _) in enumerate(points):
        reach = min(_NEIGHBOURS, index, len(points) - 1 - index)
        near = [value for _, value in points[index - reach : index + reach + 1]]
        found.append((round, sum(near) / len(near)))
    return found


def _choose(known: Measured, bundle: str, rows: Collection[str]) -> Measured:
    """Those that were measured before; chosen again where one is gone or the bundle is another."""
    same = known.bundle == bundle and known.examples and all(key in rows for key in known.examples)
    return known if same else Measured(bundle, tuple(sorted(rows)[:MOST]))


def _values(forward: Forward[ModelWeights], store: DataStore) -> tuple[np.ndarray, np.ndarray | None]:
    """Of each example the loss, and 1 or 0 for right or wrong where answers are counted."""
    losses, logits = predict(forward, store)
    task = forward.manifest.task
    return losses, (read_logits(task, logits) == store.labels).astype(float) if counts(task) else None


def verdict_of(first: np.ndarray, now: np.ndarray, more_is_better: bool) -> str:
    """By the mean difference and its standard error over the examples."""
    gains = now - first if more_is_better else first - now
    gain, error = float(gains.mean()), standard_error(gains) or 0.0
    return SAME if abs(gain) <= _CLEAR * error or not gain else BETTER if gain > 0 else WORSE


def _thin(points: Points) -> Points:
    """Every second one, from the first, where there are too many; the last one stays."""
    return points if len(points) <= _KEPT else (*points[:-1:2], points[-1])


def _read(file: Path) -> Measured:
    try:
        found = json.loads(file.read_text(encoding="ascii"))
        right, losses = (
            tuple((int(round), float(value)) for round, value in found[name]) for name in ("right", "losses")
        )
        return Measured(
            found["bundle"], tuple(found["examples"]), tuple(found["first"]), right, losses, found["verdict"]
        )
    except (OSError, ValueError, KeyError, TypeError):  # nothing measured yet, or by another version of the app
        return Measured()
