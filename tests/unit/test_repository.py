"""Files about the repository agree with each other: versions, targets of make, workflows, citation, style sheet."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import fedspzo

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).parents[2]
WORKFLOWS = sorted((REPOSITORY / ".github/workflows").glob("*.yml"))
YAML = [
    *WORKFLOWS,
    *sorted((REPOSITORY / ".github/ISSUE_TEMPLATE").glob("*.yml")),
    REPOSITORY / ".pre-commit-config.yaml",
    REPOSITORY / "CITATION.cff",
]


def _read(name: str) -> str:
    return (REPOSITORY / name).read_text()


def _yaml(name: str) -> Any:
    return yaml.safe_load(_read(name))


def _project() -> dict[str, Any]:
    return tomllib.loads(_read("pyproject.toml"))["project"]


def _constraint(package: str) -> str:
    match = re.search(rf"^{package}==(\S+)$", _read("constraints.txt"), re.MULTILINE)
    assert match, package
    return match[1]


def _targets_named_in(text: str) -> set[str]:
    """Targets of commands: after ``make`` at the start of a line, of `code`, or of a workflow's ``run:``."""
    return set(re.findall(r"(?:^|`|run: )make (?:[A-Z_]+=(?:'[^']*'|\S+) )*([a-z][\w-]*)", text, re.MULTILINE))


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_yaml_parses(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_workflows_test_the_python_versions_that_the_project_names() -> None:
    named = [line.split(" :: ")[-1] for line in _project()["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert _yaml(".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python-version"] == named
    assert _project()["requires-python"] == f">={named[0]}"
    assert f"Python {named[0]} to {named[-1]}" in _read("Makefile")
    for workflow in WORKFLOWS:
        for version in re.findall(r'python-version: "(.*)"', workflow.read_text()):
            assert version in named, workflow


def test_the_wheels_python_is_supported() -> None:
    minor = re.search(r"CIBW_BUILD: cp3(\d+)-manylinux", _read(".github/workflows/wheels.yml"))
    assert minor
    assert f"Programming Language :: Python :: 3.{minor[1]}" in _project()["classifiers"]


def test_the_app_is_built_with_the_versions_that_its_project_names() -> None:
    workflow, app = _read(".github/workflows/android.yml"), _read("android_demo/app/build.gradle.kts")
    wrapper = _read("android_demo/gradle/wrapper/gradle-wrapper.properties")
    readme = _read("android_demo/README.md")
    for pattern, text in {
        r'gradle-version: "(.*)"': wrapper,
        r"platforms;android-(\d+)": app,
        r"ndk;([\d.]+)": app,
        r"cmake;([\d.]+)": readme,
        r'python-version: "(.*)"': app,
    }.items():
        (version,) = re.findall(pattern, workflow)
        assert re.search(rf"(?<![\d.]){re.escape(version)}(?!\d)", text), pattern


def test_hooks_run_the_ruff_of_the_constraints() -> None:
    (ruff,) = (repo for repo in _yaml(".pre-commit-config.yaml")["repos"] if repo["repo"].endswith("ruff-pre-commit"))
    assert ruff["rev"] == f"v{_constraint('ruff')}"


def test_citation_is_of_this_version_and_of_the_paper() -> None:
    citation = _yaml("CITATION.cff")
    assert citation["version"] == fedspzo.__version__
    assert citation["license"] == _project()["license"]
    assert citation["preferred-citation"]["doi"] == "10.48550/arXiv.2502.10239"
    assert f"## {citation['version']}" in _read("CHANGELOG.md")


def test_the_style_sheet_has_ten_lines() -> None:
    _, _, sheet = _read("CONTRIBUTING.md").partition("\n## Style sheet\n\n")
    lines = sheet.partition("\n## ")[0].rstrip().split("\n")
    assert [line.split(".")[0] for line in lines] == [str(number) for number in range(1, 11)]


def test_make_help_lists_all_targets_and_documents_name_no_others() -> None:
    command = ["make", "--no-print-directory", "help"]
    shown = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", _read("Makefile"), re.MULTILINE)
    assert phony
    targets = set(phony[1].split())
    assert {line.split()[0] for line in shown.splitlines() if re.match(r"[a-z]", line)} == targets
    for path in (*WORKFLOWS, *map(REPOSITORY.joinpath, ["README.md", "CONTRIBUTING.md", ".ci/run"])):
        assert _targets_named_in(path.read_text()) <= targets, path
    assert {"demo", "test"} <= _targets_named_in(_read("README.md"))


@pytest.mark.skipif(not shutil.which("cc"), reason="the C kernel needs a compiler")
def test_an_sdist_makes_a_wheel_of_fedspzo_alone_with_its_kernel(tmp_path: Path) -> None:
    """As a package index serves it: the wheel is made from the sdist, far from this repository."""

    def build(kind: str, source: Path) -> Path:
        code = f"import hatchling.build as b; print(b.build_{kind}({str(tmp_path)!r}))"
        done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=True)
        return tmp_path / done.stdout.split()[-1]

    sdist = build("sdist", REPOSITORY)
    shutil.unpack_archive(sdist, tmp_path)
    with zipfile.ZipFile(build("wheel", tmp_path / sdist.name.removesuffix(".tar.gz"))) as wheel:
        wheel.extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    subprocess.run([sys.executable, REPOSITORY / "scripts/check-wheel"], env=environment, cwd=tmp_path, check=True)
