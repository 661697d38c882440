"""Virtual devices that send something else than they measured, to see what a job does with them.

Every attack is a function of the round and of what the hostile devices, or all of them, measured: the strongest know
what the honest ones send.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedspzo.broker.rounds.robust import sizes
from fedspzo.device_runtime.directions.format import derive_seed
from fedspzo.device_runtime.errors import PlanError
from fedspzo.device_runtime.protocol.messages import Result
from fedspzo.device_runtime.protocol.plan import Plan

#: What a device sends: from the round, its name, its own vector and the honest devices' vectors, float64.
Forge = Callable[[int, str, np.ndarray, np.ndarray], np.ndarray]
#: Round in which sleepers wake up, and in which one huge number is sent.
WAKES, ONCE = 50, 10


def _negated(round: int, device: str, own: np.ndarray, honest: np.ndarray) -> np.ndarray:
    return -own


def _hundredfold(round: int, device: str, own: np.ndarray, honest: np.ndarray) -> np.ndarray:
    return -100 * own


def _huge(round: int, device: str, own: np.ndarray, honest: np.ndarray) -> np.ndarray:
    return np.full_like(own, 1e9) if round >= ONCE and not (round - ONCE) % 20 else own


def _random(round: int, device: str, own: np.ndarray, honest: np.ndarray) -> np.ndarray:
    chance = np.random.default_rng(derive_seed(round, f"attack of {device}", 0, 0, ()))
    return 10 * sizes(own[None])[0] * chance.standard_normal(len(own))


def _colluding(round: int, device: str, own: np.ndarray, honest: np.ndarray) -> np.ndarray:
    """All the same: the opposite of what the honest ones find, as large as their vectors usually are."""
    if not len(honest):
        return -own
    mean = honest.mean(axis=0)
    return -mean * float(np.median(sizes(honest))) / max(float(sizes(mean[None])[0]), 1e-30)


def _sleeping(round: int, device: str, own: np.ndarray, honest: np.ndarray) -> np.ndarray:
    return own if round < WAKES else -100 * own


ATTACKS: Mapping[str, Forge] = {
    "negated": _negated, "hundredfold": _hundredfold, "huge": _huge, "random": _random, "colluding": _colluding,
    "sleeping": _sleeping,
}  # fmt: skip


@dataclass(frozen=True)
class Attack:
    """Hostile devices and what they do.

    Attributes:
        name: one of :data:`ATTACKS`.
        devices: those that take part in it.
    """

    name: str
    devices: Collection[str]

    @classmethod
    def parse(cls, text: str, devices: Sequence[str]) -> Attack:
        """What ``NAME`` or ``NAME:N`` says, with the first N of some devices.

        Raises:
            PlanError: there is no such attack, or there are not more devices than hostile ones.
        """
        name, colon, count = text.partition(":")
        valid = name in ATTACKS and (not colon or (count.isdecimal() and len(count) < 10))
        if not valid or int(count or 1) >= len(devices):
            raise PlanError(
                "simulation.attack",
                f"'{text[:40]}' is no attack; write NAME or NAME:N, with a name of {', '.join(ATTACKS)} and N below the"
                f" {len(devices)} devices",
            )
        return cls(name, frozenset(devices[: int(count or 1)]))

    def __call__(self, plan: Plan, results: Mapping[str, Result]) -> dict[str, Result]:
        """The results as they are sent."""
        vectors = {device: np.array(result.scalars, np.float64) for device, result in results.items()}
        known = [vectors[device] for device in sorted(vectors) if device not in self.devices]
        honest = np.array(known).reshape(len(known), plan.scalars)
        forged = {
            device: ATTACKS[self.name](plan.round, device, vectors[device], honest)
            for device in results
            if device in self.devices
        }
        sent = {d: tuple(np.clip(vector, -1e9, 1e9).astype(np.float32).tolist()) for d, vector in forged.items()}
        return {d: replace(result, scalars=sent[d]) if d in sent else result for d, result in results.items()}
