"""The app's texts: German has each that English has, with the same values in it."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from fedspzo.export import tasks

MAIN = Path(__file__).resolve().parents[2] / "android_demo" / "app" / "src" / "main"


def texts(language: str) -> dict[str, str]:
    """Name → text of those that are translated; of a plural each quantity."""
    found = {}
    for entry in ElementTree.parse(MAIN / "res" / language / "strings.xml").getroot():
        if entry.get("translatable") != "false":
            for part in entry.findall("item") or [entry]:
                found[f"{entry.get('name')} {part.get('quantity', '')}".strip()] = part.text or ""
    return found


def test_german_has_what_english_has() -> None:
    english, german = texts("values"), texts("values-de")
    assert list(german) == list(english)
    for name, text in english.items():
        assert sorted(re.findall(r"%\d\$\w|%%", german[name])) == sorted(re.findall(r"%\d\$\w|%%", text)), name
        assert german[name].strip(), name


def test_each_text_is_used() -> None:
    sources = [*MAIN.rglob("*.java"), *MAIN.rglob("*.xml")]
    used = set(
        re.findall(r"(?:(?<!android\.)\bR\.(?:string|plurals)\.|@string/)(\w+)", "".join(map(Path.read_text, sources)))
    )
    assert {name.split()[0] for name in texts("values")} == used - {"app_name"}


def test_each_field_of_the_tasks_that_come_along_has_a_name_for_people() -> None:
    named = re.findall(r'case "(\w+)"', (MAIN / "java/org/fedspzo/app/Fields.java").read_text())
    own = Path(tasks.__file__).parent.glob("*.toml")
    fields = {field for file in own for task in tasks.load_task(file.stem).values() for field in task.fields}
    assert set(named) == fields
