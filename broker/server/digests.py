"""Comparison of the devices' digests with the server's, whichever becomes known first."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """A device says that its replica after a round has this digest."""

    device: str
    round: int
    digest: bytes


class DigestWatch:
    """Holds claims until the server's own digest of their round is known."""

    def __init__(self) -> None:
        self._known: dict[int, bytes] = {}
        self._waiting: dict[str, Claim] = {}

    def known(self, round: int) -> bytes | None:
        """The server's digest after a round, if the evaluator has come so far."""
        return self._known.get(round)

    def learn(self, round: int, digest: bytes) -> list[Claim]:
        """Take in the server's digest of a round; returns the claims that it proves wrong."""
        self._known[round] = digest
        return self._settle()

    def claim(self, claim: Claim) -> list[Claim]:
        """Take in a device's claim; returns the claims that are proved wrong."""
        self._waiting[claim.device] = claim  # a device's latest: it cannot pile them up
        return self._settle()

    def _settle(self) -> list[Claim]:
        settled = [claim for claim in self._waiting.values() if claim.round in self._known]
        for claim in settled:
            del self._waiting[claim.device]
        return [claim for claim in settled if claim.digest != self._known[claim.round]]
