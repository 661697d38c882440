"""What a program does to the files of a folder, call by call, as strace sees it.

Anything that the operations here cannot stand for (writable maps other than SQLite's -shm, say) raises NotModelled.
"""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

#: SQLite maps such a file, and makes it anew after a crash.
_MAPPED = "-shm"
_ON_DESCRIPTORS = ("write", "pwrite64", "lseek", "ftruncate", "fsync", "fdatasync", "mmap")
_ON_PATHS = (
    "open", "openat", "creat", "rename", "renameat", "unlink", "unlinkat", "mkdir", "mkdirat",
)  # fmt: skip
_REFUSED = (
    "openat2", "writev", "pwritev", "pwritev2", "truncate", "fallocate", "copy_file_range", "sendfile", "splice",
    "renameat2", "rmdir", "link", "linkat", "symlink", "symlinkat",
)  # fmt: skip


class NotModelled(Exception):
    """A program did to a recorded folder what a recording cannot stand for, or strace could not run."""


@dataclass(frozen=True)
class Open:
    """A file was opened to write: made if it was not there, emptied if ``truncate``."""

    path: Path
    truncate: bool


@dataclass(frozen=True)
class Write:
    """Bytes were written at an offset."""

    path: Path
    offset: int
    data: bytes


@dataclass(frozen=True)
class Resize:
    """A file's size was set."""

    path: Path
    size: int


@dataclass(frozen=True)
class Map:
    """A file was mapped so that it can be written without a call."""

    path: Path


@dataclass(frozen=True)
class Sync:
    """A file or a folder was made durable, by fsync or fdatasync."""

    call: str
    path: Path


@dataclass(frozen=True)
class MakeFolder:
    """A folder was made."""

    path: Path


@dataclass(frozen=True)
class Rename:
    """A name was changed, in the same folder."""

    path: Path
    target: Path


@dataclass(frozen=True)
class Remove:
    """A file's name was removed."""

    path: Path


@dataclass(frozen=True)
class Say:
    """The program wrote to its standard output."""

    text: str


Operation = Open | Write | Resize | Map | Sync | MakeFolder | Rename | Remove | Say


@dataclass(frozen=True)
class Kill:
    """A program's death in place of a call.

    Attributes:
        call: the call's name.
        number: of the call among those of the same name, from 1.
    """

    call: str
    number: int


def trace(command: list[str], folder: Path, kill: Kill | None = None) -> tuple[Operation, ...]:
    """Run a program and list what it does in a folder; paths are relative to it.

    Args:
        kill: the program is to die so; otherwise it is to end well.

    Raises:
        NotModelled: strace or the program fails, or the program did what the operations cannot stand for.
    """
    folder = folder.resolve()
    calls = ",".join(f"?{name}" for name in (*_ON_DESCRIPTORS, *_ON_PATHS, *_REFUSED))
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "trace"
        # All threads (-f), all strings whole (-s) and in hex (-xx), the path of each descriptor (-y).
        strace = ["strace", "-f", "-s", str(1 << 24), "-xx", "-y", "-e", "signal=none", "-e", f"trace={calls}"]
        if kill is not None:
            strace += ["-e", f"inject={kill.call}:signal=SIGKILL:when={kill.number}"]
        done = subprocess.run([*strace, "-o", str(file), *command], capture_output=True, text=True)
        if done.returncode != (0 if kill is None else -signal.SIGKILL):
            raise NotModelled(f"{command[0]} failed under strace ({done.returncode}): {done.stderr[-2000:]}")
        with file.open(encoding="ascii") as lines:
            return tuple(_operations(_calls(lines), folder))


_HEX = r"(?:\\x[0-9a-f]{2})*"
_LINE = re.compile(r"\d+ +(\w+)\((.*)\) += (-?\d+|0x[0-9a-f]+|\?).*")
_DESCRIPTOR = re.compile(rf"(\d+)<({_HEX})>(\(deleted\))?")
#: A path, after the folder that it is relative to where the call has one.
_PATH = re.compile(rf'(?:\w+<({_HEX})>, )?"({_HEX})"')
_STRING = re.compile(rf'"({_HEX})"')


@dataclass(frozen=True)
class _Call:
    name: str
    arguments: str
    result: int

    @property
    def numbers(self) -> list[str]:
        """The last arguments."""
        return self.arguments.rsplit(", ", 3)

    @property
    def data(self) -> bytes:
        """What was written."""
        data = b"".join(_bytes(text) for text in _STRING.findall(self.arguments))[: self.result]
        if len(data) != self.result:
            raise NotModelled(f"strace kept {len(data)} of the {self.result} bytes of a {self.name}")
        return data

    @property
    def paths(self) -> list[Path]:
        """All paths that it is about, those of descriptors among them."""
        if self.name in _ON_DESCRIPTORS:
            found = _DESCRIPTOR.search(self.arguments)
            return [_path(found[2])] if found else []
        named = [Path.cwd() / _path(base) / _path(path) for base, path in _PATH.findall(self.arguments)]
        return named or [_path(path) for _, path, _ in _DESCRIPTOR.findall(self.arguments)]


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _path(text: str) -> Path:
    return Path(_bytes(text).decode())


def _calls(lines: Iterable[str]) -> Iterator[_Call]:
    """Calls that succeeded, in the order in which they returned."""
    begun: dict[str, str] = {}
    for line in lines:
        process, rest = line.rstrip("\n").split(maxsplit=1)
        if rest.startswith(("+++", "---")):
            continue
        if rest.endswith("<unfinished ...>"):
            begun[process] = line.rstrip("\n").removesuffix("<unfinished ...>")
            continue
        whole = begun.pop(process) + rest.split(" resumed>", 1)[1] if rest.startswith("<... ") else line
        call = _LINE.match(whole)
        if call is None:
            raise NotModelled(f"strace wrote a line that is not understood: {line[:200]}")
        if call[3] != "?" and not call[3].startswith("-"):
            yield _Call(call[1], call[2], int(call[3], 0))


def _operations(calls: Iterable[_Call], folder: Path) -> Iterator[Operation]:
    """What the calls did in a folder and to the standard output."""
    positions: dict[int, int] = {}
    for call in calls:
        descriptor = _DESCRIPTOR.search(call.arguments)
        number = int(descriptor[1]) if descriptor else -1
        if call.name == "write" and number == 1:
            yield Say(call.data.decode())
            continue
        inside = [path.is_relative_to(folder) for path in call.paths]
        if not any(inside):
            continue
        refused = NotModelled(f"{call.name}({', '.join(map(str, call.paths))}) is not modelled: {call.numbers[1:]}")
        if call.name in _REFUSED or not all(inside) or (descriptor and descriptor[3]):
            raise refused
        path, *others = (path.relative_to(folder) for path in call.paths)
        match call.name:
            case "open" | "openat" | "creat":
                positions[call.result] = 0
                if re.search("O_D?SYNC|O_TMPFILE|O_APPEND", call.arguments):
                    raise refused
                if call.name == "creat" or re.search("O_CREAT|O_TRUNC", call.arguments):
                    yield Open(path, call.name == "creat" or "O_TRUNC" in call.arguments)
            case "lseek":
                positions[number] = call.result
            case "write":
                yield Write(path, positions[number], call.data)
                positions[number] += call.result
            case "pwrite64":
                yield Write(path, int(call.numbers[-1]), call.data)
            case "ftruncate":
                yield Resize(path, int(call.numbers[-1]))
            case "mmap":
                if "PROT_WRITE" in call.arguments and "MAP_SHARED" in call.arguments:
                    if not path.name.endswith(_MAPPED):
                        raise NotModelled(f"{path} is mapped: it can be written without a call")
                    yield Map(path)
            case "fsync" | "fdatasync":
                yield Sync(call.name, path)
            case "mkdir" | "mkdirat":
                yield MakeFolder(path)
            case "rename" | "renameat":
                if path.parent != others[0].parent:
                    raise refused
                yield Rename(path, others[0])
            case "unlink" | "unlinkat":
                if "AT_REMOVEDIR" in call.arguments:
                    raise refused
                yield Remove(path)
