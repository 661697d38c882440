"""Replicas, snapshots and journals: equal whatever the way, and nothing lost when the process dies."""

from __future__ import annotations

import functools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from refusals import raises

from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.replica import state as state_module
from fedspzo.device_runtime.replica.state import DeviceState
from fedspzo.device_runtime.replica.weights import Replica

GOLDEN_DIGEST = "1dc3ba654a778f3dc9280a9e2a6b8d60"


def make_entries(make_plan: Callable[..., Plan], count: int) -> list[Entry]:
    """Entries with made-up scalars, of shared and of per-device directions in turn."""
    numbers = np.random.default_rng(0)

    def scalars(plan: Plan) -> tuple[float, ...]:
        return tuple(numbers.standard_normal(plan.scalars).astype(np.float32).tolist())

    entries = []
    for round in range(1, count + 1):
        plan = make_plan(round=round, base_seed=round * 17, shared=bool(round % 2))
        names = [""] if plan.shared else ["device-1", "device-2", "device-3"]
        entries.append(Entry(plan, tuple(Contribution(name, 1 / len(names), scalars(plan)) for name in names)))
    return entries


@pytest.fixture(scope="module")
def entries(make_plan: Callable[..., Plan]) -> list[Entry]:
    return make_entries(make_plan, 12)


@pytest.fixture(scope="module")
def digests(bundle: Bundle, entries: list[Entry]) -> list[bytes]:
    """Digest after each round, from θ₀ on."""
    replica = Replica(bundle)
    found = [replica.digest()]
    for entry in entries:
        replica.apply(entry)
        found.append(replica.digest())
    return found


def test_every_round_changes_the_digest(digests: list[bytes]) -> None:
    assert len(set(digests)) == len(digests)


def test_golden_digest(bundle: Bundle, make_plan: Callable[..., Plan]) -> None:
    """From weights that are all zero: bit-exact application may never change. Bundles of then had fixed labels."""
    before = Bundle(bundle.folder)
    tensors = (replace(spec, trainable=spec.trainable and spec.name != "labels") for spec in bundle.manifest.tensors)
    before.manifest = replace(bundle.manifest, tensors=tuple(tensors))
    replica = Replica(before)
    for weights in replica.trainable.values():
        weights[...] = 0
    plan = make_plan(base_seed=1, steps=2, blocks=(Block(3, 2, 0.5, 0.01), Block(5, 2, 1.0, 0.1)))
    replica.apply(Entry(plan, (Contribution("", 1.0, (1.0, -2.0, 0.5, 3.0, 0.25, -1.5, 2.0, 1.0)),)))
    assert replica.digest().hex() == GOLDEN_DIGEST


def test_snapshot_and_tail_equal_the_whole(
    bundle: Bundle, entries: list[Entry], digests: list[bytes], tmp_path: Path
) -> None:
    path = tmp_path / "s.safetensors"
    replica = Replica(bundle)
    for entry in entries[:7]:
        replica.apply(entry)
    replica.save_snapshot(path)
    restored = Replica(bundle, path)
    assert (restored.round, restored.digest()) == (7, digests[7])
    for entry in entries[7:]:
        restored.apply(entry)
    assert restored.digest() == digests[-1]


def test_entries_apply_once_and_in_order(bundle: Bundle, entries: list[Entry], digests: list[bytes]) -> None:
    replica = Replica(bundle)
    replica.apply(entries[0])
    for wrong in (entries[0], entries[2]):
        with raises("journal.wrong-round", "at round 1"):
            replica.apply(wrong)
    assert replica.digest() == digests[1]


def test_an_entry_that_does_not_fit_is_not_journaled(
    bundle: Bundle, make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    plan = make_plan(blocks=(Block(9, 1, 1.0, 0.1),))
    state = DeviceState(tmp_path, bundle)
    with raises("plan.other-network", "9"):
        state.apply(Entry(plan, (Contribution("", 1.0, (1.0,)),)))
    with raises("plan.wrong-scalars", "1 scalars"):
        Entry(plan, (Contribution("", 1.0, (1.0, 2.0)),))
    state.close()
    assert DeviceState(tmp_path, bundle).replica.round == 0


@pytest.mark.parametrize("every", [1, 3, 100])
def test_a_restart_continues(
    bundle: Bundle,
    entries: list[Entry],
    digests: list[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    every: int,
) -> None:
    monkeypatch.setattr(state_module, "SNAPSHOT_EVERY", every)
    for round, entry in enumerate(entries, start=1):
        state = DeviceState(tmp_path, bundle)
        state.apply(entry)
        assert state.replica.round == round
        state.close()
    assert DeviceState(tmp_path, bundle).replica.digest() == digests[-1]


def test_a_folder_serves_one_process_one_device_one_bundle(bundle: Bundle, tmp_path: Path) -> None:
    for odd in ("a/b", "+", "", "my phone"):
        with raises("device.name", "up to 64 letters"):
            DeviceState(tmp_path, bundle, odd)
    state = DeviceState(tmp_path, bundle, "phone-1")
    with raises("state.in-use", "its own folder"):
        DeviceState(tmp_path, bundle)
    state.close()
    with raises("state.other-owner", "'phone-1'", "'phone-2'"):
        DeviceState(tmp_path, bundle, "phone-2")
    assert DeviceState(tmp_path, bundle).device == "phone-1"
    (tmp_path / "bundle").write_text("00" * 32)
    with raises("state.other-owner", "bundle '0000", "a folder of its own"):
        DeviceState(tmp_path, bundle)


def test_damage_is_named(bundle: Bundle, entries: list[Entry], tmp_path: Path) -> None:
    state = DeviceState(tmp_path, bundle)
    state.apply(entries[0])
    state.snapshot()
    state.close()
    snapshot = tmp_path / "snapshot.safetensors"
    data = bytearray(snapshot.read_bytes())
    data[-1] ^= 1
    snapshot.write_bytes(data)
    with raises("state.snapshot-damaged", "snapshot.safetensors"):
        DeviceState(tmp_path, bundle)
    snapshot.unlink()
    for name in ("journal.sqlite", "journal.sqlite-wal"):
        (tmp_path / name).write_bytes(b"not a database" * 100)
    with raises("state.database-unusable", "journal.sqlite"):
        DeviceState(tmp_path, bundle)


CHILD = """
import sys
from pathlib import Path
sys.path[:0] = {tests!r}
from fedspzo.device_runtime.replica import state
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.plan import Block, Plan
from test_replica import make_entries
state.SNAPSHOT_EVERY = 3
bundle = Bundle({bundle!r})
def make(**changes):
    settings = dict(round=1, base_seed=7, shared=True, distribution="rademacher", steps=1, batch=4, epsilon=1e-3,
                    blocks=(Block(3, 1, 0.25, 1e-3), Block(5, 4, 1.0, 1e-2)), deadline=60.0, digest=False, **{more!r})
    return Plan(**{{**settings, **changes}})
device = state.DeviceState(Path({folder!r}), bundle)
print("ready", flush=True)
for entry in make_entries(make, {count}):
    if entry.round > device.replica.round:
        device.apply(entry)
"""


def kill_at_random(
    bundle: Bundle, make_plan: Callable[..., Plan], folder: Path, kills: int, seed: int, **more: object
) -> None:
    """Power cuts: kill -9 while entries and snapshots are written, again and again; then replay and compare."""
    count, chance = 400, random.Random(seed)
    script = CHILD.format(
        tests=[str(Path(__file__).parent), str(Path(__file__).parents[1] / "support")],
        bundle=str(bundle.folder),
        folder=str(folder),
        count=count,
        more=more,
    )
    killed = 0
    while killed < kills:
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(chance.random() * 0.1)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        else:
            assert process.returncode == 0
        process.wait()
        process.stdout.close()
    survivor = DeviceState(folder, bundle)
    reference = Replica(bundle)
    for entry in make_entries(functools.partial(make_plan, **more), survivor.replica.round):
        reference.apply(entry)
    assert survivor.replica.digest() == reference.digest()
    assert survivor.replica.sums == reference.sums


def test_power_cuts_lose_nothing(bundle: Bundle, make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    kill_at_random(bundle, make_plan, tmp_path, kills=8, seed=1)


def test_power_cuts_lose_no_sums(bundle: Bundle, make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    kill_at_random(bundle, make_plan, tmp_path, kills=4, seed=3, seed_pool=16, rebase_every=5)


@pytest.mark.slow
def test_many_power_cuts_lose_nothing(bundle: Bundle, make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    kill_at_random(bundle, make_plan, tmp_path, kills=100, seed=2)
