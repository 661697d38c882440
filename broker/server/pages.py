"""Pages of the journal for devices that lack entries. What is read is checked once, and then kept for a while."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from fedspzo.device_runtime.replica.journal import Journal

#: Rounds that are read and kept together, and bytes of entries that are kept.
BLOCK, MOST_KEPT = 256, 1 << 24
#: Bytes that an entry takes in a page beside its own.
_HEADER = 5


class Pages:
    """Signed entries by their rounds, the blocks that were asked for last in memory."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._blocks: OrderedDict[int, list[bytes]] = OrderedDict()
        self._bytes = 0

    def after(self, round: int, room: int) -> tuple[bytes, ...]:
        """The entries of the rounds after one, as many as fit ``room`` bytes of a message but at least one.

        Raises:
            StateError: one is damaged or missing.
        """
        found: list[bytes] = []
        for signed in self._entries(round):
            room -= len(signed) + _HEADER
            if found and room < 0:
                break
            found.append(signed)
        return tuple(found)

    def _entries(self, after: int) -> Iterator[bytes]:
        number, start = divmod(after, BLOCK)
        while number * BLOCK + start < self._journal.last_round:
            yield from self._block(number)[start:]
            number, start = number + 1, 0

    def _block(self, number: int) -> list[bytes]:
        """The entries of some rounds: all of them, or as many as there are so far."""
        block = self._blocks.setdefault(number, [])
        self._blocks.move_to_end(number)
        first = number * BLOCK
        lacking = min(self._journal.last_round - first, BLOCK) - len(block)
        if lacking > 0:
            fresh = self._journal.signed(first + len(block), lacking)
            block += fresh
            self._bytes += sum(map(len, fresh))
        while self._bytes > MOST_KEPT and len(self._blocks) > 1:
            self._bytes -= sum(map(len, self._blocks.popitem(last=False)[1]))
        return block
