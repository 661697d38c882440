"""Text on its way through a tokenizer: each character knows which characters of the original it stands for.

The same as `tokenizers`' NormalizedString, counted in characters where that counts in bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

#: First character and the one after the last, in the original text.
Span = tuple[int, int]
#: What takes a character's place: a character, and how many more it stands for (0: it replaces one; −n: it replaces one
#: and the n after it are gone; 1: it comes in addition).
Change = tuple[str, int]
#: A stretch of a text and whether a pattern matched it.
Match = tuple[int, int, bool]


class Text(NamedTuple):
    """A text.

    Attributes:
        chars: the characters as they are now.
        spans: for each, what it stands for in the original text.
    """

    chars: str
    spans: Sequence[Span]

    def cut(self, start: int, stop: int) -> Text:
        return Text(self.chars[start:stop], self.spans[start:stop])


def original(chars: str) -> Text:
    return Text(chars, [(i, i + 1) for i in range(len(chars))])


def change(text: Text, changes: Iterable[Change], skip: int = 0) -> Text:
    """The text after changes that run through all its characters but the first ``skip``, which go."""
    place, chars, spans = skip, [], []
    for char, kind in changes:
        if kind > 0:
            spans.append(text.spans[place - 1] if place else (0, 0))
        else:
            spans.append(text.spans[place])
            place += 1 - kind
        chars.append(char)
    return Text("".join(chars), spans)


def keep(text: Text, wanted: Callable[[str], bool]) -> Text:
    """The characters that are wanted."""
    if all(map(wanted, text.chars)):
        return text
    kept = [(char, span) for char, span in zip(text.chars, text.spans, strict=True) if wanted(char)]
    return Text("".join(char for char, _ in kept), [span for _, span in kept])


def prepend(text: Text, chars: str) -> Text:
    """The text after some characters, which stand for what its first does."""
    return Text(chars + text.chars, [text.spans[0]] * len(chars) + list(text.spans)) if text.chars else text


def replace(text: Text, matches: Iterable[Match], chars: str) -> Text:
    """The text with some characters, which stand for what the match's last did, in place of every match."""
    parts: list[str] = []
    spans: list[Span] = []
    for start, stop, matched in matches:
        if matched:
            parts.append(chars)
            spans += [text.spans[stop - 1] if stop else (0, 0)] * len(chars)
        else:
            parts.append(text.chars[start:stop])
            spans += text.spans[start:stop]
    return Text("".join(parts), spans)


def spread(text: Text, forms: Callable[[str], str]) -> Text:
    """Each character replaced by its form, of one character or more."""
    parts = list(map(forms, text.chars))
    chars = "".join(parts)
    if len(chars) == len(parts):
        return Text(chars, text.spans)
    return Text(chars, [span for part, span in zip(parts, text.spans, strict=True) for _ in part])


def split(text: Text, matches: Sequence[Match], behavior: str) -> list[Text]:
    """The parts of a text, none empty, where a pattern matched or did not.

    Args:
        text: the text.
        matches: stretches that cover it in order.
        behavior: what happens to the matches, as tokenizer.json calls it.

    Raises:
        ValueError: the behavior is unknown.
    """
    if behavior == "Removed":
        parts = [(start, stop) for start, stop, matched in matches if not matched]
    elif behavior == "Isolated":
        parts = [(start, stop) for start, stop, _ in matches]
    elif behavior == "Contiguous":
        parts = _joined(matches, lambda matched, before: matched == before)
    elif behavior == "MergedWithPrevious":
        parts = _joined(matches, lambda matched, before: matched and not before)
    elif behavior == "MergedWithNext":
        mirrored = [(-stop, -start, matched) for start, stop, matched in reversed(matches)]
        joined = _joined(mirrored, lambda matched, before: matched and not before)
        parts = [(-stop, -start) for start, stop in reversed(joined)]
    else:
        raise ValueError(f"there is no behavior '{behavior}'")
    return [text.cut(start, stop) for start, stop in parts if start < stop]


def _joined(matches: Iterable[Match], joins: Callable[[bool, bool], bool]) -> list[Span]:
    parts: list[Span] = []
    before = False
    for start, stop, matched in matches:
        if parts and joins(matched, before):
            parts[-1] = (parts[-1][0], stop)
        else:
            parts.append((start, stop))
        before = matched
    return parts
