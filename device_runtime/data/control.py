"""Control tokens: masks, ends and marks of turns. Only a template may write them, never the text of an example."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fedspzo.device_runtime.data.tokenizer import Tokenizer

#: Characters that hardly any vocabulary has: the tokens that they become stand for what is unknown.
_RARE = "\ua66e \U00013000 \U00012000\U00010600 \u2603\U0001f9ff"


class ControlTokens:
    """The control tokens of a tokenizer: its special tokens, and those that it puts around a text.

    The token for what the vocabulary lacks does not count: any unknown character becomes it.
    """

    def __init__(self, tokenizer: Tokenizer, *more: str) -> None:
        """``more``: texts of tokens that count as well, such as the mask of a task; "" stands for no token."""
        self._tokenizer = tokenizer
        special = {id: token.content for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        own = (tokenizer.token_to_id(text) for text in more if text)
        around = set(tokenizer.encode("a").ids) - set(self._bare("a")[0])
        self._ids = (special.keys() | {id for id in own if id is not None} | around) - self._unknown()
        self._written = re.compile("|".join(map(re.escape, sorted(special.values(), key=len, reverse=True))) or "(?!)")

    def among(self, ids: Sequence[int]) -> list[int]:
        """The control tokens among some tokens, in order."""
        return [id for id in ids if id in self._ids]

    def cleaned(self, text: str) -> str:
        """A text with a space in place of what would become a control token.

        It may be written out, or be made by the tokenizer's normalizer: of full-width forms, of capital letters, or
        with characters in between that the normalizer removes.
        """
        text = self._written.sub(" ", text)
        while True:
            spans = [span for id, span in zip(*self._bare(text), strict=True) if id in self._ids]
            shorter = _blanked(text, spans)
            if shorter == text:
                return text
            text = shorter

    def _bare(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return list(encoding.ids), list(encoding.offsets)

    def _unknown(self) -> set[int]:
        try:
            return set(self._bare(_RARE)[0])
        except Exception:  # a vocabulary that has no token for the unknown: the library raises no type of its own
            return set()


def _blanked(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """A text with a space in place of each span; a span of white space goes, so that a text gets shorter each time."""
    parts, place = [], 0
    for start, stop in spans:
        start = max(start, place)
        if start < stop:
            parts += [text[place:start], " " if text[start:stop].strip() else ""]
            place = stop
    return "".join([*parts, text[place:]])
