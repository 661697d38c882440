"""Labelled examples from files (JSON lines, CSV, Parquet) or a data set of the hub, checked against a task."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedspzo.device_runtime.data.chat import ASSISTANT, USER, Turn
from fedspzo.device_runtime.data.dialogues import answered_turns
from fedspzo.device_runtime.data.feedback import Reaction, is_feedback, read_feedback
from fedspzo.device_runtime.data.texts import at, check_text, found, missing_field
from fedspzo.device_runtime.errors import DataError, install_hint
from fedspzo.device_runtime.model.metrics import MULTI
from fedspzo.device_runtime.model.targets import read_target
from fedspzo.device_runtime.model.task import GENERATION, Task

HUB = "hub:"


@dataclass(frozen=True)
class Example:
    """One example of a task.

    Attributes:
        fields: the template's fields.
        label: index of its label; 0 for generation. Of a set of labels or a number see
            :func:`fedspzo.device_runtime.model.targets.read_target`, as of ``targets``.
        answers: for generation, the texts that count as right; the first is the one that is trained on.
        targets: of a set of labels or a number, what the graphs are fed of it.
        reaction: what became of the label, or of the answer, that was shown; None where they are right.
        turns: of a dialogue, those before the answer; a dialogue has no fields.
        where: its place in its source, for messages.
    """

    fields: Mapping[str, str]
    label: int
    answers: tuple[str, ...] = ()
    targets: tuple[float, ...] = ()
    turns: tuple[Turn, ...] = ()
    reaction: Reaction | None = None
    where: str = field(default="", compare=False)


def read_source(source: str) -> Any:
    """The bytes of a data file, or a data set of the hub as its library has it.

    Raises:
        DataError: the file cannot be read, or the data set is not to be had.
    """
    if source.startswith(HUB):
        return _hub_dataset(source)
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise DataError("data.unreadable", f"{source} cannot be read ({error.strerror}); check the path") from None


def fingerprint(source: str, content: Any) -> bytes:
    """What changes with the content of a source: a file's bytes, or the version of a data set of the hub."""
    return content if isinstance(content, bytes) else f"{source} {content._fingerprint}".encode()


def refuse(error: DataError) -> None:
    """What is done about a record that is not an example, unless somebody skips it: raise the error."""
    raise error


def parse_examples(
    source: str, content: Any, task: Task, skip: Callable[[DataError], None] = refuse
) -> Iterator[Example]:
    """The examples of a source.

    Args:
        source: a path whose suffix tells the format (.csv, .tsv, .parquet, anything else is JSON lines), or
            ``hub:NAME:SPLIT`` or ``hub:NAME:CONFIG:SPLIT``.
        content: what :func:`read_source` gave for it.
        skip: told what is wrong with a record that is not an example of the task, and where; it is then left out.

    Raises:
        DataError: ``skip`` raises it, or the source cannot be read.
    """
    for where, record in _records(source, content):
        try:
            with at(where):
                examples = parse_record(_decode(record), task)
        except DataError as error:
            skip(error)
        else:
            yield from (replace(example, where=where) for example in examples)


def read_records(source: str) -> Iterator[tuple[str, object]]:
    """The records of a source, whatever task they are for, each after its place in it.

    Args:
        source: see :func:`parse_examples`.

    Raises:
        DataError: the source, or a record of it, cannot be read.
    """
    for where, record in _records(source, read_source(source)):
        with at(where):
            known = _decode(record)
        yield where, known


def _records(source: str, content: Any) -> Iterator[tuple[str, object]]:
    """Each after its place, as :func:`_decode` takes them."""
    suffix = Path(source).suffix.lower()
    if source.startswith(HUB):
        return ((f"{source}, row {n}", row) for n, row in enumerate(content, start=1))
    if suffix in (".csv", ".tsv"):
        return _csv_records(source, content, "\t" if suffix == ".tsv" else ",")
    if suffix == ".parquet":
        return _parquet_records(source, content)
    return _json_records(source, content)


def _decode(record: object) -> object:
    """A line of JSON lines is decoded, a row of a table checked."""
    if isinstance(record, bytes):
        try:
            return json.loads(record)
        except (ValueError, RecursionError):
            raise DataError("data.not-json", "it is not JSON; write one JSON object on each line") from None
    if isinstance(record, dict) and None in record:  # as csv has what is left of a row
        raise DataError(
            "data.extra-columns", "the row has more cells than the header has names; put texts with commas in quotes"
        )
    return record


def parse_record(record: object, task: Task) -> list[Example]:
    """The examples that a record holds: one, or for a dialogue one for each turn of the assistant, the last one last.

    What was shown is one with a reaction; where it was corrected, the correction is another.

    Raises:
        DataError: it holds no example; the message names the field.
    """
    if not isinstance(record, dict):
        raise DataError(
            "data.not-an-object",
            "the record is not an object with named fields; write one JSON object for each example",
        )
    if is_feedback(record, task):
        shown, reaction, corrected = read_feedback(record, task)
        reacted = replace(parse_example(shown, task), reaction=reaction)
        return [reacted, *([parse_example(corrected, task)] if corrected else [])]
    if task.chat is not None:
        return [Example({}, 0, (answer,), turns=turns) for turns, answer in answered_turns(record, task)]
    fields = {name: _text(record, name, task) for name in task.fields}
    if task.form == GENERATION:
        return [Example(fields, 0, _answers(record, task))]
    value = record.get(task.target)
    if value is None or isinstance(value, dict) or (isinstance(value, list) and task.kind != MULTI):
        raise DataError(
            "data.missing-label",
            f"the field '{task.target}' has no label, which task '{task.name}' needs; {found(record)}",
        )
    label, targets = read_target(task, value)
    return [Example(fields, label, targets=targets)]


def parse_example(record: object, task: Task) -> Example:
    """The only example that a record holds, or the last one of a dialogue. Raises DataError when it holds none."""
    return parse_record(record, task)[-1]


def question(texts: Sequence[str], task: Task) -> Example:
    """An example without an answer: one text for each field, or for a dialogue what user and assistant say in turn.

    Raises:
        DataError: there are too few or too many texts, or one has half characters.
    """
    if task.chat is not None and len(texts) % 2:
        for text in texts:
            check_text(task.fields[0], text)
        return Example({}, 0, turns=tuple(Turn((USER, ASSISTANT)[n % 2], text) for n, text in enumerate(texts)))
    if len(texts) != len(task.fields):
        raise DataError(
            "option.texts",
            f"task '{task.name}' takes {len(task.fields)} texts; give one each for {', '.join(task.fields)}",
        )
    fields = dict(zip(task.fields, texts, strict=True))
    for name, text in fields.items():
        check_text(name, text)
    return Example(fields, 0)


def _text(record: Mapping[str, object], field: str, task: Task) -> str:
    value = record.get(field)
    if value is None:
        raise missing_field(field, task.name, record)
    if not isinstance(value, str):
        raise DataError(
            "data.not-text", f"the field '{field}' is not a text, and task '{task.name}' needs one; put it in quotes"
        )
    check_text(field, value)
    return value


def _answers(record: Mapping[str, Any], task: Task) -> tuple[str, ...]:
    """One text, a list of texts, or an object with such a list under ``text``, as SQuAD has it."""
    value = record.get(task.target)
    if isinstance(value, dict):
        value = value.get("text")
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not values or not all(isinstance(v, str) and v.strip() for v in values):
        raise DataError(
            "data.missing-answer",
            f"the field '{task.target}' has no answer, which task '{task.name}' needs; {found(record)}",
        )
    for text in values:
        check_text(task.target, text)
    return tuple(values) if task.exact else tuple(text.strip() for text in values)


def _json_records(source: str, content: bytes) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            yield f"{source}, line {number}", line


def _csv_records(source: str, content: bytes, delimiter: str) -> Iterator[tuple[str, object]]:
    try:
        reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), delimiter=delimiter, strict=True)
        names = reader.fieldnames or []
        if len(set(names)) < len(names):
            raise DataError("data.duplicate-column", f"{source} has two columns of the same name; rename or remove one")
        for record in reader:
            yield f"{source}, line {reader.line_num}", record
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            "data.not-csv", f"{source} is not a CSV file in UTF-8 ({error}); save it as one, or as JSON lines"
        ) from None


def _parquet_records(source: str, content: bytes) -> Iterator[tuple[str, object]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError("data.library-missing", f"reading {source} needs pyarrow; {install_hint('data')}") from None
    try:
        rows = parquet.read_table(pyarrow.BufferReader(content)).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError("data.not-parquet", f"{source} is not a Parquet file ({reason}); save it as one") from None
    for number, record in enumerate(rows, start=1):
        yield f"{source}, row {number}", record


def _hub_dataset(source: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError(
            "data.library-missing", f"reading {source} needs the library datasets; {install_hint('data')}"
        ) from None
    name, *rest = source.removeprefix(HUB).split(":")
    if len(rest) not in (1, 2) or not all((name, *rest)):
        raise DataError(
            "data.hub-name", f"'{source}' is not the name of a data set; write hub:NAME:SPLIT or hub:NAME:CONFIG:SPLIT"
        )
    try:
        return datasets.load_dataset(name, *rest[:-1], split=rest[-1])
    except Exception as error:  # the library raises whatever its readers and the network do
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(
            "data.hub-failed",
            f"the hub did not give the data set '{source.removeprefix(HUB)}' ({reason}); check its name and the"
            " network",
        ) from None
