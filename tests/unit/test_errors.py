"""Every cause of an error has a kind of its own, docs/errors.md lists them all, and an error survives pickling."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import pickle
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import pytest

from fedspzo.device_runtime.errors import BundleError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """scripts/error-kinds as a module."""
    loader = importlib.machinery.SourceFileLoader("error_kinds", str(ROOT / "scripts" / "error-kinds"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_every_error_has_a_literal_kind_and_a_kind_has_one_class(script: ModuleType) -> None:
    found = list(script.errors())
    assert len(found) > 300
    classes = defaultdict(set)
    for place, name, kind, _ in found:
        assert isinstance(kind, ast.Constant), f"{place}: the kind is not written out"
        assert script.KIND.fullmatch(str(kind.value)), f"{place}: '{kind.value}' is not of the form area.what-is-wrong"
        classes[kind.value].add(name)
    assert not {kind: names for kind, names in classes.items() if len(names) > 1}


def test_the_page_of_errors_is_the_sources(script: ModuleType) -> None:
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    assert page == script.page(), "run scripts/error-kinds"


def test_an_error_reaches_another_process_whole() -> None:
    error = pickle.loads(pickle.dumps(BundleError("bundle.version", "it is old; update fedspzo")))
    assert type(error) is BundleError
    assert (error.kind, str(error)) == ("bundle.version", "it is old; update fedspzo")
