"""Models: how a word is cut into tokens of a vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from fedspzo.device_runtime.data.tokenizer import byte_pairs
from fedspzo.device_runtime.data.tokenizer.spec import Spec, build
from fedspzo.device_runtime.data.tokenizer.vocabulary import Ids
from fedspzo.device_runtime.errors import BundleError

#: How many words' tokens are remembered, and of what length at most: longer ones hardly come again, and some tokenizers
#: take a whole text for a word.
_WORDS, _LETTERS = 1 << 14, 64
#: SentencePiece's: by how much an unknown character is less likely than the rarest token.
_UNKNOWN_PENALTY = 10.0


class Token(NamedTuple):
    """A token of a word.

    Attributes:
        id: its number.
        value: its text in the vocabulary.
        start: the first of the word's characters that it stands for.
        stop: the one after the last.
    """

    id: int
    value: str
    start: int
    stop: int


@dataclass(frozen=True)
class Model:
    """A vocabulary, and how words are cut into its tokens.

    Attributes:
        ids: token → number.
        names: number → token.
        size: how many tokens there are.
        tokens: the tokens of a word that is not empty.
    """

    ids: Mapping[str, int]
    names: Mapping[int, str]
    size: int
    tokens: Callable[[str], Sequence[Token]]


def model(spec: Spec) -> Model:
    """The model that a JSON object describes.

    Raises:
        BundleError: it is not known, or not complete.
    """
    if "type" not in spec:  # files of before 2020
        kind = "BPE" if "merges" in spec else "WordPiece" if "continuing_subword_prefix" in spec else "WordLevel"
        spec = {"type": kind, **spec}
    return build(spec, "model", {"WordPiece": _word_piece, "WordLevel": _word_level, "BPE": _bpe, "Unigram": _unigram})


def _named(ids: Mapping[str, int]) -> Mapping[int, str]:
    return ids.names if isinstance(ids, Ids) else {id: token for token, id in ids.items()}


def _remembered(tokens: Callable[[str], Sequence[Token]]) -> Callable[[str], Sequence[Token]]:
    known = lru_cache(_WORDS)(tokens)
    return lambda word: known(word) if len(word) <= _LETTERS else tokens(word)


def _missing(token: object) -> BundleError:
    return BundleError(
        "tokenizer.unknown-token-missing",
        f"tokenizer.json lacks its unknown token {token!r} in the vocabulary; export the bundle again",
    )


def _word_piece(spec: Spec) -> Model:
    """The longest token that a word begins with, then the longest that continues it, …; else the word is unknown."""
    ids: dict[str, int] = spec["vocab"]
    prefix, unknown = spec["continuing_subword_prefix"], spec["unk_token"]
    longest, most = max(map(len, ids), default=0), spec["max_input_chars_per_word"]

    def tokens(word: str) -> list[Token]:
        found: list[Token] = []
        start = 0
        while start < len(word) <= most:
            for stop in range(min(len(word), start + longest), start, -1):
                piece = prefix + word[start:stop] if start else word[start:stop]
                if piece in ids:
                    found.append(Token(ids[piece], piece, start, stop))
                    start = stop
                    break
            else:
                break
        if start == len(word):
            return found
        if unknown not in ids:
            raise _missing(unknown)
        return [Token(ids[unknown], unknown, 0, len(word))]

    return Model(ids, _named(ids), len(ids), _remembered(tokens))


def _word_level(spec: Spec) -> Model:
    ids: dict[str, int] = spec["vocab"]
    unknown = spec["unk_token"]

    def tokens(word: str) -> list[Token]:
        token = word if word in ids else unknown
        if token not in ids:
            raise _missing(unknown)
        return [Token(ids[token], token, 0, len(word))]

    return Model(ids, _named(ids), len(ids), tokens)


def _bpe(spec: Spec) -> Model:
    table = byte_pairs.BytePairs(spec)
    names = _named(table.ids)

    def tokens(word: str) -> list[Token]:
        # Symbols are counted in bytes: characters without a token are left out, and move what is behind them.
        char_at = range(len(word)) if word.isascii() else [i for i, c in enumerate(word) for _ in c.encode()]
        found, start = [], 0
        for id, width in table.symbols(word):
            found.append(Token(id, names[id], char_at[start], char_at[start + width - 1] + 1))
            start += width
        return found

    return Model(table.ids, names, len(table.ids), _remembered(tokens))


def _unigram(spec: Spec) -> Model:
    """The likeliest tokens of a word (Viterbi's algorithm). Unknown characters in a row are one token, or bytes."""
    names: list[str] = [token for token, _ in spec["vocab"]]
    scores: list[float] = [float(score) for _, score in spec["vocab"]]
    ids = {token: id for id, token in enumerate(names)}
    unknown, falls_back = spec.get("unk_id"), spec.get("byte_fallback", False)
    unknown_score = min(scores, default=0.0) - _UNKNOWN_PENALTY
    longest: dict[str, int] = {}
    for token in names:
        longest[token[:1]] = max(longest.get(token[:1], 0), len(token))

    def best_ends(word: str) -> list[tuple[int, int]]:
        """For each place, where the likeliest token that ends there starts, and its number."""
        best: list[tuple[float, int, int] | None] = [(0.0, 0, 0), *[None] * len(word)]
        for start, char in enumerate(word):
            here = best[start]
            assert here is not None  # each character is a token, or unknown
            single = False
            for stop in range(start + 1, min(len(word), start + longest.get(char, 0)) + 1):
                id = ids.get(word[start:stop])
                if id is not None:
                    single = single or stop == start + 1
                    _better(best, stop, (scores[id] + here[0], start, id))
            if not single:
                if unknown is None:
                    raise _missing(None)
                _better(best, start + 1, (unknown_score + here[0], start, unknown))
        return [entry[1:] for entry in best if entry]

    def tokens(word: str) -> list[Token]:
        ends = best_ends(word)
        pieces: list[tuple[int, int]] = []
        stop, joins = len(word), False
        while stop:
            start, id = ends[stop]
            if joins and id == unknown:
                pieces[-1] = start, pieces[-1][1]
            else:
                pieces.append((start, stop))
            stop, joins = start, id == unknown
        return [token for start, stop in reversed(pieces) for token in named(word[start:stop], start, stop)]

    def named(piece: str, start: int, stop: int) -> list[Token]:
        if piece in ids:
            return [Token(ids[piece], piece, start, stop)]
        codes = [f"<0x{byte:02X}>" for byte in piece.encode()] if falls_back else []
        if codes and all(code in ids for code in codes):
            return [Token(ids[code], code, start, stop) for code in codes]
        if unknown is None:
            raise _missing(None)
        return [Token(unknown, piece, start, stop)]

    return Model(ids, dict(enumerate(names)), len(names), _remembered(tokens))


def _better(best: list[tuple[float, int, int] | None], place: int, entry: tuple[float, int, int]) -> None:
    known = best[place]
    if known is None or entry[0] > known[0]:
        best[place] = entry
