"""How a device sends its result in a sum: who it shares masks with, and that each result goes out under masks once.

What it has masked is on the disk before it is sent. A device that was killed sends the same bytes again, and never
another measurement under masks that were used.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import cbor2

from fedspzo.device_runtime.device.pairs import Pairs
from fedspzo.device_runtime.errors import MessageError, StateError
from fedspzo.device_runtime.files import write_atomically
from fedspzo.device_runtime.model.modes import MODES
from fedspzo.device_runtime.privacy.masks import Purpose, hash_group, mask, seed_attempt
from fedspzo.device_runtime.privacy.promise import describe_noise
from fedspzo.device_runtime.privacy.words import pack
from fedspzo.device_runtime.protocol.codec import fingerprint
from fedspzo.device_runtime.protocol.masked import Group, Inquiry, Masked, Partners, Ready
from fedspzo.device_runtime.protocol.messages import Result
from fedspzo.device_runtime.protocol.plan import MOST_ATTEMPTS, Masking, Plan
from fedspzo.device_runtime.replica.state import DeviceState

log = logging.getLogger(__name__)

NOTHING = Masked(0, 0, b"")


@dataclass(frozen=True)
class _Sent:
    """The last result that was masked.

    Attributes:
        round: its round.
        seeds: base seeds of the round's attempts in which results were masked, in order.
        group: hash of its group.
        masked: what was sent.
    """

    round: int = 0
    seeds: tuple[int, ...] = ()
    group: bytes = b""
    masked: Masked = NOTHING


class Masker:
    """Masks a device's results."""

    def __init__(self, job: str, state: DeviceState, least: str = MODES[0]) -> None:
        """Prepare.

        Args:
            least: the weakest of the modes that the device takes part in, the bundle's or a stricter one.

        Raises:
            StateError: the state folder cannot be used, or what was noted there of masked results is damaged.
        """
        self._pairs = Pairs(job, state)
        self._job, self._bundle = job, state.replica.bundle.identity
        self._least = least
        self._file = state.folder / f"masked-{self._pairs.own.hex()[:16]}.cbor"
        self._sent = self._read()
        self._held: tuple[Plan, Result] | None = None
        self._group: Group | None = None
        self._introduced = False
        self._mode = ""

    @property
    def secret(self) -> bool:
        """Whether the server may be one that learns sums alone: so it is until a plan says otherwise."""
        return self._least != MODES[0] or self._mode != MODES[0]

    def forget_server(self) -> None:
        """The server may be another process, which has not been told the device's keys."""
        self._introduced = False

    def refusal(self, plan: Plan) -> str:
        """Why this device answers a plan neither now nor later; "" where it does."""
        if plan.mode != self._mode:
            self._mode = plan.mode
            log.info("round %d: %s%s", plan.round, plan.describe(self._pairs.certifies), describe_noise(plan))
        if MODES.index(plan.mode) < MODES.index(self._least):
            return f"it takes part in mode {self._least} or a stricter one, and the job's is {plan.mode}"
        if not plan.masking:
            return ""
        if not self._pairs.certified:
            key = self._pairs.card.key.hex()
            return (
                f"its key {key} has no certificate of the bundle's enrolment key; have it made (fedspzo certify --key"
                f" FILE {key}), and start the device with --certificate"
            )
        if self.known(plan) is not None:
            return ""
        (masking,), sent = plan.masking, self._sent
        if plan.seed_pool or plan.base_seed != seed_attempt(plan.base_seed, plan.round, masking.attempt):
            return "its seeds are not of its round alone, so that the sums of two rounds could tell of one device"
        if plan.round < sent.round:
            return (
                f"it has masked a result of round {sent.round} of this job; a job that starts over needs another name"
            )
        last = sent.masked.attempt if plan.round == sent.round else 0
        if not last < masking.attempt <= MOST_ATTEMPTS or plan.base_seed in self._seeds(plan.round):
            return f"attempt {masking.attempt} of round {plan.round} does not follow attempt {last}"
        return ""

    def known(self, plan: Plan) -> Masked | None:
        """What was masked for a plan before, by this process or one that was killed."""
        sent = self._sent
        if not plan.masking or not sent.seeds:
            return None
        again = (plan.round, plan.base_seed, plan.masking[0].attempt) == (
            sent.round,
            sent.seeds[-1],
            sent.masked.attempt,
        )
        return sent.masked if again else None

    def last(self, plan: Plan) -> Masked | None:
        """What was masked last in a plan's round, where that attempt is not before the plan's: it tells a server that
        has lost the attempts how far they came."""
        sent = self._sent
        behind = plan.masking and plan.round == sent.round and plan.masking[0].attempt <= sent.masked.attempt
        return sent.masked if behind else None

    def hold(self, plan: Plan, result: Result) -> Ready:
        """Keep a result until its group is known; gives what to tell the server."""
        self._held, self._group = (plan, result), None
        partner = () if self._introduced else (self._pairs.card,)
        return Ready(plan.round, fingerprint(plan), result.digest, partner)

    @property
    def held(self) -> Result | None:
        """The result that waits, or was masked last by this process."""
        return self._held[1] if self._held else None

    def join(self, group: Group) -> Masked | Inquiry | None:
        """Mask the result for a group, or ask for the keys of its members; None where nothing was measured for it.

        Raises:
            MessageError: the group is not one that this device sends a result to.
            StateError: the disk refuses.
        """
        if self._held is None or group.plan != fingerprint(self._held[0]):
            return None
        plan, result = self._held
        (masking,) = plan.masking
        self._check(group, masking)
        if (known := self.known(plan)) is not None:
            if hash_group(group.members) != self._sent.group:
                raise MessageError(
                    "group.second", f"it is a second group for round {group.round}; nothing is sent under its masks"
                )
            return known
        self._group, self._introduced = group, True
        if unknown := self._pairs.unknown(group.members):
            return Inquiry(tuple(unknown))
        named = hash_group(group.members)
        purpose = Purpose(self._job, self._bundle, group.plan, named)
        words = mask(pack(plan, result), self._pairs.own, self._pairs.keys(group.members), purpose)
        masked = Masked(plan.round, masking.attempt, words.astype("<u4").tobytes())
        self._write(_Sent(plan.round, (*self._seeds(plan.round), plan.base_seed), named, masked))
        return masked

    def learn(self, partners: Partners) -> Masked | Inquiry | None:
        """Take in keys of other devices, and mask what waited for them; see :meth:`join`."""
        if self._pairs.learn(partners.partners) and self._group is not None:
            return self.join(self._group)
        return None

    def _check(self, group: Group, masking: Masking) -> None:
        members: Sequence[bytes] = group.members
        if list(members) != sorted(set(members)) or self._pairs.own not in members:
            raise MessageError("group.members", "it is not a group in order that this device is in")
        if not masking.least <= len(members) <= masking.most:
            raise MessageError(
                "group.size", f"it has {len(members)} members, and the plan says {masking.least} to {masking.most}"
            )

    def _seeds(self, round: int) -> tuple[int, ...]:
        return self._sent.seeds if round == self._sent.round else ()

    def _read(self) -> _Sent:
        try:
            if not self._file.exists():
                return _Sent()
            round, seeds, group, attempt, words = cbor2.loads(self._file.read_bytes())
            return _Sent(int(round), tuple(map(int, seeds)), bytes(group), Masked(int(round), int(attempt), words))
        except (OSError, ValueError, TypeError, cbor2.CBORDecodeError) as error:
            raise StateError(
                "state.masked-damaged",
                f"{self._file}, which says what was sent under which masks, cannot be read ({error}); take part under"
                " another id with another state folder",
            ) from None

    def _write(self, sent: _Sent) -> None:
        text = cbor2.dumps([sent.round, list(sent.seeds), sent.group, sent.masked.attempt, sent.masked.words])
        try:
            write_atomically(self._file, text)
        except OSError as error:
            raise StateError(
                "state.unusable", f"{self._file.parent} cannot be used ({error}); choose another folder"
            ) from None
        self._sent = sent
