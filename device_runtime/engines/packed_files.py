"""Files of constants as an engine has packed them, kept from run to run and mapped in place of a copy in memory.

Each is written aside and renamed, and has its hash in a file beside it, together with what it is of: before the first
use in a process both are checked, and a file that is another's, altered or cut off is made again. An engine notices
neither: LiteRT's looks a matrix up by its tensor's number, so that any layer's file will do.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from fedspzo.device_runtime.errors import EngineError
from fedspzo.device_runtime.files import PRIVATE, cure, make_folder, move_into_place, write_atomically

log = logging.getLogger(__name__)

#: A file's hash is that of its parts' hashes, which threads take beside each other: gigabytes are read at each start.
_PART, _PIECE, _THREADS = 1 << 23, 1 << 18, 4
_HASH = ".parts"
_MAKING = "making-"
#: Files that were not used for so long are removed when one is made: a new library, or another bundle, has its own.
_UNUSED_SECONDS = 30 * 86400


class PackedFile:
    """A packed file that has been checked and stays open.

    Attributes:
        descriptor: of the open file.
        path: what an engine opens: the file that was checked, whatever its name is given to later.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.path = descriptor, f"/proc/self/fd/{descriptor}"

    def __del__(self) -> None:
        with suppress(OSError):
            os.close(self.descriptor)

    def read_ahead(self) -> None:
        """Have the system read it, without waiting for that."""
        os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_WILLNEED)

    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self.descriptor).st_size


class PackedFiles:
    """A folder of packed files, which processes may share: one at a time checks and makes them."""

    def __init__(self, folder: Path) -> None:
        """The folder is made when it is first needed."""
        self._folder = folder

    def open(self, key: str, make: Callable[[Path], None]) -> PackedFile:
        """A packed file; where none is kept, or not a whole one, it is made.

        Args:
            key: what it is of: its name.
            make: writes it, or raises EngineError.

        Raises:
            EngineError: it can be neither read nor made; the message says why and what helps.
        """
        try:
            with _alone_in(self._folder):
                found = self._checked(key)
                if found is None:
                    self._make(key, make)
                    found = self._checked(key)
        except OSError as error:
            raise EngineError(
                "engine.packed-file",
                f"packed weights cannot be kept in {self._folder} ({error.strerror}); {cure(error)}",
            ) from None
        if found is None:
            raise EngineError(
                "engine.packed-file",
                f"packed weights cannot be kept in {self._folder} (what was written is not what is read); choose"
                " another folder by XDG_CACHE_HOME",
            )
        return found

    def _names(self, key: str) -> tuple[Path, Path]:
        return self._folder / f"{key}.packed", self._folder / f"{key}{_HASH}"

    def _checked(self, key: str) -> PackedFile | None:
        """The file, if it is there, whole and of this key."""
        path, beside = self._names(key)
        try:
            said = beside.read_text(encoding="utf-8", errors="replace")
            found = PackedFile(os.open(path, os.O_RDONLY))
        except FileNotFoundError:
            return None
        if said == _describe(key, found.descriptor):
            with suppress(OSError):  # another user's, or on a disk that is only read
                os.utime(found.descriptor)  # it is used
            return found
        log.warning("%s was altered or cut off, and is made again", path)
        return None

    def _make(self, key: str, make: Callable[[Path], None]) -> None:
        path, beside = self._names(key)
        self._remove_unused()
        with _aside(self._folder) as folder:
            partial = folder / path.name
            make(partial)
            partial.chmod(PRIVATE)
            descriptor = os.open(partial, os.O_RDONLY)
            try:
                described = _describe(key, descriptor)
            finally:
                os.close(descriptor)
            beside.unlink(missing_ok=True)  # killed before it is there again, the file is made again
            move_into_place(partial, path)
            write_atomically(folder / beside.name, described.encode())
            move_into_place(folder / beside.name, beside)

    def _remove_unused(self) -> None:
        """Who has one of them open keeps it."""
        for path in self._folder.glob("*.packed"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _UNUSED_SECONDS:
                    path.with_suffix(_HASH).unlink(missing_ok=True)
                    path.unlink()


def _describe(key: str, descriptor: int) -> str:
    """What the file beside a packed file says."""

    def part(start: int) -> bytes:
        digest, end = hashlib.sha256(), start + _PART
        while piece := os.pread(descriptor, min(_PIECE, end - start), start):
            digest.update(piece)
            start += len(piece)
        return digest.digest()

    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
        digests = threads.map(part, range(0, os.fstat(descriptor).st_size, _PART))
    return f"{hashlib.sha256(b''.join(digests)).hexdigest()} {key}\n"


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """A folder to write in, gone at the end; those that killed processes left behind go too."""
    for left in folder.glob(f"{_MAKING}*"):
        shutil.rmtree(left, ignore_errors=True)
    place = Path(tempfile.mkdtemp(prefix=_MAKING, dir=folder))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Have a folder for this thread alone, made where it is not there; waits for others. Raises OSError."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        make_folder(folder)
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # of the folder itself, so that one that is only read will do
        yield
    finally:
        os.close(descriptor)
