"""SentencePiece's table of normalised forms, which XLM-R's tokenizer carries.

The format is SentencePiece's: the size of a double-array trie in bytes, the trie (little-endian uint32; darts-clone's
units), and the forms, each ended by a zero. It is applied as the `tokenizers` library does (its precompiled.rs):
to clusters of less than six bytes, by the shortest entry that they begin with, else to each character.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache

from fedspzo.device_runtime.data.tokenizer.text import Change
from fedspzo.device_runtime.data.tokenizer.unicode import members
from fedspzo.device_runtime.errors import BundleError

#: A longer cluster is looked up character by character.
_CLUSTER_BYTES = 6
_ZERO_WIDTH_JOINER = "\u200d"


class CharsMap:
    """A table of normalised forms."""

    def __init__(self, blob: bytes) -> None:
        """Raises BundleError when the bytes are no such table."""
        try:
            (size,) = struct.unpack_from("<I", blob)
            self._units = struct.unpack_from(f"<{size // 4}I", blob, 4)
            self._forms = blob[4 + size // 4 * 4 :]
            self._forms.decode()
        except (struct.error, UnicodeDecodeError):
            raise BundleError(
                "tokenizer.character-map-damaged", "tokenizer.json has a damaged character map; export the bundle again"
            ) from None
        self.form = lru_cache(maxsize=1 << 14)(self._form)

    def changes(self, chars: str) -> list[Change]:
        """What each character becomes, in order."""
        changes: list[Change] = []
        for cluster in clusters(chars):
            form = self.form(cluster) if len(cluster.encode()) < _CLUSTER_BYTES else None
            for part in [cluster] if form is not None else cluster:
                form = self.form(part)
                if form is None:
                    changes.append((part, 0))
                else:
                    _put(changes, len(part), form)
        return changes

    def _form(self, chars: str) -> str | None:
        """The form of the shortest entry that some characters begin with."""
        place = self._offset(self._units[0])
        for byte in chars.encode():
            if not byte:
                break
            place ^= byte
            unit = self._units[place] if place < len(self._units) else 0
            if unit & 0x800000FF != byte:
                return None
            place ^= self._offset(unit)
            if unit >> 8 & 1:
                start = self._units[place] & 0x7FFFFFFF
                return self._forms[start : self._forms.find(b"\0", start)].decode()
        return None

    @staticmethod
    def _offset(unit: int) -> int:
        return unit >> 10 << ((unit & 1 << 9) >> 6)


def clusters(chars: str) -> Iterator[str]:
    """Grapheme clusters, except those that no table can tell apart: marks and joiners go with what is before them.

    Hangul syllables, flags and Indic conjuncts are not put together: such clusters have six bytes and more.
    """
    start = 0
    for place in range(1, len(chars)):
        if _parted(chars, start, place):
            yield chars[start:place]
            start = place
    if chars:
        yield chars[start:]


def _parted(chars: str, start: int, place: int) -> bool:
    before, after = chars[place - 1], chars[place]
    if before < "\x7f" and after < "\x7f":
        return before + after != "\r\n"
    if before in members("cluster_ends_before"):
        return True
    if after in members("cluster_joins") or (
        before in members("cluster_prepends") and after not in members("cluster_ends_before")
    ):
        return False
    joined = before == _ZERO_WIDTH_JOINER and chars[start] in members("pictographic")
    return not (joined and after in members("pictographic"))


def _put(changes: list[Change], replaced: int, form: str) -> None:
    more = len(form) - replaced
    changes += [(char, 0) for char in form]
    if more > 0:
        for place in range(len(changes) - more, len(changes)):
            changes[place] = changes[place][0], 1
    elif more < 0 and changes:
        char, kind = changes[-1]
        changes[-1] = char, kind + more
