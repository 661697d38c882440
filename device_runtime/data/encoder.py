"""Text to token ids that fit the bundle's length: long fields are cut; label, mask and answer never are."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from fedspzo.device_runtime.data.chat import USER, ChatTemplate, Turn
from fedspzo.device_runtime.data.control import ControlTokens
from fedspzo.device_runtime.data.questions import Dialogue, Fields, Question
from fedspzo.device_runtime.data.tokenizer import Tokenizer, load_tokenizer
from fedspzo.device_runtime.errors import DataError
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import TOKENIZER, VOCABULARY
from fedspzo.device_runtime.model.task import CAUSAL, GENERATION, MASKED, SIMILARITY

#: How many characters of a field are read for each token that fits: what is behind them could not matter unless tokens
#: were longer than that, and a huge field costs no time.
CHARACTERS = 64


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
        self._tokenizer = load_tokenizer(
            bundle.folder / (VOCABULARY if VOCABULARY in bundle.manifest.files else TOKENIZER)
        )
        self._task = bundle.manifest.task
        self._length = bundle.manifest.length
        self._continues = self._task.form in (CAUSAL, GENERATION)
        self._mask: int = self._tokenizer.token_to_id(self._task.mask) or 0
        self._control = ControlTokens(self._tokenizer, self._task.mask, self._task.stop)
        self._written = lru_cache(maxsize=64)(lambda text: self._control.among(self._ids(text)))
        self._chat = None if self._task.chat is None else ChatTemplate(self._task.chat)

    def encode(self, fields: Mapping[str, str], answer: str | None = None, turns: Sequence[Turn] = ()) -> Encoded:
        """Tokens of an example.

        Fields are cut from the end, the longest first; the template's own text, the mask and the answer stay whole.
        A dialogue first loses its oldest turns, up to a turn of the user; a system's text at its start and the last
        turn stay, and are cut only when they alone are too long. What a text has that would become a special token is
        blanked: it cannot forge a mask, an end or a turn.

        Args:
            fields: the template's fields; for dialogues a question in the first of the task's fields, without turns.
            answer: what should be generated, if it is known.
            turns: of a dialogue, those before the answer.

        Raises:
            DataError: the template and the answer's room alone are longer than the limit, the answer has more tokens
                than the bundle's graphs take, there is no text at all, a text and the template together make a special
                token, or the chat template refuses the dialogue.
        """
        task = self._task
        given: Question
        if self._chat is None:
            given = Fields(task, fields)
        else:
            given = Dialogue(task, self._chat, turns or [Turn(USER, fields[task.fields[0]])])
        question, cut = self._bounded(given)
        while True:
            asked, prompt = self._prompt(question)
            # Room for the longest answer is kept whether or not one is known: training and asking see the same prompt.
            excess = len(prompt) + task.answer_tokens - self._length
            if excess <= 0:
                break
            question, cut = self._cut(question, excess), True
        if not prompt:
            raise DataError("data.empty-text", "the text is empty; write something, or leave the example out")
        start = len(prompt) - 1
        if task.form == MASKED:
            start = prompt.index(self._mask)
        elif task.form == SIMILARITY:
            start = 0
        tokens = [] if answer is None else self._answer_ids(asked, prompt, answer)
        return Encoded(prompt + tokens, start, cut)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones included."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def _bounded(self, given: Question) -> tuple[Question, bool]:
        """A question without what cannot fit, and whether anything is missing; no text makes a control token."""
        most = CHARACTERS * self._length
        readable = _first(given.tails(), lambda question: sum(map(len, question.texts.values())) <= most)
        cleaned = {name: self._control.cleaned(text[:most]) for name, text in readable.texts.items()}
        question = _first(readable.holding(cleaned).tails(), self._fits)
        cut = len(question.texts) < len(given.texts) or any(len(text) > most for text in readable.texts.values())
        return question, cut

    def _fits(self, question: Question) -> bool:
        return len(self._prompt(question)[1]) + self._task.answer_tokens <= self._length

    def _prompt(self, question: Question) -> tuple[Question, list[int]]:
        """A question as it is asked, and its tokens, which have no other control tokens than the template writes."""
        own = self._written(question.neutral().prompt())
        spaced = question.holding({name: f" {text} " for name, text in question.texts.items()})
        for asked in (question, spaced):
            ids = self._ids(asked.prompt())
            if self._control.among(ids) == own:
                return asked, ids
        raise self._forged()

    def _answer_ids(self, asked: Question, prompt: list[int], answer: str) -> list[int]:
        if len(answer) > CHARACTERS * self._length:
            raise self._too_long(answer, f"{len(answer)} characters")
        answer = self._control.cleaned(answer)
        own = self._control.among(self._answer_after(asked, prompt, "a"))
        for text in (answer, f" {answer} "):
            tokens = self._answer_after(asked, prompt, text)
            if self._control.among(tokens) == own:
                break
        else:
            raise self._forged()
        if len(tokens) > self._task.answer_tokens:
            raise self._too_long(answer, f"{len(tokens)} tokens")
        return tokens

    def _answer_after(self, asked: Question, prompt: list[int], answer: str) -> list[int]:
        text = asked.answer(answer)
        together = self._ids(asked.prompt() + text)
        if together[: len(prompt)] == prompt:
            return together[len(prompt) :]
        # the answer's first characters would merge with the prompt's last token
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _too_long(self, answer: str, length: str) -> DataError:
        return DataError(
            "data.answer-too-long",
            f"the answer '{answer[:40]}' has {length}, and the bundle takes {self._task.answer_tokens} tokens; leave"
            " the example out, or export with a larger --answer-tokens",
        )

    def _forged(self) -> DataError:
        return DataError(
            "data.forged-token",
            f"the text and the template of task '{self._task.name}' together make a special token, such as a mask or an"
            " end; change the text where the two meet",
        )

    def _cut(self, question: Question, excess: int) -> Question:
        """A question without ``excess`` tokens, or as many as there are, of the end of its longest text."""
        texts = question.texts
        spans = {name: self._tokenizer.encode(text, add_special_tokens=False).offsets for name, text in texts.items()}
        longest = max(spans, key=lambda name: len(spans[name]))
        if not spans[longest]:
            raise DataError(
                "task.template-too-long",
                f"the template of task '{self._task.name}' alone needs more than {self._length} tokens; export with a"
                " larger --max-length",
            )
        keep = max(0, len(spans[longest]) - excess)
        # A character may span several tokens: the text must get shorter whatever the offsets say.
        stop = min(spans[longest][keep - 1][1], len(texts[longest]) - 1) if keep else 0
        return question.holding({**texts, longest: texts[longest][:stop]})

    def _ids(self, text: str) -> list[int]:
        if self._chat is not None:  # which writes the tokens around a text itself
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        return encode_open(self._tokenizer, text) if self._continues else list(self._tokenizer.encode(text).ids)


def _first(tails: Sequence[Question], fits: Callable[[Question], bool]) -> Question:
    """The first that fits, or else the last: what is left out of one is left out of those after it too."""
    return tails[bisect_left(tails, True, hi=len(tails) - 1, key=fits)]


def encode_open(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of a text to continue: without those that the tokenizer puts at an end."""
    ids = list(tokenizer.encode(text).ids)
    whole, bare = tokenizer.encode("a").ids, tokenizer.encode("a", add_special_tokens=False).ids
    opening = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    closing = len(whole) - opening - len(bare)
    return ids[: len(ids) - closing] if closing else ids
