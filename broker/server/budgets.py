"""What each sender may cost: messages that bring nothing use its budget up, and then it is not heard for a while.

An honest device's messages bring something (a result, a step along the journal), except a few of each connection. So
the budget is far above what it needs, and far below what delays a server. Who uses it up again is cut off at the
broker, where the server can do that.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from fedspzo.broker.rounds.aggregate import check_result
from fedspzo.broker.server.devices import Member
from fedspzo.broker.server.inbox import Heard
from fedspzo.broker.server.lanes import Lanes
from fedspzo.broker.server.progress import Progress
from fedspzo.device_runtime.errors import FedSPZOError, MessageError
from fedspzo.device_runtime.log import printable
from fedspzo.device_runtime.protocol.masked import Inquiry, Masked, Ready
from fedspzo.device_runtime.protocol.messages import Decline, EntryBatch, Report, Result, Sync

log = logging.getLogger(__name__)

#: Takes logins away at the broker; gives those that there were.
CutOff = Callable[[Sequence[str]], Collection[str]]

#: What a budget holds, and what it regains a second: a device that is killed and started each second spends less.
FULL, REGAINED = 300.0, 10.0
#: What it costs to bring nothing, with 1 more for each KiB; to ask for a page of the journal, or to say what is known;
#: and to go back in the journal, of which much will be sent again.
NOTHING, ASKING, GOING_BACK = 1.0, 4.0, 20.0
#: Seconds that a sender is not heard, or not told of again: the first time, and at most. It doubles each time.
MUTED_S, LONGEST_MUTED_S = 10.0, 3600.0
#: A sender that uses up its budget so often is cut off.
CUT_OFF_AFTER = 2
#: Senders whose budgets are kept: the ones that spent something last.
_MOST = 10_000


@dataclass
class _Budget:
    left: float = FULL
    at: float = 0.0
    floods: int = 0
    noted_until: float = 0.0


def price(heard: Heard, member: Member | None, progress: Progress, last_round: int, wanted: bool) -> float:
    """What a message costs its sender; 0 where it brings something. It is asked before the message is answered.

    Args:
        member: who sent it; None for a stranger.
        last_round: of the journal.
        wanted: whether the sender was asked for entries.
    """
    message, opened = heard.message, progress.round
    if member is None:
        return ASKING
    if isinstance(message, Sync):
        if message.round < member.round:
            return GOING_BACK
        return 0.0 if message.round > member.round and message.round >= member.brought_to else ASKING
    nothing = NOTHING + heard.size / 1024
    if isinstance(message, Result | Ready | Masked):
        if message.round > last_round + 1:
            return nothing
        step = 2 * message.round + isinstance(message, Masked)
        first, member.answered = step > member.answered, max(member.answered, step)
        if not isinstance(message, Result) or opened is None or message.round != opened.plan.round:
            return 0.0 if first else nothing  # it may be late
        try:
            check_result(opened.plan, opened.cohort, heard.device, message)
        except MessageError:
            return nothing
        return nothing if heard.device in opened.results else 0.0
    if isinstance(message, Decline):
        return nothing if opened is None or heard.device in opened.declined else 0.0
    if isinstance(message, Report):
        return nothing if heard.device in progress.reports else 0.0
    if isinstance(message, EntryBatch):
        return 0.0 if wanted else nothing
    return nothing if isinstance(message, Inquiry) else NOTHING


class Budgets:
    """The budgets of all senders of a job."""

    def __init__(self, lanes: Lanes, cut_off: CutOff | None = None) -> None:
        """Nobody has spent anything.

        Args:
            cut_off: called on a thread of its own. None where the server cannot take logins away.
        """
        self._lanes, self._cut_off = lanes, cut_off
        self._budgets: dict[str, _Budget] = {}
        self._hinted = False

    def mutes(self, name: str) -> bool:
        """Whether a sender is not heard now."""
        return self._lanes.mutes(name)

    def spend(self, name: str, now: float, cost: float, own: bool) -> tuple[int, bool]:
        """Charge a sender for something that brings nothing.

        Args:
            own: it has the sender's signature. For what has not, which costs little, nobody is muted: at a broker that
                has no logins it may be another's.

        Returns:
            How often it has used up its budget, 0 if it has not done so now; and whether its login is taken away.
        """
        budget = self._budgets.pop(name, None) or _Budget(at=now)
        self._budgets[name] = budget  # the last one to be forgotten
        if len(self._budgets) > _MOST:
            del self._budgets[next(iter(self._budgets))]
        if now < budget.noted_until:
            return 0, False
        budget.left = min(FULL, budget.left + (now - budget.at) * REGAINED) - cost
        budget.at = now
        if budget.left >= 0:
            return 0, False
        budget.left, budget.floods = FULL, budget.floods + 1
        seconds = min(MUTED_S * 2 ** min(budget.floods - 1, 20), LONGEST_MUTED_S)
        budget.noted_until = now + seconds
        if own:
            self._lanes.mute(name, seconds)
        log.warning(
            "device '%s' sends far more than it needs to%s",
            *(printable(name, 64), f", and is not heard for {seconds:g} s" if own else ", without its signature"),
            extra={"kind": "server.flood"},
        )
        return budget.floods, budget.floods >= CUT_OFF_AFTER and self._cut(name)

    def spend_lost(self, now: float) -> list[tuple[str, int, bool]]:
        """Charge senders for what did not fit their lanes: (sender, as :meth:`spend`) of those that used theirs up."""
        spent = [(name, *self.spend(name, now, float(count), own=False)) for name, count in self._lanes.lost().items()]
        return [each for each in spent if each[1]]

    def _cut(self, name: str) -> bool:
        """Take a login away, or tell people once what they can do; whether it is taken away."""
        if self._cut_off is not None:
            threading.Thread(target=self._cut_and_tell, args=(self._cut_off, name), daemon=True).start()
            return True
        if not self._hinted:
            self._hinted = True
            log.warning(
                "the broker still takes what device '%s' sends; take its login away (fedspzo enroll %s --broker DIR"
                " --remove, or start the server with --cut-off DIR), or limit each address at the firewall, see"
                " docs/operations.md",
                *(printable(name, 64), printable(name, 64)),
                extra={"kind": "server.flood"},
            )
        return False

    def _cut_and_tell(self, cut_off: CutOff, name: str) -> None:
        try:
            gone = cut_off([name])
        except (FedSPZOError, OSError) as error:
            log.warning("the login of device '%s' could not be taken away: %s", printable(name, 64), error)
            return
        if name not in gone:
            log.warning("device '%s' has no login that could be taken away", printable(name, 64))
        else:
            log.warning(
                "the login of device '%s' is taken away, for it sent far too much; fedspzo enroll makes a new one",
                printable(name, 64),
                extra={"kind": "server.cut-off"},
            )
