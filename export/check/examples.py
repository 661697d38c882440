"""Made-up examples of a task, for the check of a whole bundle: what people write, and none of it a special token."""

from __future__ import annotations

from collections.abc import Iterator

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
#: Answers of few tokens: the first that fits is taken.
_ANSWERS = ("red", "1", "a")


def ask(task: Task, encoder: Encoder) -> Iterator[Example]:
    """An example for each text, and one that fills the bundle's length. Those that cannot be encoded are left out."""
    for number in range(len(TEXTS) + 1):
        fields = {name: TEXTS[(number + place) % len(TEXTS)] for place, name in enumerate(task.fields)}
        if number == len(TEXTS):
            fields[task.fields[0]] = " ".join(f"{TEXTS[0]} {n}" for n in range(1 << 9))
        for answer in _ANSWERS if task.form == GENERATION else (None,):
            try:
                encoder.encode(fields, answer)
            except DataError:
                continue
            yield Example(fields, number % max(1, len(task.labels)), (answer,) if answer else ())
            break
