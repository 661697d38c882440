"""Files that are whole or not there, whatever is killed and whenever the power fails; folders that one process has.

State folders and all in them are their owner's alone, whatever the umask: they have keys, tokens of private texts, and
models that were trained on these.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from fedspzo.device_runtime.errors import StateError

#: Modes of files, and of a folder of private ones. What others may read is named: bundles, checkpoints.
PRIVATE, PUBLIC = 0o600, 0o644
_PRIVATE_FOLDER = 0o700
#: How names of folders begin that somebody writes in, or was killed in.
_SCRATCH = "making-"


def write_atomically(path: Path, content: bytes, mode: int = PRIVATE) -> None:
    """Write a file that appears whole, or stays as it was. Raises OSError when the disk refuses."""
    with written_atomically(path, mode) as file:
        file.write(content)


@contextmanager
def written_atomically(path: Path, mode: int = PRIVATE) -> Iterator[IO[bytes]]:
    """A file to write in pieces, which gets its name at the end of the block, and never if the block raises."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            yield file
        move_into_place(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)  # it would fill a disk that is full
        raise


def move_into_place(partial: Path, path: Path) -> None:
    """Rename a file; its content and its new name are on disk when this returns."""
    _sync(partial)
    os.replace(partial, path)
    sync_folder(path.parent)


def open_private(path: Path, mode: str) -> IO[str]:
    """Open a UTF-8 file as ``open`` does; when it is made, its owner alone may read it."""
    return open(path, mode, encoding="utf-8", opener=lambda name, flags: os.open(name, flags, PRIVATE))


def make_private(path: Path) -> None:
    """Make a file its owner's alone, and make it, empty, where it is not there. Raises OSError when it cannot.

    A database stays closed: closing it here would let go of this process's locks on it.
    """
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE))
    except FileExistsError:
        _tighten(path)


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Make a folder, and those above it that are missing; its name then survives a power cut.

    Args:
        mode: of the folder itself, where it is made.

    Raises:
        StateError: it is or lies in the source code of a Python package, where keys and journals would be published.
    """
    check_no_package(folder)
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(mode, exist_ok=True)
        sync_folder(folder.parent)


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/fedspzo`` or ``~/.cache/fedspzo``. Raises RuntimeError where there is no home folder."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (folder if folder.is_absolute() else Path.home() / ".cache") / "fedspzo"


def check_no_package(folder: Path) -> None:
    """Raise StateError when a folder is, or lies in, the source code of a Python package."""
    for package in (folder.resolve(), *folder.resolve().parents):
        if (package / "__init__.py").exists():
            raise StateError(
                "state.in-package", f"{folder} is source code of the Python package {package}; choose another folder"
            )


def lock_folder(folder: Path, wait: bool = False, private: bool = True) -> IO[str]:
    """Make a folder this process's own, for as long as the file that is returned stays open.

    Args:
        wait: for another process that has it.
        private: whether only its owner may read it and all in it. A folder that the working directory or the home
            folder lies in stays as it is, since it holds other things too.

    Raises:
        StateError: another process has it, or it cannot be made.
    """
    try:
        make_folder(folder, _PRIVATE_FOLDER if private else 0o777)
        if private:
            _make_private_folder(folder)
        lock = open_private(folder / "lock", "w")
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        sync_folder(folder)  # a process that was killed may have renamed files without having come to this
    except BlockingIOError:
        raise StateError(
            "state.in-use", f"{folder} is in use by another process; give each process its own folder"
        ) from None
    except OSError as error:
        raise StateError(
            "state.unusable", f"{folder} cannot be used ({error.strerror}); choose another folder"
        ) from None
    return lock


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A private folder to write in, gone at the end; those that killed processes have left there go too.

    Raises:
        OSError: it cannot be made.
    """
    with ExitStack() as stack:
        with _locked(parent):  # nobody looks at a folder before it is locked
            for left in parent.glob(f"{_SCRATCH}*"):
                with suppress(OSError), _locked(left, wait=False):
                    shutil.rmtree(left, ignore_errors=True)
            folder = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=parent))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            stack.enter_context(_locked(folder))
        yield folder


@contextmanager
def _locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold a lock of a folder itself, without a file in it. Raises OSError, BlockingIOError where another has it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Whether a process has a folder, see :func:`lock_folder`."""
    try:
        with (folder / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def locked_file(path: Path) -> IO[str]:
    """A file that this process alone has for as long as it stays open; waits for others. Raises OSError."""
    lock = open_private(path, "w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def cure(error: OSError) -> str:
    """What helps where the system refuses a file, as the end of a message."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room on the disk"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "raise the limit of open files (ulimit -n)"
    if error.errno == errno.EFBIG:
        return "raise the limit of a file's size (ulimit -f), or use another file system"
    if error.errno == errno.ENAMETOOLONG:
        return "give a shorter name"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return "check the path, or choose another folder"
    return "let this user read and write there, or choose another folder"


def _make_private_folder(folder: Path) -> None:
    """Files of before, and those that a library makes, had the mode that the umask left."""
    resolved = folder.resolve()
    if any(other.is_relative_to(resolved) for other in _places()):
        return
    for place, folders, files in os.walk(resolved):
        for name in (".", *folders, *files):
            _tighten(Path(place, name))


def _places() -> Iterator[Path]:
    """Folders that are there for all kinds of files."""
    with suppress(OSError):  # it may be gone
        yield Path.cwd()
    with suppress(RuntimeError):
        yield Path.home().resolve()


def _tighten(path: Path) -> None:
    """Take from others what they may do with a file or folder, if it is this user's and no link."""
    with suppress(FileNotFoundError):
        found = path.lstat()
        mode = stat.S_IMODE(found.st_mode)
        if not stat.S_ISLNK(found.st_mode) and found.st_uid == os.geteuid() and mode & 0o077:
            path.chmod(mode & _PRIVATE_FOLDER)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
