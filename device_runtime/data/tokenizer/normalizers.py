"""Normalizers: what a tokenizer does to a text before it looks for words."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from fedspzo.device_runtime.data.tokenizer.charsmap import CharsMap
from fedspzo.device_runtime.data.tokenizer.pattern import pattern
from fedspzo.device_runtime.data.tokenizer.spec import Spec, build
from fedspzo.device_runtime.data.tokenizer.text import Change, Text, change, keep, prepend, replace, spread
from fedspzo.device_runtime.data.tokenizer.unicode import WHITESPACE, byte_level, composed, decomposed, lower, members

Normalizer = Callable[[Text], Text]

_CHINESE = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip
_SPACES = str.maketrans(dict.fromkeys(WHITESPACE, " "))
_NMT_REMOVED = frozenset(map(chr, [*range(1, 9), 0x0B, *range(0x0E, 0x20), 0x7F, 0x8F, 0x9F]))
_NMT_SPACES = str.maketrans(
    dict.fromkeys("\t\n\f\r\u1680\u200b\u200c\u200d\u200e\u200f\u2028\u2029\u2581\ufeff\ufffd", " ")
)


def normalizer(spec: Spec | None) -> Normalizer:
    """The normalizer that a JSON object describes; none leaves texts as they are. Raises BundleError."""
    return (lambda text: text) if spec is None else build(spec, "normalizer", _KINDS)


def unicode_form(form: Callable[[str], Iterable[Change]], text: Text) -> Text:
    """The text in a normal form."""
    return text if text.chars.isascii() else change(text, form(text.chars))


def _nfd(chars: str) -> Iterator[Change]:
    return decomposed(chars, compatible=False)


def _nfkd(chars: str) -> Iterator[Change]:
    return decomposed(chars, compatible=True)


def _nfc(chars: str) -> Iterator[Change]:
    return composed(chars, compatible=False)


def _nfkc(chars: str) -> Iterator[Change]:
    return composed(chars, compatible=True)


def _sequence(spec: Spec) -> Normalizer:
    parts = [normalizer(part) for part in spec["normalizers"]]

    def normalize(text: Text) -> Text:
        for part in parts:
            text = part(text)
        return text

    return normalize


def _bert(spec: Spec) -> Normalizer:
    cleans, spaces_chinese, lowers = spec["clean_text"], spec["handle_chinese_chars"], spec["lowercase"]
    strips = lowers if spec.get("strip_accents") is None else spec["strip_accents"]

    def normalize(text: Text) -> Text:
        if cleans:
            text = keep(text, lambda char: char not in members("control"))
            text = Text(text.chars.translate(_SPACES), text.spans)
        if spaces_chinese and not text.chars.isascii():
            text = spread(text, lambda char: f" {char} " if _is_chinese(char) else char)
        if strips:
            text = keep(unicode_form(_nfd, text), lambda char: char not in members("mark_nonspacing"))
        return _lowercase(text) if lowers else text

    return normalize


def _is_chinese(char: str) -> bool:
    return char >= "\u3400" and any(start <= ord(char) <= stop for start, stop in _CHINESE)


def _lowercase(text: Text) -> Text:
    return Text(text.chars.lower(), text.spans) if text.chars.isascii() else spread(text, lower)


def _strip(spec: Spec) -> Normalizer:
    left, right = spec["strip_left"], spec["strip_right"]

    def normalize(text: Text) -> Text:
        start = len(text.chars) - len(text.chars.lstrip(WHITESPACE)) if left else 0
        stop = len(text.chars.rstrip(WHITESPACE)) if right else len(text.chars)
        return text.cut(start, max(start, stop))

    return normalize


def _replace(spec: Spec) -> Normalizer:
    find, chars = pattern(spec["pattern"]), spec["content"]
    return lambda text: replace(text, find(text.chars), chars)


def _nmt(text: Text) -> Text:
    text = keep(text, lambda char: char not in _NMT_REMOVED)
    return Text(text.chars.translate(_NMT_SPACES), text.spans)


def _precompiled(spec: Spec) -> Normalizer:
    table = CharsMap(base64.b64decode(spec["precompiled_charsmap"]))
    return lambda text: change(text, table.changes(text.chars))


_KINDS: dict[str, Callable[[Spec], Normalizer]] = {
    "Sequence": _sequence,
    "BertNormalizer": _bert,
    "NFD": lambda _: partial(unicode_form, _nfd),
    "NFKD": lambda _: partial(unicode_form, _nfkd),
    "NFC": lambda _: partial(unicode_form, _nfc),
    "NFKC": lambda _: partial(unicode_form, _nfkc),
    "Lowercase": lambda _: _lowercase,
    "StripAccents": lambda _: lambda text: keep(text, lambda char: char not in members("combining_mark")),
    "Strip": _strip,
    "Replace": _replace,
    "Prepend": lambda spec: lambda text: prepend(text, spec["prepend"]),
    "Nmt": lambda _: _nmt,
    "Precompiled": _precompiled,
    "ByteLevel": lambda _: lambda text: spread(text, byte_level),
}
