"""Byte-pair encoding: the symbols of a word are merged two by two, the pairs that were learnt first before the others.

R. Sennrich, B. Haddow, A. Birch, "Neural Machine Translation of Rare Words with Subword Units", 2016, with what
SentencePiece and LLaMA 3 have added: unknown characters as their bytes, and whole words taken before any merge.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from fedspzo.device_runtime.data.tokenizer.spec import Spec, unsupported
from fedspzo.device_runtime.errors import BundleError

_SHIFT = 32


@dataclass(frozen=True)
class Merges:
    """Merges in the order that they were learnt in.

    Attributes:
        ranks: both tokens of a pair in one number (the first's · 2³² + the second's) → its rank.
        merged: by rank, the number of the token that a pair becomes.
    """

    ranks: Mapping[int, int]
    merged: Sequence[int]


def learnt(merges: Iterable[str | Sequence[str]], ids: Mapping[str, int], prefix: str) -> Merges:
    """The merges of a tokenizer.json.

    Args:
        merges: both tokens, with a space between them or as a list.
        ids: token → number.
        prefix: what tokens have in front that continue a word.

    Raises:
        BundleError: a merge is not one of two tokens into a third.
    """
    ranks: dict[int, int] = {}
    merged = array("q")
    for merge in merges:
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        try:
            ranks[ids[first] << _SHIFT | ids[second]] = len(merged)
            merged.append(ids[first + second[len(prefix) :]])
        except KeyError as error:
            raise BundleError(
                "tokenizer.merge-missing",
                f"tokenizer.json has a merge with {error}, which its vocabulary lacks; export the bundle again",
            ) from None
    return Merges(ranks, merged)


class BytePairs:
    """A vocabulary with its merges.

    Attributes:
        ids: token → number.
    """

    def __init__(self, spec: Spec) -> None:
        """Raises BundleError when a merge is not one of two tokens into a third."""
        self.ids: Mapping[str, int] = spec["vocab"]
        if spec.get("dropout"):
            raise unsupported("merges that are dropped at random")
        self._unknown: str | None = spec.get("unk_token")
        self._prefix: str = spec.get("continuing_subword_prefix") or ""
        self._suffix: str = spec.get("end_of_word_suffix") or ""
        self._fuses = bool(spec.get("fuse_unk"))
        self._falls_back = bool(spec.get("byte_fallback"))
        self._whole = bool(spec.get("ignore_merges"))
        merges = spec["merges"]
        self._merges = merges if isinstance(merges, Merges) else learnt(merges, self.ids, self._prefix)

    def symbols(self, word: str) -> list[tuple[int, int]]:
        """A word's tokens, each with its width in bytes."""
        if self._whole and word in self.ids:
            return [(self.ids[word], len(word.encode()))]
        ids, widths = self._characters(word)
        return self._merge(ids, widths)

    def _characters(self, word: str) -> tuple[list[int], list[int]]:
        ids: list[int] = []
        widths: list[int] = []
        unknown = 0  # bytes of unknown characters that are yet to be put
        for place, char in enumerate(word):
            symbol = (self._prefix if place else "") + char + (self._suffix if place == len(word) - 1 else "")
            width = len(char.encode())
            if symbol in self.ids:
                if unknown:
                    ids.append(self._unknown_id())
                    widths.append(unknown)
                    unknown = 0
                ids.append(self.ids[symbol])
                widths.append(width)
                continue
            if self._falls_back:
                codes = [self.ids.get(f"<0x{byte:02X}>") for byte in symbol.encode()]
                known = [code for code in codes if code is not None]
                if len(known) == len(codes):
                    ids += known
                    widths += [1] * len(known)
                    continue
            if self._unknown is not None:
                if unknown and not self._fuses:
                    ids.append(self._unknown_id())
                    widths.append(unknown)
                    unknown = 0
                unknown += width
        if unknown:
            ids.append(self._unknown_id())
            widths.append(unknown)
        return ids, widths

    def _unknown_id(self) -> int:
        if self._unknown is None or self._unknown not in self.ids:
            raise BundleError(
                "tokenizer.unknown-token-missing",
                f"tokenizer.json lacks its unknown token {self._unknown!r} in the vocabulary; export the bundle again",
            )
        return self.ids[self._unknown]

    def _merge(self, ids: list[int], widths: list[int]) -> list[tuple[int, int]]:
        ranks, merged, count = self._merges.ranks, self._merges.merged, len(ids)
        before, after = list(range(-1, count - 1)), list(range(1, count + 1))
        heap = [
            (rank, place)
            for place in range(count - 1)
            if (rank := ranks.get(ids[place] << _SHIFT | ids[place + 1])) is not None
        ]
        heapify(heap)
        while heap:
            rank, place = heappop(heap)
            right = after[place]
            if not widths[place] or right == count:
                continue
            now = ranks.get(ids[place] << _SHIFT | ids[right])
            if now is None or merged[now] != merged[rank]:
                continue  # the pair has been merged with something else since
            ids[place] = merged[rank]
            widths[place] += widths[right]
            widths[right] = 0
            follower = after[place] = after[right]
            if follower < count:
                before[follower] = place
                if (rank_right := ranks.get(ids[place] << _SHIFT | ids[follower])) is not None:
                    heappush(heap, (rank_right, place))
            if before[place] >= 0:
                left = before[place]
                if (rank_left := ranks.get(ids[left] << _SHIFT | ids[place])) is not None:
                    heappush(heap, (rank_left, left))
        return [(id, width) for id, width in zip(ids, widths, strict=True) if width]
