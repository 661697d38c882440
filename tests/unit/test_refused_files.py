"""Where the system refuses a file, a snapshot ends in a sentence with the cure; what was there before stays."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from refusals import raises

from fedspzo.device_runtime.files import cure
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import WEIGHTS
from fedspzo.device_runtime.model.tensor_file import TensorFile
from fedspzo.device_runtime.replica.weights import Replica

#: Fills a file system of 64 KiB with a snapshot, after one that fits.
FULL_DISK = """
import subprocess, sys
from pathlib import Path
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.errors import StateError
from fedspzo.device_runtime.replica.weights import Replica

folder = Path(sys.argv[2])
if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder]).returncode:
    sys.exit("no mount")
try:
    Replica(Bundle(sys.argv[1])).save_snapshot(folder / "snapshot")
except StateError as error:
    print(error.kind, error, [path.name for path in folder.iterdir()])
"""


@contextmanager
def limited(kind: int, soft: int) -> Iterator[None]:
    """A limit of the system's on this process."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


def free_descriptor() -> int:
    """The number that the next file gets."""
    descriptor = os.dup(0)
    os.close(descriptor)
    return descriptor


@pytest.fixture
def saved(bundle: Bundle, tmp_path: Path) -> Path:
    Replica(bundle).save_snapshot(tmp_path / "snapshot")
    return tmp_path / "snapshot"


def test_no_file_is_left_to_open(bundle: Bundle, saved: Path) -> None:
    before = saved.read_bytes()
    replica = Replica(bundle, saved)
    array = np.empty_like(bundle.weights.view(bundle.weights.names[0]))
    with limited(resource.RLIMIT_NOFILE, free_descriptor()):
        with raises("state.snapshot-unwritable", saved, "Too many open files", "ulimit -n", "nothing is lost"):
            replica.save_snapshot(saved)
        with raises("state.snapshot-refused", saved, "Too many open files", "ulimit -n"):
            replica.restore(saved)
        with raises("bundle.tensors-refused", WEIGHTS, "ulimit -n"):
            TensorFile(bundle.folder / WEIGHTS)
        with raises("bundle.tensors-refused", WEIGHTS, "ulimit -n"):
            bundle.weights.read_into(bundle.weights.names[0], array)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["snapshot"]


def test_a_file_may_not_be_as_large(bundle: Bundle, saved: Path) -> None:
    before, ignored = saved.read_bytes(), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with (
            limited(resource.RLIMIT_FSIZE, 10_000),
            raises("state.snapshot-unwritable", saved, "File too large", "ulimit -f"),
        ):
            Replica(bundle).save_snapshot(saved)
    finally:
        signal.signal(signal.SIGXFSZ, ignored)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["snapshot"]


def test_a_full_disk(bundle: Bundle, tmp_path: Path) -> None:
    """On a file system of its own; what did not fit is gone again."""
    command = ["unshare", "--map-root-user", "--mount", sys.executable, "-c", FULL_DISK, bundle.folder, tmp_path]
    try:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr[-200:]}")
    assert done.stdout.startswith("state.snapshot-unwritable")
    assert "No space left on device); make room on the disk" in done.stdout
    assert done.stdout.endswith(" []\n")


def test_each_refusal_has_its_cure() -> None:
    numbers = errno.ENOSPC, errno.EMFILE, errno.EFBIG, errno.EACCES, errno.ENOENT, errno.ENAMETOOLONG
    assert len({cure(OSError(number, "")) for number in numbers}) == len(numbers)
