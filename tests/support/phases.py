"""Where the open round of a job stands, by the messages of its server and devices: for those who do harm there."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import defaultdict

from fedspzo.broker.mqtt.logins import SERVER_USER
from fedspzo.device_runtime.protocol.codec import decode, fingerprint
from fedspzo.device_runtime.protocol.entry import Entry
from fedspzo.device_runtime.protocol.glance import glance
from fedspzo.device_runtime.protocol.masked import Group, Masked, Ready
from fedspzo.device_runtime.protocol.messages import Result
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.protocol.signing import split

BEFORE, MEASURING, READY, GROUPED, ANSWERED, CLOSING = range(6)
NAMES = ("before the plan", "measuring", "ready", "groups formed", "answered", "closing")


class Phases:
    """Follows the rounds of a job.

    Attributes:
        phase: of the open round, one of those above: it only goes forward, and begins anew with another attempt.
        times: device → when it sent each of its messages.
    """

    def __init__(self, cohort: int, masked: bool) -> None:
        """``cohort`` is how many results close a round; where they are ``masked``, its groups say that."""
        self._cohort, self._masked = cohort, masked
        self._plans: dict[bytes, tuple[int, int]] = {}
        self._place = (0, 0)  # round and attempt
        self._groups: set[tuple[bytes, ...]] = set()
        self._answered: set[str] = set()
        self.phase = MEASURING
        self.times: dict[str, list[float]] = defaultdict(list)

    @property
    def all(self) -> list[int]:
        """The phases that a round of this job has."""
        return [phase for phase in range(len(NAMES)) if self._masked or phase not in (READY, GROUPED)]

    def see(self, client: str, payload: bytes) -> bool:
        """Take in what a client sends; tell whether a phase begins with it."""
        if client != SERVER_USER:
            self.times[client].append(time.monotonic())
        signed = split(payload)
        kind, round = glance(signed)
        if kind is Entry:
            return self._go((round + 1, 0), BEFORE)
        if kind not in (Plan, Ready, Group, Masked, Result):
            return False
        message = decode(signed)
        if isinstance(message, Plan):
            place = message.round, message.masking[0].attempt if message.masking else 1
            self._plans[fingerprint(message)] = place
            return self._go(place, MEASURING)
        if isinstance(message, Masked):
            place = message.round, message.attempt
        else:
            place = self._plans.get(message.plan, (0, 0))
        if isinstance(message, Ready):
            return self._go(place, READY)
        if isinstance(message, Group):
            began = self._go(place, GROUPED)
            self._groups.add(message.members)
            return began
        began = self._go(place, ANSWERED)
        if place == self._place:
            self._answered.add(client)
        wanted = sum(map(len, self._groups)) if self._masked else self._cohort
        return (len(self._answered) >= wanted and self._go(place, CLOSING)) or began

    def busiest(self, seconds: float) -> int:
        """Most messages that a device sent within some seconds."""
        return max(
            bisect_left(times, start + seconds) - at for times in self.times.values() for at, start in enumerate(times)
        )

    def _go(self, place: tuple[int, int], phase: int) -> bool:
        if (*place, phase) <= (*self._place, self.phase):
            return False
        if place != self._place:
            self._groups, self._answered = set(), set()
        self._place, self.phase = place, phase
        return True
