"""Added tokens: those that are looked for in a text before anything else, such as a mask or an end."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedspzo.device_runtime.data.tokenizer.models import Model
from fedspzo.device_runtime.data.tokenizer.normalizers import Normalizer
from fedspzo.device_runtime.data.tokenizer.spec import Spec
from fedspzo.device_runtime.data.tokenizer.text import Text, original
from fedspzo.device_runtime.data.tokenizer.unicode import WHITESPACE, members


@dataclass(frozen=True)
class AddedToken:
    """A token that is looked for before anything else.

    Attributes:
        content: its text.
        single_word: it does not match within a word.
        lstrip: white space before it is part of it.
        rstrip: white space after it is part of it.
        normalized: its normalised text is looked for, in the normalised text.
        special: it is no text: a decoder may skip it.
    """

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False


class AddedTokens:
    """The added tokens of a tokenizer.

    Attributes:
        ids: text → number.
        by_id: number → token.
        names: number → the text of it that a decoder gets.
    """

    def __init__(self, specs: Iterable[Spec], model: Model, normalizer: Normalizer) -> None:
        """Numbers are the model's where it has the token, else they follow upon the model's, in order."""
        self.ids: dict[str, int] = {}
        self.by_id: dict[int, AddedToken] = {}
        following = model.size
        for spec in specs:
            token = AddedToken(**{name: spec[name] for name in AddedToken.__dataclass_fields__})
            if not token.content:
                continue
            id = self.ids.get(token.content, model.ids.get(token.content))
            if id is None:
                id, following = following, following + 1
            self.ids[token.content] = id
            self.by_id[id] = token
        self.names = {
            id: normalizer(original(token.content)).chars if token.normalized else token.content
            for id, token in self.by_id.items()
        }
        self._as_written = self._finder(normalized=False)
        self._normalized = self._finder(normalized=True)
        self._normalizer = normalizer

    def parts(self, text: str) -> list[tuple[Text, int | None]]:
        """The text in parts: added tokens with their numbers, and what is between them, normalised."""
        found: list[tuple[Text, int | None]] = []
        for part, id in self._as_written(original(text)):
            found += [(part, id)] if id is not None else self._normalized(self._normalizer(part))
        return [(part, id) for part, id in found if part.chars]

    def _finder(self, normalized: bool) -> Callable[[Text], Sequence[tuple[Text, int | None]]]:
        ids = {self.names[id]: id for id, token in self.by_id.items() if token.normalized == normalized}
        if not ids:
            return lambda text: [(text, None)]
        # The first of the alternatives that matches is taken: the longest must come first.
        expression = re.compile("|".join(map(re.escape, sorted(ids, key=len, reverse=True))))
        return lambda text: _split(text, expression, ids, self.by_id)


def _split(
    text: Text, expression: re.Pattern[str], ids: Mapping[str, int], tokens: Mapping[int, AddedToken]
) -> list[tuple[Text, int | None]]:
    chars, found, place = text.chars, [], 0
    for match in expression.finditer(chars):
        id = ids[match.group()]
        start, stop = match.span()
        token = tokens[id]
        if token.single_word and not (_ends(chars[:start]) and _ends(chars[stop : stop + 1])):
            continue
        if token.lstrip:
            start = max(place, len(chars[:start].rstrip(WHITESPACE)))
        if token.rstrip:
            stop = len(chars) - len(chars[stop:].lstrip(WHITESPACE))
        found += [(text.cut(place, start), None), (text.cut(start, stop), id)]
        place = stop
    return [*found, (text.cut(place, len(chars)), None)]


def _ends(chars: str) -> bool:
    """Whether no word continues after some characters."""
    return not chars or chars[-1] not in members("word")
