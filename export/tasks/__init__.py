"""Tasks that come with the project, one TOML file each, and the reading of your own task."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedspzo.device_runtime.errors import DataError, ExportError
from fedspzo.device_runtime.model.metrics import SINGLE
from fedspzo.device_runtime.model.task import FORMS, GENERATION, Chat, Label, Task

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def load_task(name: str) -> dict[str, Task]:
    """A task by the name of one that comes with the project, or by the path of a TOML file: form → the task so asked.

    The file has a table for each form that it can be asked in, with ``template`` and a table ``labels`` of name = word
    (or description); for generation ``answer`` and ``answer_tokens`` in their place, and ``chat = true`` where records
    are dialogues, which the model's chat template renders. ``target`` names the field of an example that holds its
    label or its answers ("label" by default), ``kind`` says what the labels mean ("single" by default), and
    ``metrics`` lists what evaluations measure; a form's table may have its own. The file's stem is the task's name.

    Raises:
        DataError: there is no such task, or the file is not one.
    """
    path = Path(name)
    if path.suffix != ".toml":
        own = {file.stem: file for file in Path(__file__).parent.glob("*.toml")}
        if name not in own:
            known = ", ".join(sorted(own))
            raise DataError(
                "task.unknown", f"there is no task '{name}'; choose one of {known}, or give the path of a .toml file"
            )
        path = own[name]
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError("task.unreadable", f"{path} cannot be read ({error.strerror}); give a task's file") from None
    except UnicodeDecodeError as error:
        raise DataError("task.unreadable", f"{path} is no text in UTF-8 ({error}); give a task's file") from None
    try:
        record = tomllib.loads(text)
        common = {key: record.pop(key) for key in _COMMON & record.keys()}
        _check_types("", common)
        tasks = {form: _parse(path.stem, form, table, common) for form, table in record.items()}
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(
            "task.not-a-task",
            f"{path} is not a task ({type(error).__name__}: {error}); correct it as"
            f" {Path(__file__).with_name('sst2.toml')} shows",
        ) from None
    if not tasks:
        raise DataError(
            "task.no-form", f"{path} has no form; write a table [masked], [causal], [similarity] or [generation]"
        )
    return tasks


def choose_form(tasks: dict[str, Task], forms: Sequence[str], model: str) -> Task:
    """The task in the first form that the model can do. Raises ExportError when it can do none."""
    for form in forms:
        if form in tasks:
            return tasks[form]
    name = next(iter(tasks.values())).name
    raise ExportError(
        "task.form-unsuitable",
        f"{model} supports the form {' or '.join(forms)}, and task '{name}' has only {', '.join(tasks)}; add a table"
        f" [{forms[0]}] to the task's file",
    )


#: Keys that stand above the forms' tables, or in them.
_COMMON = {"target", "kind", "metrics"}
#: What other values must be, and how a message says that.
_TYPES = {"template": str, "target": str, "kind": str, "answer": str, "answer_tokens": int, "chat": bool}
_NAMES = {str: "a text in quotes", int: "a whole number", bool: "true or false"}


def _parse(name: str, form: str, table: Any, common: dict[str, Any]) -> Task:
    if form not in FORMS or not isinstance(table, dict):
        raise ValueError(f"'{form}' is neither {', '.join(sorted(_COMMON))} nor a table [{'], ['.join(FORMS)}]")
    table = {**common, **table}
    known = {*_COMMON, "template", "labels", "answer", "answer_tokens", *(["chat"] if form == GENERATION else [])}
    unknown = table.keys() - known
    if unknown:
        raise ValueError(f"[{form}] has the unknown key '{min(unknown)}'")
    labels = table.get("labels", {})
    if not isinstance(labels, dict):
        raise TypeError(f"[{form}] labels is not a table of name = text")
    for name_of_label, text in labels.items():
        if not isinstance(text, str):
            raise TypeError(f"[{form}] label '{name_of_label}' has no text; put it, or a name with a dot, in quotes")
    _check_types(f"[{form}] ", table)
    if "template" not in table:
        raise ValueError(f"[{form}] has no template")
    return Task(
        name=name,
        form=form,
        template=table["template"],
        labels=tuple(Label(key, text) for key, text in labels.items()),
        target=table.get("target", "label"),
        kind=table.get("kind", SINGLE),
        metrics=tuple(table.get("metrics", ())),
        answer=table.get("answer", ""),
        answer_tokens=table.get("answer_tokens", 0),
        chat=Chat() if table.get("chat") else None,
    )


def _check_types(place: str, table: dict[str, Any]) -> None:
    """Raise TypeError where a value is of another type than its key has: TOML has booleans, dates and fractions."""
    for key, kind in _TYPES.items():
        if key in table and type(table[key]) is not kind:
            raise TypeError(f"{place}{key} is {table[key]!r}, and not {_NAMES[kind]}")
    metrics = table.get("metrics", [])
    if not isinstance(metrics, list) or not all(isinstance(metric, str) for metric in metrics):
        raise TypeError(f"{place}metrics is not a list of names")
