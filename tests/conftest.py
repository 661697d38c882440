"""What many tests share: the tiny model, its bundle, examples and plans for it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from patience import TEST_S
from tiny import BATCH, LENGTH, TASK, WORDS, make_bundle, make_checkpoint, write_requests
from victim import Victim

from fedspzo.broker.server.state_folder import pin_bundle
from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.task import Task
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.protocol.signing import PIN

settings.register_profile("untimed", deadline=None)  # a busy machine fails no test
settings.load_profile("untimed")

#: Files that take longest, by the time of their quick or their slow tests. They start first: a file that one process
#: starts last is waited for by the others.
LONGEST = (
    *("test_families", "test_quantised", "test_adapters", "test_robolectric", "test_android_app", "test_arm64"),
    *("test_large_models", "test_chaos", "test_cores", "test_halves", "test_endpoint", "test_energy", "test_shapes"),
    "test_in_chromium",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bundle", type=Path, help="the tiny model's bundle, where it cannot be exported: on a device")
    parser.addoption(
        "--texts", type=int, default=6_000, help="of each kind, in slow tests of the tokenizer (%(default)s)"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
    for item in items:
        item.add_marker(pytest.mark.timeout(TEST_S))


@pytest.fixture(scope="session")
def task() -> Task:
    return TASK


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "tiny-bert")


@pytest.fixture(scope="session")
def bundle_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    given: Path | None = request.config.getoption("--bundle")
    return given or make_bundle(request.getfixturevalue("checkpoint"), tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="session")
def bundle(bundle_folder: Path) -> Bundle:
    return Bundle(bundle_folder)


@pytest.fixture(scope="session")
def store() -> DataStore:
    """Twenty random examples of the tiny model's task."""
    random = np.random.default_rng(1)
    lengths = random.integers(4, LENGTH + 1, 20, np.int32)
    ids = random.integers(5, 5 + len(WORDS), (20, LENGTH), np.int32)
    ids[np.arange(LENGTH) >= lengths[:, None]] = 0
    return DataStore(ids, lengths, np.zeros(20, np.int32), random.integers(0, 3, 20, np.int32))


@pytest.fixture(scope="session")
def make_plan() -> Callable[..., Plan]:
    """A plan for the tiny model, with what a test cares about changed."""

    def make(**changes: object) -> Plan:
        settings: dict[str, object] = {
            "round": 1, "base_seed": 7, "shared": True, "distribution": "rademacher", "steps": 1, "batch": BATCH,
            "epsilon": 1e-3, "blocks": (Block(3, 1, 0.25, 1e-3), Block(5, 4, 1.0, 1e-2)), "deadline": 60.0,
            "digest": False,
        }  # fmt: skip
        return Plan(**{**settings, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def write_examples() -> Callable[[Path, int], Path]:
    """Write a JSON-lines file of valid examples."""
    return write_requests


@pytest.fixture
def pinned(bundle_folder: Path, tmp_path: Path) -> Bundle:
    copy = shutil.copytree(bundle_folder, tmp_path / "bundle", ignore=shutil.ignore_patterns(PIN))
    pin_bundle(copy, tmp_path / "server")
    return Bundle(copy)


@pytest.fixture
def victim(pinned: Bundle, tmp_path: Path, store: DataStore) -> Victim:
    return Victim(pinned, tmp_path, store)
