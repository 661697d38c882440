"""Made-up examples of a task, for the check of a whole bundle: what people write, and none of it a special token."""

from __future__ import annotations

from fedspzo.device_runtime.data.encoder import Encoder
from fedspzo.device_runtime.data.sources import Example
from fedspzo.device_runtime.errors import DataError
from fedspzo.device_runtime.model.task import GENERATION, Task

#: Capitals, digits, punctuation, accents, other scripts, joined characters, and spaces in odd places.
TEXTS = (
    "the film was good",
    "It's 7 o'clock: they'd paid $1,234.50 (50%) - twice!",
    "Ärger im Café, naïve Élan; ÖSTERREICH",
    "  two  spaces, a\ttab and\na new line ",
    "我爱北京 これは 한국어 العربية हिन्दी русский",
    "e\u0301 and \ufb01n, Ⅷ ½ 🙂👩🏽‍🚀 x\u00a0y",
    "def f(x_1): return [x_1 ** 2, 'a-b']  # no_comment",
    "a",
)
#: Words of which the longest text is made.
_WORDS = ("the", "film", "was", "good", "but", "far", "too", "long", "and", "its", "end", "made", "no", "sense")
#: Answers of few tokens: the first that fits is taken.
_ANSWERS = ("red", "1", "a")


def ask(task: Task, encoder: Encoder) -> list[Example]:
    """Examples that are not cut: first one as long as the bundle takes, then one for each text that fits.

    Where nothing fits as it is, one that is cut.
    """
    longest = 0
    while longest < 1 << 12 and _example(task, encoder, -1, _words(longest + 1)) is not None:
        longest += max(1, longest // 8)
    while longest and _example(task, encoder, -1, _words(longest)) is None:
        longest -= 1
    texts = [_words(longest), *TEXTS] if longest else TEXTS
    found = [_example(task, encoder, number, text) for number, text in enumerate(texts)]
    return [*filter(None, found)] or [*filter(None, [_example(task, encoder, 0, TEXTS[0], cut=True)])]


def _words(count: int) -> str:
    return " ".join(_WORDS[number % len(_WORDS)] for number in range(count))


def _example(task: Task, encoder: Encoder, number: int, text: str, cut: bool = False) -> Example | None:
    """An example with a text in its first field and a letter in others; None where it does not fit."""
    fields = dict.fromkeys(task.fields, "a") | {task.fields[0]: text}
    for answer in _ANSWERS if task.form == GENERATION else (None,):
        try:
            if encoder.encode(fields, answer).cut and not cut:
                return None
        except DataError:
            continue
        return Example(fields, number % max(1, len(task.labels)), (answer,) if answer else ())
    return None
