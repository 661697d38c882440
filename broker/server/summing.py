"""How the server brings devices into groups and takes in their masked results: it learns the groups' sums alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from fedspzo.broker.rounds.masked_round import MaskedRound
from fedspzo.broker.server.devices import Member
from fedspzo.broker.server.outbox import Outbox
from fedspzo.broker.server.store import ServerStore
from fedspzo.device_runtime.errors import MessageError
from fedspzo.device_runtime.privacy.masks import pseudonym, unmask
from fedspzo.device_runtime.privacy.partners import check_partner
from fedspzo.device_runtime.privacy.words import Total, add_up, count_words, unpack
from fedspzo.device_runtime.protocol.codec import fingerprint
from fedspzo.device_runtime.protocol.entry import GroupSum
from fedspzo.device_runtime.protocol.masked import Group, Inquiry, Masked, Partner, Partners, Ready
from fedspzo.device_runtime.protocol.messages import Ack

log = logging.getLogger(__name__)

#: Seconds after which members of a group that have not answered are sent it again.
REMIND_S = 5.0
#: Keys in one message.
MOST_CARDS = 256


class Summing:
    """Who the devices of a job are to each other, and what their groups add up to."""

    def __init__(self, store: ServerStore, outbox: Outbox, enrolment: bytes = b"") -> None:
        """Start with the keys that are known.

        Args:
            enrolment: the key that certifies devices' keys; empty where the bundle names none.
        """
        self._store, self._outbox, self._enrolment = store, outbox, enrolment
        self._cards: dict[bytes, Partner] = {}
        self._names: dict[str, bytes] = {}  # device → pseudonym
        #: Device → pseudonyms whose keys this process has sent it, as bits at the places of the first dictionary.
        self._places: dict[bytes, int] = {}
        self._told: dict[str, int] = {}
        self._reminded = 0.0
        for device, card in store.load_partners():
            self._know(device, card)

    def introduce(self, member: Member, ready: Ready) -> None:
        """Take in the keys that come with a message. Raises MessageError where they are not its sender's."""
        for card in ready.partner[:1]:
            if card.key != member.key:
                raise MessageError("partner.other-key", "the keys that it sends are not its own")
            if self._names.get(member.name) == self._name(card):
                return
            check_partner(card, self._store.name, self._store.bundle, self._enrolment)
            self._know(member.name, card)
            self._store.save_partner(member.name, card)
        if member.name not in self._names:
            raise MessageError("partner.unknown", "its keys are not known, and it does not send them")

    def divide(self, opened: MaskedRound, now: float) -> None:
        """Form the groups of a round, and tell their members."""
        opened.form_groups(now)
        self._store.save_groups(opened.plan.round, opened.groups)
        self._reminded = now
        for group in opened.groups:
            self._tell(opened, group, group)

    def remind(self, opened: MaskedRound, now: float) -> None:
        """Tell members again whose results have not come."""
        if now >= self._reminded + REMIND_S:
            self._reminded = now
            for group in opened.groups:
                self._tell(opened, group, [device for device in group if device not in opened.masked])

    def invite(self, opened: MaskedRound, device: str) -> None:
        """Tell one device its group, if it is in one."""
        if group := opened.group_of(device):
            self._tell(opened, group, [device])

    def settle(self, opened: MaskedRound, counted: Collection[str]) -> None:
        """Tell devices whose masked results have come whether these are part of the round's entry."""
        for device in opened.masked:
            self._outbox.send(device, Ack(opened.plan.round, device in counted))

    def answer(self, member: Member, inquiry: Inquiry) -> None:
        """Send a device the keys of others that it asks for."""
        found = tuple(self._cards[name] for name in inquiry.members[:MOST_CARDS] if name in self._cards)
        self._outbox.send(member.name, Partners(found))

    def take(self, opened: MaskedRound, device: str, masked: Masked) -> bool:
        """Keep a masked result; False where there was one already, or it tells of an attempt that was lost.

        Raises:
            MessageError: it is not one of the open round.
        """
        if opened.note_lost(device, masked):
            return False
        if masked.round != opened.plan.round or masked.attempt != opened.attempt or not opened.group_of(device):
            raise MessageError("sum.other-round", f"it is of no group of round {opened.plan.round} that is open")
        if len(masked.words) != 4 * count_words(opened.plan):
            raise MessageError("sum.word-count", f"it does not have {count_words(opened.plan)} words")
        if device in opened.masked:
            return False
        self._store.save_result(device, masked)
        opened.masked[device] = masked
        opened.arrived[device] = time.monotonic()
        return True

    def sums(self, opened: MaskedRound) -> tuple[list[GroupSum], list[Total], list[tuple[str, ...]]]:
        """The sums of a round's whole groups, what they say, and the devices in them."""
        sums, totals, groups = [], [], []
        for group in opened.summed:
            summed = add_up(unmask([np.frombuffer(opened.masked[device].words, "<u4") for device in group]), len(group))
            try:
                totals.append(unpack(opened.plan, summed))
            except MessageError as error:
                log.warning("a group of round %d is left out (%s): %s", opened.plan.round, error, ", ".join(group))
                continue
            sums.append(summed)
            groups.append(group)
        return sums, totals, groups

    def _tell(self, opened: MaskedRound, group: Iterable[str], devices: Sequence[str]) -> None:
        names = sorted(self._names[device] for device in group)
        message = Group(opened.plan.round, fingerprint(opened.plan), tuple(names))
        bits = sum(1 << self._places[name] for name in names)
        for device in devices:
            known = self._told.get(device, 0) | 1 << self._places[self._names[device]]
            if fresh := [name for name in names if not known >> self._places[name] & 1]:
                self._outbox.send(device, Partners(tuple(self._cards[name] for name in fresh)))
                self._told[device] = known | bits
        self._outbox.send_to_all(devices, message)

    def _know(self, device: str, card: Partner) -> None:
        name = self._name(card)
        self._names[device], self._cards[name] = name, card
        self._places.setdefault(name, len(self._places))

    def _name(self, card: Partner) -> bytes:
        return pseudonym(self._store.name, self._store.bundle, card.key, card.agreement)
