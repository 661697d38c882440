"""The documentation site: it builds without a warning, has every public name, and the README stays short."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fedspzo

DOCS = Path(__file__).parents[2] / "docs"
SOURCES = ("android_demo", "benchmarks", "broker", "device_runtime", "export", "fedspzo", "tests", "examples")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the extra 'docs' is empty for Python 3.10")
def test_the_site_builds_without_warnings_and_documents_every_public_name(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", tmp_path / "doctrees", DOCS, tmp_path]
    built = subprocess.run(command, capture_output=True, text=True)  # a dead link between pages is a warning
    assert built.returncode == 0, built.stderr
    from sphinx.util.inventory import InventoryFile

    with (tmp_path / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, uri: uri)
    documented = {name for kind, objects in inventory.items() if kind.startswith("py:") for name in objects}
    assert {f"fedspzo.{name}" for name in fedspzo.__all__} <= documented


def test_documents_name_source_files_that_exist() -> None:
    root = DOCS.parent
    sources = {path.as_posix() for part in SOURCES for path in (root / part).rglob("*.*")}
    for document in (root / "README.md", root / "CONTRIBUTING.md", root / "android_demo/README.md", *DOCS.glob("*.md")):
        for name in re.findall(r"[\w./-]+\.(?:py|cpp|c|h|java)\b", document.read_text(encoding="utf-8")):
            assert any(source.endswith(f"/{name.removeprefix('fedspzo/')}") for source in sources), (
                document.name,
                name,
            )


def test_python_in_documents_uses_public_names() -> None:
    for document in (DOCS.parent / "README.md", *DOCS.glob("*.md")):
        for code in re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL):
            ast.parse(code)
            assert set(re.findall(r"^(?!from ).*\bfedspzo\.(\w+)", code, re.MULTILINE)) <= set(fedspzo.__all__), (
                document
            )


def test_the_readme_is_short() -> None:
    assert len((DOCS.parent / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_the_table_of_families_lists_the_model_types_that_there_are() -> None:
    from fedspzo.export.supported import FAMILIES, supported_types

    rows = re.findall(r"^\| [^|]+ \| (`[^|]+`) \| `(\w+\.py)` \|$", (DOCS / "families.md").read_text(), re.MULTILINE)
    assert sorted(re.findall(r"`([^`]+)`", " ".join(types for types, _ in rows))) == supported_types()
    assert {file for _, file in rows} == {file.name for file in FAMILIES.glob("*.py")} - {"__init__.py"}
