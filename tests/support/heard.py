"""A server and a device in the middle of a job, and messages for them that are signed as they should be, and odd."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, get_args

import cbor2
from mutations import mutated_message, sample_messages
from victim import DEVICE, JOB, NOWHERE, TOPICS, Victim

from fedspzo.broker.rounds.job import Job, check_job, plan_round
from fedspzo.broker.server.inbox import Said
from fedspzo.broker.server.loop import Loop
from fedspzo.broker.server.store import ServerStore
from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.errors import FedSPZOError, MessageError
from fedspzo.device_runtime.link.events import Received
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.modes import MODES
from fedspzo.device_runtime.privacy.masks import seed_attempt
from fedspzo.device_runtime.privacy.partners import sign_partner
from fedspzo.device_runtime.protocol.agreement import key_agreement
from fedspzo.device_runtime.protocol.codec import _HINTS, KINDS, decode, encode, fingerprint
from fedspzo.device_runtime.protocol.entry import Entry
from fedspzo.device_runtime.protocol.glance import glance
from fedspzo.device_runtime.protocol.masked import Group, Ready
from fedspzo.device_runtime.protocol.messages import Finish, HandOver, Hello, Rebase, Result, Sync
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.protocol.signing import SIGNATURE_BYTES, Scope, Signer
from fedspzo.device_runtime.replica.chain import EMPTY

_IDENTITY = bytes(32)
_EVIL = "evil"
#: What may stand for any whole number, real number, text or byte string.
_INTS = (0, 1, 2, 3, 5, 63, 64, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1)
_FLOATS = (0.0, 1.0, 0.5, -1.0, 1e-3, 1e9, -1e300, 1e300, 5e-324)
_TEXTS = ("", "x", "\x1b[2J", "é" * 300, "masks", "robust", "secure", "rademacher", "device", "http://127.0.0.1:1/x")
_SIZES = (0, 1, 8, 16, 32, 64, 80, 2_000, 60_000, 65_000)
#: Directions that are measured for one plan at most, so that a message takes a moment.
_MEASURED = 16
#: A device that has come to a later round than this is done with.
_FAR = 1000


class _Odd:
    """Makes messages whose fields have values of their types: those that fit where it stands, and others."""

    def __init__(self, random: Random, kinds: tuple[type[Any], ...]) -> None:
        self.random, self._kinds = random, kinds

    def message(self, rounds: tuple[int, ...], scalars: int, blobs: tuple[bytes, ...]) -> tuple[type[Any], bytes]:
        """A message that can be encoded, and its kind.

        Args:
            rounds, scalars, blobs: whole numbers, lengths of vectors, and byte strings that fit.
        """
        while True:
            kind = self.random.choice(self._kinds)
            try:
                return kind, encode(self._value(kind, rounds, scalars, blobs))
            except (FedSPZOError, OverflowError, ValueError):
                continue

    def _value(self, hint: Any, rounds: tuple[int, ...], scalars: int, blobs: tuple[bytes, ...]) -> Any:
        draw = self.random
        if hint in _HINTS:
            return hint(*(self._value(each, rounds, scalars, blobs) for each in _HINTS[hint].values()))
        if hint == tuple[float, ...]:
            return tuple(draw.choice((0.0, 1.0, -1e9, 3e38, 1e-40)) for _ in range(draw.choice((0, 1, scalars))))
        if get_args(hint):
            return tuple(
                self._value(get_args(hint)[0], rounds, scalars, blobs) for _ in range(draw.choice((0, 1, 1, 2, 3)))
            )
        if hint is bytes:
            return draw.choice((*blobs, *blobs, draw.randbytes(draw.choice(_SIZES)), _entry_of(draw.choice(_INTS))))
        fits = {int: (*_INTS, *rounds * 8), float: _FLOATS, bool: (False, True), str: _TEXTS}
        return draw.choice(fits[hint])


def extremes(message: Any) -> Iterator[Any]:
    """A message with one number in it, round or other, that no database holds, or one byte string that is huge."""
    for changed in _changed(message):
        with suppress(FedSPZOError):  # it is no message
            encode(changed)
            yield changed


def _changed(value: Any) -> Iterator[Any]:
    for name, hint in _HINTS[type(value)].items():
        for odd in _extremes(getattr(value, name), hint):
            with suppress(FedSPZOError):
                yield replace(value, **{name: odd})


def _extremes(value: Any, hint: Any) -> Iterator[Any]:
    if hint is int:
        yield from (2**63 - 1, 2**63, 2**64 - 1)
    elif hint is bytes:
        yield bytes(60_000)
    elif hint in _HINTS:
        yield from _changed(value)
    elif hint == tuple[bytes, ...]:
        yield (bytes(60_000),)
        yield from ((_entry_of(round),) for round in (2**63 - 1, 2**63, 2**64 - 1))
    elif get_args(hint) and value:
        yield from ((odd, *value[1:]) for odd in _extremes(value[0], get_args(hint)[0]))


def _entry_of(round: int) -> bytes:
    """The start of an entry of some round, as a server looks at it before its signature, and bytes for that."""
    return bytes([0x83, 1, 2, 0x92]) + cbor2.dumps(round) + bytes(80)


class HeardByServer:
    """A server in the middle of a round of a mode, one of whose devices is hostile."""

    def __init__(self, folder: Path, mode: str, random: Random) -> None:
        self.store = ServerStore(folder / f"server-{mode}", _IDENTITY)
        self._random, self._odd = random, _Odd(random, get_args(Said))
        names = [*(f"d{number}" for number in range({"robust": 2, "secure": 3, "groups": 11}[mode])), _EVIL]
        self._keys = {name: Signer(folder / f"{mode}-{name}.key") for name in names}
        size = len(names)
        self.job = replace(
            Job(rounds=10, cohort=size, quorum=size, mode=mode, deadline=1e6, batch=4, sides=2), stages=5, split=(3,)
        )
        evaluator: Any = SimpleNamespace(
            round=0, head=EMPTY, follow=lambda round: None, end=lambda: None, close=lambda: None
        )
        self.server = Loop(NOWHERE, JOB, self.job, self.store, lambda report: evaluator, devices=size)
        budgets: Any = self.server._hearing._budgets
        budgets.spend = lambda *spent, **more: (0, False)  # or it would hear no more of it after some messages
        for name in names:
            self._hear(name, encode(self._sync(name)))
        assert self.server._progress.round is not None
        self.plan = self.server._progress.round.plan
        self._samples = sample_messages(self.plan)

    def turn(self) -> type[Any] | None:
        """Have the server hear one message, which it must live through; gives its kind where that is known."""
        if self._random.random() < 0.3:
            kind, payload = None, mutated_message(self._random.choice(self._samples), self._random)
        else:
            key, head = self._keys[_EVIL].public, self.store.journal.head(self.store.journal.last_round)
            blobs = (fingerprint(self.plan), key, head, _IDENTITY, bytes(4 * (self.plan.scalars + 3)))
            kind, payload = self._odd.message((self.plan.round,), self.plan.scalars, blobs)
        if kind is Sync:  # with another's key it would be nobody's
            payload = encode(replace(self._sync(_EVIL), session=self._random.choice(_INTS)))
        self._hear(_EVIL, payload)
        return kind

    def hear_extremes(self) -> None:
        """Have the server hear what is extreme in one place, of each kind of message."""
        for blob in (*self._samples, encode(self._sync(_EVIL)), encode(self._ready(_EVIL))):
            message = decode(blob)
            # The keys that a Ready ends with come first: one that is taken has no others after it.
            for odd in reversed(list(extremes(message))) if isinstance(message, get_args(Said)) else ():
                self._hear(_EVIL, encode(odd))

    def _ready(self, name: str) -> Ready:
        agreement = key_agreement().private_key(secrets.token_bytes(32)).public
        return Ready(1, fingerprint(self.plan), b"", (sign_partner(self._keys[name], agreement, JOB, _IDENTITY, b""),))

    def check(self) -> None:
        """The round is as it was, and its devices can still answer it."""
        opened = self.server._progress.round
        assert opened is not None
        assert opened.plan == self.plan
        for name in self._keys:
            if name == _EVIL:
                continue
            member = self.server._roster.get(name)
            assert member is not None
            assert member.online
            assert member.synced
        if not self.plan.masking:
            said = Result(1, fingerprint(self.plan), (1.0,) * self.plan.scalars, 1.0, 4, 0.1, b"")
            self._hear("d0", encode(said))
            assert "d0" in opened.results
            return
        self._hear(_EVIL, encode(self._sync(_EVIL)))
        for name in self._keys:
            self._hear(name, encode(self._ready(name)))
        assert opened.groups, "all are ready, and keys are told"

    def close(self) -> None:
        """Close its files."""
        self.store.close()

    def _sync(self, name: str) -> Sync:
        number = list(self._keys).index(name)
        return Sync(self._keys[name].public, number + 1, _IDENTITY, 0, EMPTY, 9, 1.0, True, True)

    def _hear(self, name: str, payload: bytes) -> None:
        signed = self._keys[name].sign(payload, Scope(JOB, _IDENTITY, name))
        self.server.turn([Received(TOPICS.up(name), signed)])
        kept = [len(partner.certificate) for _, partner in self.store.load_partners()]
        assert max(kept, default=0) <= SIGNATURE_BYTES, "it goes to all others, many in one message"


class HeardByDevice:
    """A device, and messages that its server has signed."""

    def __init__(self, bundle: Bundle, folder: Path, store: DataStore, random: Random) -> None:
        self._folder, self._store, self._random = folder, store, random
        self._begun = 0
        self.device = Victim(bundle, folder, store)
        self._odd = _Odd(random, tuple(KINDS.values()))
        job = Job(rounds=10, cohort=12, quorum=12)
        self._plans = [
            plan_round(check_job(replace(job, mode=mode, privacy=privacy), bundle), 1)
            for mode in MODES
            for privacy in ("none", "device")
        ]
        self._plan = self._plans[0]

    def hear_extremes(self) -> list[str]:
        """Have the device hear what is extreme in one place; gives the kinds of errors."""
        # The first has neither masks nor noise, the last both.
        samples = {blob for plan in self._plans[::5] for blob in sample_messages(plan)}
        return [self._hear(encode(odd)) for blob in sorted(samples) for odd in extremes(decode(blob))]

    def turn(self) -> str:
        """Have the device hear one message, and answer its plan; gives the kind of the error that would end it."""
        draw = self._random
        if self.device.state.replica.round > _FAR:
            self._begin_again()
        victim = self.device
        replica, agent = victim.state.replica, victim.agent
        if draw.random() < 0.1 or self._plan.round != replica.round + 1:
            self._plan = self._place(draw.choice(self._plans))
            members = sorted((agent._masker._pairs.own, *(draw.randbytes(16) for _ in range(3))))
            for right in (self._plan, Group(self._plan.round, fingerprint(self._plan), tuple(members))):
                self._hear(encode(right))
        plan = self._plan
        if draw.random() < 0.5:
            payload = mutated_message(draw.choice(sample_messages(plan)), draw)
        else:
            rounds = (replica.round, replica.round + 1, replica.round + 2)
            own = agent._masker._pairs.own
            blobs = (fingerprint(plan), own, victim.state.signer.public, replica.head, victim.identity)
            _, payload = self._odd.message(rounds, plan.scalars, blobs)
        return self._hear(payload)

    def _place(self, plan: Plan) -> Plan:
        """The plan as that of the replica's next round."""
        round, seed = self.device.state.replica.round + 1, self._random.getrandbits(64)
        return replace(plan, round=round, base_seed=seed_attempt(seed, round, 1) if plan.masking else seed)

    def _begin_again(self) -> None:
        """With a device that has followed no rounds: it believes a server that says that there were very many."""
        before, self._begun = self.device, self._begun + 1
        before.state.close()
        folder = self._folder / f"again-{self._begun}"
        (folder / "server").mkdir(parents=True)
        self.device = Victim(before.state.replica.bundle, folder, self._store)
        self.device.server = before.server

    def _hear(self, payload: bytes) -> str:
        victim = self.device
        replica, agent = victim.state.replica, victim.agent
        try:
            kind, _ = glance(payload)
        except MessageError:
            kind = Hello
        to = "" if kind in (Entry, Finish, HandOver, Hello, Group) else DEVICE
        head = replica.head if kind in (Entry, Plan, Finish, Rebase) else b""
        try:
            victim.hear(victim.server.sign(payload, Scope(JOB, victim.identity, to, head)))
            if agent._plan is not None and agent._plan.scalars * agent._plan.steps <= _MEASURED:
                agent._answer_plan()
        except FedSPZOError as error:
            str(error).encode()
            return error.kind
        finally:
            agent._plan = agent._last_round = agent._outbox.pending = None
        return ""
