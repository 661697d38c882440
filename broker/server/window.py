"""What other threads than the server's own see of a running job, and where they ask for changes of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from fedspzo.broker.server.controls import Wish
from fedspzo.broker.server.devices import Roster, present
from fedspzo.broker.server.progress import Progress

#: Devices that are named of those that have not answered, and of those that declined.
NAMED = 100
#: What a device may be doing: it can be asked, or does not want to be, or lacks rounds, or is not there.
STATES = READY, UNWILLING, BEHIND, AWAY = ("ready", "unwilling", "catching up", "away")
#: Seconds between looks at all devices' groups.
LOOK_S = 5.0


@dataclass(frozen=True)
class RoundNow:
    """A moment of a running server.

    Attributes:
        round: that is open; None between rounds.
        asked, answered: devices of it.
        waiting: how many devices may yet answer.
        waiting_for: some of them.
        declined: how many devices declined.
        reasons: some of them, with why.
        seconds_left: to the deadline, less than 0 after it.
        ready, known: devices that can be asked, and that have ever synced.
        finished: whether the last round is closed.
    """

    round: int | None
    asked: int
    answered: int
    waiting: int
    waiting_for: tuple[str, ...]
    declined: int
    reasons: dict[str, str]
    seconds_left: float
    ready: int
    known: int
    finished: bool


class Window:
    """All methods may be called by any thread but the server's: each collection is copied in one step."""

    def __init__(
        self,
        progress: Progress,
        roster: Roster,
        ask: Callable[[Wish], None],
        group_of: Callable[[str], str] = lambda device: "",
    ) -> None:
        """Look into a server.

        Args:
            ask: brings a wish to the server's thread.
            group_of: a device's name → its group, "" for none.
        """
        self._progress, self._roster, self._ask = progress, roster, ask
        self.group_of = group_of
        self._groups: tuple[float, list[str]] = 0.0, []

    def round_now(self) -> RoundNow:
        """The open round, and how many devices are there."""
        now, opened = time.monotonic(), self._progress.round
        ready, known, finished = self._roster.count_ready(now), len(self._roster), self._progress.finished
        if opened is None:
            return RoundNow(None, 0, 0, 0, (), 0, {}, 0.0, ready, known, finished)
        answered, declined = set(opened.answered), dict(opened.declined)
        waiting = [device for device in opened.cohort if device not in answered and device not in declined]
        reasons = {device: said.reason for device, said in list(declined.items())[:NAMED]}
        return RoundNow(
            opened.plan.round, len(opened.cohort), len(answered), len(waiting), tuple(waiting[:NAMED]), len(declined),
            reasons, opened.deadline - now, ready, known, finished,
        )  # fmt: skip

    def device_state(self, name: str) -> str:
        """What a device is doing, in one word."""
        member = self._roster.get(name)
        if member is None or not present(member, time.monotonic()):
            return AWAY
        if not member.synced:
            return BEHIND
        return READY if member.willing else UNWILLING

    def groups(self) -> list[str]:
        """The groups that devices are in, looked for again after :data:`LOOK_S`."""
        now, (looked_at, found) = time.monotonic(), self._groups
        if not looked_at or now > looked_at + LOOK_S:
            found = sorted({self.group_of(member.name) for member in self._roster.all()} - {""})
            self._groups = now, found
        return found

    def change(self, who: str, name: str, value: object) -> None:
        """Change the job from the next plan on, see :mod:`fedspzo.broker.server.controls`.

        Raises:
            FedSPZOError: it cannot be changed so, or the server does not answer.
        """
        wish = Wish(who, name, value)
        self._ask(wish)
        wish.wait()
