"""State folders and all in them are their owner's alone, whatever the umask and whatever they were before."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from private import exposed

from fedspzo.broker.server.state_folder import link_bundle
from fedspzo.broker.server.store import ServerStore
from fedspzo.device_runtime.data.live import LiveData
from fedspzo.device_runtime.files import lock_folder
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.replica.state import DATABASE, SNAPSHOT, DeviceState


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """One that lets everybody do everything."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def entry(make_plan: Callable[..., Plan]) -> Entry:
    plan = make_plan(round=1)
    return Entry(plan, (Contribution("", 1.0, (0.5,) * plan.scalars),))


def test_a_devices_state(
    bundle: Bundle, entry: Entry, write_examples: Callable[[Path, int], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "state"
    state = DeviceState(folder, bundle, "a")
    state.apply(entry)
    state.snapshot()
    LiveData(write_examples(tmp_path / "data.jsonl", 3), bundle, cache=folder / "tokens.npz").current()
    assert {"tokens.npz", SNAPSHOT, DATABASE, f"{DATABASE}-wal", "device.key", "lock"} <= set(os.listdir(folder))
    assert not exposed(folder)
    state.close()
    assert (folder.parent.stat().st_mode & 0o777) == 0o777, "only the state's own folder"


def test_a_servers_state(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "server"
    with ServerStore(folder, bundle.identity) as store:
        link_bundle(folder, bundle.folder)
        before = bundle.folder.stat().st_mode
        assert not exposed(folder)
        assert store.snapshots() == {}
    with ServerStore(folder, bundle.identity):
        assert bundle.folder.stat().st_mode == before, "what a link leads to stays as it is"


def test_a_folder_of_before_is_closed_to_others(bundle: Bundle, entry: Entry, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    state = DeviceState(folder, bundle, "a")
    state.apply(entry)
    state.close()
    (folder / "more").mkdir()
    (folder / "more" / "tokens.npz").write_bytes(b"")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert len(exposed(folder)) > 5
    DeviceState(folder, bundle, "a").close()
    assert not exposed(folder)


def test_a_folder_of_other_things_stays_as_it_is(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what is of the state is private there."""
    (tmp_path / "notes.txt").write_text("for all")
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    DeviceState(Path(), bundle, "a").close()
    assert exposed(tmp_path) == [str(tmp_path), str(tmp_path / "notes.txt")]


def test_a_bundles_folder_is_for_all(tmp_path: Path) -> None:
    lock_folder(tmp_path / "bundle", private=False).close()
    assert stat.S_IMODE((tmp_path / "bundle").stat().st_mode) == 0o777
