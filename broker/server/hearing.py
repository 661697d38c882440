"""How the server takes in a message: it is read, priced, answered, and charged to its sender."""

from __future__ import annotations

import time

from fedspzo.broker.server.budgets import NOTHING, Budgets, price
from fedspzo.broker.server.devices import Roster, part
from fedspzo.broker.server.inbox import Inbox, sender
from fedspzo.broker.server.progress import Progress
from fedspzo.broker.server.replies import Replies
from fedspzo.broker.server.standing import Standing
from fedspzo.broker.server.store import ServerStore
from fedspzo.device_runtime.errors import MessageError


class Hearing:
    """Takes messages in."""

    def __init__(
        self,
        store: ServerStore,
        roster: Roster,
        progress: Progress,
        inbox: Inbox,
        replies: Replies,
        standing: Standing,
        budgets: Budgets,
    ) -> None:
        self._store, self._roster, self._progress = store, roster, progress
        self._inbox, self._replies, self._standing, self._budgets = inbox, replies, standing, budgets

    def hear(self, topic: str, signed: bytes) -> None:
        """Take in what came on a topic."""
        name = sender(topic)
        if self._budgets.mutes(name):
            self._progress.counts["messages dropped"] += 1  # it left its lane together with what used the budget up
            return
        cost, own = NOTHING + len(signed) / 1024, False
        try:
            heard = self._inbox.read(topic, signed)
            if heard is not None:
                own = heard.message is not None
                last, wanted = self._store.journal.last_round, self._standing.asks(name)
                cost = price(heard, self._roster.get(name), self._progress, last, wanted)
                self._replies.answer(heard)
        except MessageError as error:
            cost = NOTHING + len(signed) / 1024
            self._replies.drop(name, error)
        if cost:
            self._note(name, *self._budgets.spend(name, time.monotonic(), cost, own))

    def settle(self) -> None:
        """Charge senders for what did not even get in."""
        for name, floods, cut_off in self._budgets.spend_lost(time.monotonic()):
            self._note(name, floods, cut_off)

    def _note(self, name: str, floods: int, cut_off: bool) -> None:
        """Keep that a sender has used up its budget, if it has."""
        if not floods:
            return
        self._progress.counts["floods"] += 1
        member = self._roster.edit(name)
        if member is not None:
            member.floods += 1
            member.cut_off = member.cut_off or cut_off
            if self._budgets.mutes(name):
                part(member)  # no round waits for one that is not heard
