"""Tasks that come with the project, one TOML file each, and reading of a task of one's own."""

from __future__ import annotations

import sys
from pathlib import Path

from device_runtime.errors import DataError
from device_runtime.task import Label, Task

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def load_task(name: str) -> Task:
    """A task by the name of one that comes with the project, or by the path of a TOML file.

    The file has ``template`` and a table ``labels`` of name = description; its stem is the task's name.

    Raises:
        DataError: there is no such task, or the file is not one.
    """
    path = Path(name)
    if path.suffix != ".toml":
        path = Path(__file__).parent / f"{name}.toml"
        if not path.is_file():
            known = ", ".join(sorted(file.stem for file in path.parent.glob("*.toml")))
            raise DataError(f"there is no task '{name}'; choose one of {known}, or give the path of a .toml file")
    try:
        record = tomllib.loads(path.read_text(encoding="utf-8"))
        labels = tuple(Label(str(key), str(value)) for key, value in record["labels"].items())
        return Task(path.stem, str(record["template"]), labels)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, AttributeError) as error:
        raise DataError(f"{path} is not a task: it needs 'template' and a table 'labels' ({error})") from None
