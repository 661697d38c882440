"""Text to token ids that fit the bundle's length: long fields are cut; label, mask and answer never are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedspzo.device_runtime.data.tokenizer import Tokenizer, load_tokenizer
from fedspzo.device_runtime.errors import DataError
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import TOKENIZER
from fedspzo.device_runtime.model.task import CAUSAL, GENERATION, MASKED, SIMILARITY


@dataclass(frozen=True)
class Encoded:
    """An example as tokens.

    Attributes:
        ids: the filled-in template's tokens, then the answer's.
        start: the position whose output predicts the label word or the answer's first token.
        cut: whether a field was cut to fit.
    """

    ids: list[int]
    start: int
    cut: bool


class Encoder:
    """Tokenises a bundle's task with its tokenizer."""

    def __init__(self, bundle: Bundle) -> None:
        self._tokenizer = load_tokenizer(bundle.folder / TOKENIZER)
        self._task = bundle.manifest.task
        self._length = bundle.manifest.length
        self._continues = self._task.form in (CAUSAL, GENERATION)
        self._mask: int = self._tokenizer.token_to_id(self._task.mask) or 0
        special = [t.content for t in self._tokenizer.get_added_tokens_decoder().values() if t.special]
        self._special = re.compile("|".join(map(re.escape, special)) or "(?!)")

    def encode(self, fields: Mapping[str, str], answer: str | None = None) -> Encoded:
        """Tokens of an example.

        Fields are cut from the end, the longest first; the template's own text, the mask and the answer stay whole.
        Special tokens that a field spells out are blanked: a text cannot forge a mask or an end.

        Args:
            fields: the template's fields.
            answer: what should be generated, if it is known.

        Raises:
            DataError: the template and the answer's room alone are longer than the limit, the answer has more tokens
                than the bundle's graphs take, or there is no text at all.
        """
        task = self._task
        whole = {name: self._special.sub(" ", fields[name]) for name in task.fields}
        kept = dict(whole)
        while True:
            text = task.render(kept)
            prompt = self._ids(text)
            # Room for the longest answer is kept whether or not one is known: training and asking see the same prompt.
            excess = len(prompt) + task.answer_tokens - self._length
            if excess <= 0:
                break
            self._cut(kept, excess)
        if not prompt:
            raise DataError("data.empty-text", "the text is empty; write something, or leave the example out")
        start = len(prompt) - 1
        if task.form == MASKED:
            start = prompt.index(self._mask)
        elif task.form == SIMILARITY:
            start = 0
        tokens = [] if answer is None else self._answer_ids(text, prompt, answer)
        return Encoded(prompt + tokens, start, kept != whole)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones included."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def _answer_ids(self, prompt_text: str, prompt: list[int], answer: str) -> list[int]:
        text = self._task.render_answer(self._special.sub(" ", answer))
        together = self._ids(prompt_text + text)
        if together[: len(prompt)] == prompt:
            tokens = together[len(prompt) :]
        else:  # the answer's first characters would merge with the prompt's last token
            tokens = list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        if len(tokens) > self._task.answer_tokens:
            raise DataError(
                "data.answer-too-long",
                f"the answer '{answer[:40]}' has {len(tokens)} tokens, and the bundle takes"
                f" {self._task.answer_tokens}; leave the example out, or export with a larger --answer-tokens",
            )
        return tokens

    def _cut(self, kept: dict[str, str], excess: int) -> None:
        """Take ``excess`` tokens, or as many as there are, from the end of the longest field."""
        spans = {name: self._tokenizer.encode(text, add_special_tokens=False).offsets for name, text in kept.items()}
        longest = max(spans, key=lambda name: len(spans[name]))
        if not spans[longest]:
            raise DataError(
                "task.template-too-long",
                f"the template of task '{self._task.name}' alone needs more than {self._length} tokens; export with a"
                " larger --max-length",
            )
        keep = max(0, len(spans[longest]) - excess)
        # A character may span several tokens: the text must get shorter whatever the offsets say.
        stop = min(spans[longest][keep - 1][1], len(kept[longest]) - 1) if keep else 0
        kept[longest] = kept[longest][:stop]

    def _ids(self, text: str) -> list[int]:
        return encode_open(self._tokenizer, text) if self._continues else list(self._tokenizer.encode(text).ids)


def encode_open(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of a text to continue: without those that the tokenizer puts at an end."""
    ids = list(tokenizer.encode(text).ids)
    whole, bare = tokenizer.encode("a").ids, tokenizer.encode("a", add_special_tokens=False).ids
    opening = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    closing = len(whole) - opening - len(bare)
    return ids[: len(ids) - closing] if closing else ids
