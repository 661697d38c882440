"""Packed files that processes share: each is whole or made again, whoever is killed or makes it at the same time."""

from __future__ import annotations

import mmap
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from errno import ENOSPC
from pathlib import Path

import pytest

from fedspzo.device_runtime.engines.packed_files import PackedFiles
from fedspzo.device_runtime.errors import EngineError
from fedspzo.device_runtime.platform.mappings import mappings_of


@pytest.mark.parametrize("name", ["plain", "with spaces  and\nlines ", "gone (deleted)"])
def test_mappings_of_a_file_are_found(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(bytes(5 * mmap.PAGESIZE + 1))
    with file.open("rb") as opened, file.open("rb") as other:
        assert not mappings_of(opened.fileno())
        with mmap.mmap(other.fileno(), 0, prot=mmap.PROT_READ):
            ((address, size),) = mappings_of(opened.fileno())
            assert size == 6 * mmap.PAGESIZE
            file.unlink()
            assert mappings_of(opened.fileno()) == {(address, size)}
            with mmap.mmap(other.fileno(), mmap.PAGESIZE, prot=mmap.PROT_READ):  # a part of it
                assert mappings_of(opened.fileno()) == {(address, size)}
    assert not mappings_of(0)


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    def make(file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError(ENOSPC, "No space left on device")

    with pytest.raises(EngineError, match=r"No space left on device\); make room on the disk") as error:
        PackedFiles(tmp_path).open("key", make)
    assert error.value.kind == "engine.packed-file"
    assert not list(tmp_path.iterdir())


def test_files_that_nobody_uses_are_removed(tmp_path: Path) -> None:
    """When another is made, after 30 days; each use counts."""
    files = PackedFiles(tmp_path)
    for key in ("used", "unused"):
        files.open(key, lambda file: file.write_bytes(b"packed"))
    for path in tmp_path.glob("*.packed"):
        os.utime(path, (0, 0))
    files.open("used", lambda file: None)
    files.open("new", lambda file: file.write_bytes(b"packed"))
    assert {file.stem for file in tmp_path.iterdir()} == {"used", "new"}


def test_processes_that_open_a_file_at_once_all_get_it(tmp_path: Path) -> None:
    """One of them makes it, while the others wait."""

    def open_again_and_again() -> None:
        for number in range(20):
            PackedFiles(tmp_path).open(str(number), lambda file: file.write_bytes(os.urandom(99)))

    with ThreadPoolExecutor(4) as pool:  # a lock is an open file's, be it another thread's or another process's
        for done in [pool.submit(open_again_and_again) for _ in range(4)]:
            done.result()
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".packed"] * 20 + [".parts"] * 20


@pytest.mark.slow
def test_kills_while_files_are_made(tmp_path: Path) -> None:
    """At 50 random instants; what is there afterwards is whole, or not there."""
    contents = [os.urandom(1 << 18), os.urandom(1 << 18)]
    draw = random.Random(7)

    def make_for_ever() -> None:
        files = PackedFiles(tmp_path)
        while True:
            for number, content in enumerate(contents):
                (tmp_path / f"{number}.packed").unlink(missing_ok=True)
                files.open(str(number), lambda file, content=content: file.write_bytes(content))  # type: ignore[misc]

    for _ in range(50):
        child = os.fork()
        if child == 0:
            make_for_ever()
        time.sleep(draw.uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for number, content in enumerate(contents):
            found = PackedFiles(tmp_path).open(str(number), lambda file, content=content: file.write_bytes(content))  # type: ignore[misc]
            assert os.pread(found.descriptor, 1 << 20, 0) == content
    assert len(list(tmp_path.iterdir())) <= 5  # what the last was killed at
