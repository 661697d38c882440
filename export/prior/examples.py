"""Public examples that a prior is made of: their texts and labels, without labels of the target's meanings."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedspzo.device_runtime.data.sources import HUB, read_records
from fedspzo.device_runtime.data.texts import at, check_text
from fedspzo.device_runtime.errors import DataError, ExportError
from fedspzo.device_runtime.model.targets import read_target
from fedspzo.device_runtime.model.task import CAUSAL, GENERATION, MASKED, Task

#: Words that say nothing of what a label means.
_EMPTY = """
    a an and any are at be by can do does for from get has have how i in is it me my no none not of on or other set some
    someone something that the this to up was what when where which who why will with you your
"""
#: Letters by which words are compared: alarm and alarms, transfer and transferring are alike.
_LETTERS = 5
#: The cosine from which on a label's examples are taken for what a description of the target's says, once what all have
#: in common is taken away. Of CLINC150's and HWU64's labels those that mean the same lie above, with few others.
_ALIKE = 0.25


@dataclass(frozen=True)
class Labelled:
    """A public example.

    Attributes:
        fields: the task's fields.
        label: the words of its label's name; "" for plain text.
    """

    fields: Mapping[str, str]
    label: str


def read_prior(sources: Sequence[str | Path], task: Task) -> list[Labelled]:
    """The examples of some files. Plain text is a line of a ``.txt`` file, a record without a label, and each of a
    task whose answers are free text.

    Args:
        sources: see :func:`fedspzo.device_runtime.data.sources.parse_examples`.
        task: whose fields the records have; those with one text may call it otherwise.

    Raises:
        ExportError: a record has other texts than the task, there are none, or they may be the task's own data.
        DataError: a file, or a record of it, cannot be read.
    """
    found = [example for source in map(str, sources) for example in _read(source, task)]
    if not found:
        raise ExportError(
            "prior.no-examples", f"{', '.join(map(str, sources))} has no examples; give other files with --prior"
        )
    return found


def describe_prior(sources: Sequence[str | Path], seed: int) -> str:
    """Files by their names and the starts of their SHA-256, with the seed of what is drawn from them."""
    names = [
        str(s) if str(s).startswith(HUB) else f"{Path(s).name} {hashlib.sha256(Path(s).read_bytes()).hexdigest()[:12]}"
        for s in sources
    ]
    return f"{', '.join(names)}, seed {seed}"


def _read(source: str, task: Task) -> Iterator[Labelled]:
    if Path(source).suffix.lower() == ".txt":
        try:
            lines = Path(source).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ExportError(
                "prior.unreadable", f"{source} is no text in UTF-8 ({error}); give another file"
            ) from None
        yield from (Labelled(dict.fromkeys(task.fields, line.strip()), "") for line in lines if line.strip())
        return
    own = []  # of each labelled record, whether it may be the task's
    for where, record in read_records(source):
        values = record if isinstance(record, Mapping) else {}
        texts = {name: text for name, text in values.items() if isinstance(text, str) and name != task.target}
        fields = {name: texts[name] for name in task.fields if name in texts}
        if not fields and len(task.fields) == len(texts) == 1:
            fields = dict(zip(task.fields, texts.values(), strict=True))
        if fields.keys() != set(task.fields):
            wanted = [*task.fields, *([] if task.form == GENERATION else [f"labels in {task.target}"])]
            raise ExportError(
                "prior.other-fields",
                f"{where}: the record has the texts {', '.join(texts) or 'none'}, and task '{task.name}' needs"
                f" {', '.join(wanted)}; rename them in a copy of the file",
            )
        label = None if task.form == GENERATION else values.get(task.target)
        words = "" if label is None else words_of(str(label))
        with at(where):
            for name, text in {**fields, task.target: words}.items():
                check_text(name, text)
        if words:
            own.append(fields.keys() <= texts.keys() and _is_index(label, task))
        yield Labelled(fields, words)
    if own and all(own):
        raise ExportError(
            "prior.own-data",
            f"{source} has the fields and label numbers of task '{task.name}' and may be its own data; name its labels"
            " by words in a copy of the file, or give another with --prior",
        )


def _is_index(label: object, task: Task) -> bool:
    """Whether a label is no word, and one that the task's own data may have."""
    if isinstance(label, bool) or not _has_letters(str(label)):
        with suppress(DataError):
            read_target(task, label)
            return True
    return False


def words_of(name: str) -> str:
    """The words of a label's name: ``card_payment`` and ``CardPayment`` → ``card payment``, and ``-1`` as it is."""
    if not _has_letters(name):
        return name.strip()
    return " ".join(re.sub(r"(?<=[a-z])(?=[A-Z])|[\W_]+", " ", name).lower().split())


def shared_words(labels: Sequence[str], target: Task) -> dict[str, str]:
    """Those labels whose words are those of a label of the target: label → the target's label.

    Words are alike when their first letters are; endings and words of no meaning do not count. So HWU64's ``alarm set``
    is CLINC150's ``alarm``. Label words are names, too; a target whose labels are numbers shares none by them.
    """
    targets = {label.name: _stems(words_of(label.name)) for label in target.labels}
    if target.form in (MASKED, CAUSAL):
        targets = {label.name: targets[label.name] | _stems(words_of(label.text)) for label in target.labels}
    found: dict[str, str] = {}
    for label in labels:
        stems = _stems(label)
        found.update((label, name) for name, known in targets.items() if stems & known)
    return found


def same_meaning(labels: Sequence[str], vectors: np.ndarray, target: Task, targets: np.ndarray) -> dict[str, str]:
    """Those labels whose examples say what a description of the target's says: label → the target's label.

    Args:
        vectors: the mean of the examples' vectors for each label [labels, width].
        targets: vectors of the target's descriptions [target's labels, width].
    """
    both = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (vectors, targets)]
    common = (both[0].mean(axis=0) + both[1].mean(axis=0)) / 2  # of which there is much in some models
    one, other = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (both[0] - common, both[1] - common))
    cosines = one @ other.T
    nearest = cosines.argmax(axis=1)
    return {
        label: target.labels[at].name
        for label, row, at in zip(labels, cosines, nearest, strict=True)
        if row[at] >= _ALIKE
    }


def _stems(words: str) -> frozenset[str]:
    known = [word for word in words.split() if _has_letters(word) or not any(map(str.isdigit, word))]
    telling = [word for word in known if word not in _EMPTY.split()]
    return frozenset(word.removesuffix("s")[:_LETTERS] for word in telling or known)


def _has_letters(text: str) -> bool:
    return any(map(str.isalpha, text))


def drawn(seed: int, part: str, number: int, count: int) -> np.ndarray:
    """The numbers below ``count`` in an order that a seed, and the number of a part, decide."""
    key = hashlib.blake2b(f"{seed} {part} {number}".encode(), digest_size=16).digest()
    return np.argsort(np.random.Philox(key=np.frombuffer(key, "<u8")).random_raw(count), kind="stable")


def by_label(examples: Sequence[Labelled]) -> dict[str, list[int]]:
    """Label → its examples, the labels in alphabetical order; those with a single example are left out."""
    counts = Counter(example.label for example in examples)
    found: dict[str, list[int]] = {label: [] for label in sorted(counts) if counts[label] > 1}
    for number, example in enumerate(examples):
        if example.label in found:
            found[example.label].append(number)
    return found
