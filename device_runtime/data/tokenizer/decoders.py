"""Decoders: how tokens become a text again."""

from __future__ import annotations

import re
from collections.abc import Callable

from fedspzo.device_runtime.data.tokenizer.pattern import pattern
from fedspzo.device_runtime.data.tokenizer.spec import Spec, build
from fedspzo.device_runtime.data.tokenizer.unicode import BYTES

#: Tokens, as other tokens; joined they are the text.
Decoder = Callable[[list[str]], list[str]]

_BYTE = re.compile(r"<0x(\+[0-9A-Fa-f]|[0-9A-Fa-f]{2})>")
_BYTE_OF = {char: byte for byte, char in enumerate(BYTES)}
_CLEANED = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
    (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


def decoder(spec: Spec | None) -> Decoder:
    """The decoder that a JSON object describes; none puts spaces between tokens. Raises BundleError."""
    return (lambda tokens: [" ".join(tokens)]) if spec is None else build(spec, "decoder", _KINDS)


def _sequence(spec: Spec) -> Decoder:
    parts = [decoder(part) for part in spec["decoders"]]

    def decode(tokens: list[str]) -> list[str]:
        for part in parts:
            tokens = part(tokens)
        return tokens

    return decode


def _byte_level(tokens: list[str]) -> list[str]:
    data = bytearray()
    for token in tokens:
        known = all(char in _BYTE_OF for char in token)
        data += bytes(_BYTE_OF[char] for char in token) if known else token.encode()
    return [data.decode(errors="replace")]


def _byte_fallback(tokens: list[str]) -> list[str]:
    decoded: list[str] = []
    data = bytearray()
    for token in [*tokens, ""]:
        byte = _BYTE.fullmatch(token)
        if byte:
            data.append(int(byte[1], 16))
            continue
        if data:
            try:
                decoded.append(data.decode())
            except UnicodeDecodeError:
                decoded += ["\ufffd"] * len(data)
            data.clear()
        decoded.append(token)
    return decoded[:-1]


def _word_piece(spec: Spec) -> Decoder:
    prefix, cleans = spec["prefix"], spec["cleanup"]

    def decode(tokens: list[str]) -> list[str]:
        joined = tokens[:1] + [t[len(prefix) :] if t.startswith(prefix) else f" {t}" for t in tokens[1:]]
        return [_clean(token) for token in joined] if cleans else joined

    return decode


def _clean(token: str) -> str:
    for dirty, clean in _CLEANED:
        token = token.replace(dirty, clean)
    return token


def _metaspace(spec: Spec) -> Decoder:
    mark = spec["replacement"]
    scheme = "never" if spec.get("add_prefix_space") is False else spec.get("prepend_scheme", "always")
    first = " " if scheme == "never" else ""
    return lambda tokens: [token.replace(mark, " " if place else first) for place, token in enumerate(tokens)]


def _strip(spec: Spec) -> Decoder:
    char, most_left, most_right = spec["content"], spec["start"], spec["stop"]

    def decode(tokens: list[str]) -> list[str]:
        stripped = []
        for token in tokens:
            left = min(most_left, len(token) - len(token.lstrip(char)))
            right = min(most_right, len(token) - len(token.rstrip(char)))
            stripped.append(token[left : len(token) - right])
        return stripped

    return decode


def _replace(spec: Spec) -> Decoder:
    find, content = pattern(spec["pattern"]), spec["content"]
    return lambda tokens: [
        "".join(content if matched else token[start:stop] for start, stop, matched in find(token)) for token in tokens
    ]


def _bpe(spec: Spec) -> Decoder:
    suffix = spec["suffix"]
    return lambda tokens: [t.replace(suffix, " ") for t in tokens[:-1]] + [t.replace(suffix, "") for t in tokens[-1:]]


_KINDS: dict[str, Callable[[Spec], Decoder]] = {
    "Sequence": _sequence,
    "ByteLevel": lambda _: _byte_level,
    "ByteFallback": lambda _: _byte_fallback,
    "Fuse": lambda _: lambda tokens: ["".join(tokens)],
    "WordPiece": _word_piece,
    "Metaspace": _metaspace,
    "Strip": _strip,
    "Replace": _replace,
    "BPEDecoder": _bpe,
}
