"""How a device moves along the journal: by its entries, by what they add up to, or by a snapshot when that is quicker.

Both speeds are measured, not guessed: rounds applied per second on this device, and bytes per second over this network.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from fedspzo.device_runtime.device.download import discard, download
from fedspzo.device_runtime.device.trust import Trust
from fedspzo.device_runtime.errors import FedSPZOError, MessageError, StateError
from fedspzo.device_runtime.files import PRIVATE
from fedspzo.device_runtime.platform.profiling import APPLY, Recorder
from fedspzo.device_runtime.protocol.codec import decode
from fedspzo.device_runtime.protocol.entry import Entry
from fedspzo.device_runtime.protocol.glance import glance
from fedspzo.device_runtime.protocol.messages import Offer, Rebase
from fedspzo.device_runtime.protocol.signing import split
from fedspzo.device_runtime.replica.chain import Record, chain
from fedspzo.device_runtime.replica.state import DeviceState

log = logging.getLogger(__name__)

#: A snapshot that has arrived is read and checked at about this speed, in bytes a second.
LOADED_PER_S = 4e8
#: Seconds and bytes after which a download's speed is believed.
_TRIAL_S, _TRIAL_BYTES = 1.0, 1 << 20
#: A download is given up when it will take this many times as long as the journal; its start says only roughly.
MARGIN = 1.25


class _TooSlow(Exception):
    """The journal is quicker."""


class Pace:
    """Knows how quick the journal is on this device, and takes a snapshot where that is quicker."""

    def __init__(self) -> None:
        self._rounds, self._seconds = 0, 0.0
        self._unreachable: set[str] = set()  # not tried again by this process

    def applied(self, rounds: int, seconds: float) -> None:
        """Learn how long it took to apply some journal entries."""
        self._rounds += rounds
        self._seconds += seconds

    def journal_seconds(self, rounds: int) -> float:
        """Seconds that ``rounds`` rounds of the journal will take; 0 before the first one was applied."""
        return self._seconds / self._rounds * rounds if self._rounds else 0.0

    def fetch(self, offer: Offer, behind: int, path: Path, authority: str) -> bool:
        """Download a snapshot unless the journal is quicker.

        Args:
            behind: rounds between the replica and the snapshot.
            authority: certificate to trust over HTTPS, see :func:`fedspzo.device_runtime.device.download.download`.

        Returns:
            Whether the snapshot is at ``path``, whole and as the server signed it.
        """
        allowed = self.journal_seconds(behind)
        if offer.size / LOADED_PER_S >= allowed or offer.url in self._unreachable:
            return False
        started = time.monotonic()
        before: list[int] = []

        def judge(done: int, total: int) -> None:
            seconds = time.monotonic() - started
            before[:] = before or [done]
            arrived = done - before[0]
            if done < total and (seconds > _TRIAL_S or arrived > _TRIAL_BYTES):
                rate = max(arrived, 1) / seconds
                if seconds + (total - done) / rate + total / LOADED_PER_S > MARGIN * allowed:
                    raise _TooSlow

        try:
            download(offer.url, path, offer.sha256.hex(), authority, judge, size=offer.size, mode=PRIVATE)
        except _TooSlow:
            discard(path)
            log.warning("the journal is quicker than the snapshot of round %d", offer.round)
            return False
        except FedSPZOError as error:
            log.warning(
                "the snapshot of round %d cannot be had, so the journal is used: %s",
                offer.round,
                error,
                extra={"kind": error.kind},
            )
            if len(self._unreachable) < 100:
                self._unreachable.add(offer.url)
            return False
        return True


class Check(Protocol):
    """Raises MessageError unless the server has signed a message, for a device or all, after a journal."""

    def __call__(self, signed: bytes, to: str = "", head: bytes = b"") -> None: ...


class CatchUp:
    """Moves a device's replica along the journal, by what the server has signed.

    Attributes:
        pace: of the journal on this device.
    """

    def __init__(
        self, state: DeviceState, check: Check, recorder: Recorder, trust: Trust, show: Callable[[int], None]
    ) -> None:
        """Prepare to follow.

        Args:
            trust: has the authority to trust over HTTPS, where snapshots are offered there.
            show: sends the server the entries that are kept here after a round.
        """
        self.pace = Pace()
        self._show = show
        self._state, self._check, self._recorder, self._trust = state, check, recorder, trust

    def follow(self, entries: Iterable[bytes]) -> bool:
        """Apply the entries that come next, leaving out those that are known; True where one before them is missing.

        Args:
            entries: each as it came. One is decoded when its signature has been checked.

        Raises:
            MessageError, PlanError: one is wrong; those before it are applied.
        """
        replica, started = self._state.replica, time.perf_counter()
        before, head = replica.round, replica.head
        fresh: list[Record] = []
        try:
            for signed in entries:
                payload = split(signed)
                kind, round = glance(payload)
                if kind is not Entry:
                    raise MessageError("message.not-an-entry", "a batch holds something else than journal entries")
                following = before + len(fresh) + 1
                if round <= before:
                    self._compare(round, signed)
                if round > following:
                    return True
                if round == following:
                    self._check(signed, head=head)
                    entry = decode(payload)
                    assert isinstance(entry, Entry)
                    replica.check(entry, len(fresh))
                    head = chain(head, payload)
                    fresh.append(Record(entry, payload, head, signed[len(payload) :]))
        finally:
            if fresh:
                with self._recorder.phase(APPLY):
                    self._state.follow(fresh)
                self.pace.applied(len(fresh), time.perf_counter() - started)
        return False

    def _compare(self, round: int, signed: bytes) -> None:
        """Raise MessageError where the server has signed another entry for a known round; both are kept."""
        known = self._state.known(round)
        if known is None or known[1].payload == split(signed):
            return
        before, own = known
        self._check(signed, head=before)
        kept, new = self._state.keep_evidence(before, own, signed)
        if new:
            self._show(round - 1)
        raise MessageError(
            "message.second-entry",
            f"it has a second entry for round {round}, so another server runs this job, or it was restored from"
            f" an old backup; this device stays with the first, and such pairs are kept in {kept}",
        )

    def rebase(self, round: int, signed: bytes) -> None:
        """Go to a later round by what the journal adds up to there. Raises MessageError, PlanError if it is wrong."""
        if round > self._state.replica.round:
            self._check(signed, to=self._state.device, head=self._state.replica.head)
            message = decode(split(signed))
            assert isinstance(message, Rebase)
            with self._recorder.phase(APPLY):
                self._state.rebase(message.round, message.head, message.sums)

    def consider(self, offer: Offer) -> bool:
        """Take a snapshot instead of the journal's entries, where that is quicker; False where it is not."""
        file = self._state.folder / "offered.safetensors"
        behind = offer.round - self._state.replica.round
        https = offer.url.startswith("https:")  # else the signed hash must do
        authority = self._trust.access.authority if https else ""
        if behind <= 0 or not self.pace.fetch(offer, behind, file, authority):
            return False
        try:
            self._state.adopt(file)
        except StateError as error:
            log.warning("%s", error, extra={"kind": error.kind})
        return True
