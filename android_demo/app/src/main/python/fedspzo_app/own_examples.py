"""The phone's examples and reactions: JSON lines in the app's private folder, which are never sent anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedspzo.device_runtime.data.chat import ASSISTANT, Turn
from fedspzo.device_runtime.data.dialogues import MESSAGES
from fedspzo.device_runtime.data.sources import Example, parse_example, parse_examples, parse_record, read_source
from fedspzo.device_runtime.data.suggestion import append_record
from fedspzo.device_runtime.errors import DataError
from fedspzo.device_runtime.model.targets import write_target
from fedspzo.device_runtime.model.task import Task
from fedspzo_app.private_files import PrivateFiles


def import_file(files: PrivateFiles, source: Path, task: Task) -> int:
    """Add the examples of a file (JSON lines, .csv, .tsv); the number of them, of a dialogue all its answers.

    Raises:
        DataError: the file has none, or a record is not an example of the task.
    """
    content = read_source(str(source))
    examples = list(parse_examples(source.name, content, task))
    if not examples:
        raise DataError("data.no-examples", f"{source.name} has no examples; write one on each line")
    whole = {example.where: example for example in examples}  # a dialogue's last answer comes with those before it
    _extend(files, list(whole.values()), task)
    return len(examples)


def add(files: PrivateFiles, record: Mapping[str, object], task: Task) -> None:
    """Add one example. Raises DataError when it is not an example of the task, or has an empty field."""
    example = parse_example(dict(record), task)
    empty = next((name for name, text in example.fields.items() if not text.strip()), None)
    if empty is not None:
        raise DataError("data.empty-field", f"the field '{empty}' is empty; write something there")
    _extend(files, [example], task)


def react(files: PrivateFiles, record: Mapping[str, object], task: Task) -> None:
    """Add what a person did with a suggestion. Raises DataError when the task has no such answer, or on a full disk."""
    parse_record(dict(record), task)
    append_record(files.examples, record)


def count(files: PrivateFiles) -> int:
    """Lines that there are, of examples and of reactions."""
    return files.examples.read_bytes().count(b"\n") if files.examples.exists() else 0


def _extend(files: PrivateFiles, examples: Sequence[Example], task: Task) -> None:
    """The whole file is written and renamed: the runtime reads it at any moment, and a kill cuts no line off."""
    known = files.examples.read_bytes() if files.examples.exists() else b""
    lines = "".join(json.dumps(_record(example, task), ensure_ascii=False) + "\n" for example in examples)
    files.write(files.examples, known + b"\n" * (known[-1:] not in (b"", b"\n")) + lines.encode())


def _record(example: Example, task: Task) -> dict[str, object]:
    if example.turns:
        turns = (*example.turns, Turn(ASSISTANT, example.answers[0]))
        return {MESSAGES: [{"role": turn.role, "content": turn.text} for turn in turns]}
    answer: object = list(example.answers) or write_target(task, example.label, example.targets)
    return {**example.fields, task.target: answer}
