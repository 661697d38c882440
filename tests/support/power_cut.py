"""What a disk may hold after a cut of power: a program's file operations, recorded, and undone in part.

A killed process leaves the page cache behind; a cut of power does not. Here only what POSIX promises has survived: a
file's bytes and size up to its last fsync or fdatasync, and a folder's names up to the last fsync of that folder. Of
what came later,

- each write is there, not there or torn (512-byte sectors of it are there), in any combination,
- each change of a file's size has happened or not; a stretch that only its size has reached holds zeros or garbage,
- the first few creations, renames and removals in each folder have happened, however many.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from strace import Kill, MakeFolder, Map, NotModelled, Open, Operation, Remove, Rename, Resize, Say, Sync, Write, trace

SECTOR = 512


@dataclass(frozen=True)
class Recording:
    """What a program did.

    Attributes:
        operations: in order; instant i lies after the first i of them. Paths are relative to the recorded folder.
    """

    operations: tuple[Operation, ...]

    @property
    def instants(self) -> int:
        """The last instant."""
        return len(self.operations)

    def said(self, instant: int) -> list[str]:
        """The whole lines that the program had written to its standard output."""
        text = "".join(operation.text for operation in self.operations[:instant] if isinstance(operation, Say))
        return text.split("\n")[:-1]

    def after_power_cut(self, instant: int, seed: int, into: Path) -> None:
        """Write the folder as the disk may hold it after a cut of power; the seed chooses among the possibilities.

        Args:
            into: a folder that is empty or not there.
        """
        _replay(self.operations[:instant]).survive(Random(seed), into)


def record(command: list[str], folder: Path, kill: Kill | None = None) -> Recording:
    """Run a program and record what it does in a folder, which must be empty and counts as durable itself.

    Args:
        kill: run it twice; the first time it is killed so.

    Raises:
        NotModelled: strace or the program fails, or the program did what a recording cannot stand for.
    """
    if any(folder.iterdir()):
        raise NotModelled(f"{folder} is not empty")
    killed = trace(command, folder, kill) if kill else ()
    recording = Recording(killed + trace(command, folder))
    _replay(recording.operations).compare(folder)
    return recording


class _File:
    """A file's bytes on the disk, and the changes since."""

    def __init__(self) -> None:
        self.durable = bytearray()
        self.pending: list[Write | Resize] = []
        self.mapped = False

    def sync(self) -> None:
        _carry_out(self.pending, self.durable)
        self.pending.clear()

    def survive(self, chance: Random, path: Path) -> None:
        content = bytearray(self.durable)
        fill = chance.choice((bytes, chance.randbytes))
        # Nothing of it is there, all is, all is torn, or some of each.
        odds = chance.choice(((0.0,), (1.0,), (0.5,), (0.0, 0.5, 1.0)))
        for change in self.pending:
            likely = chance.choice(odds)
            resized = chance.random() < likely
            if isinstance(change, Resize):
                _resize(content, change.size if resized else len(content), bytes)
                continue
            stop = change.offset + len(change.data)
            _resize(content, max(len(content), stop) if resized else len(content), fill)
            starts = [change.offset, *range((change.offset // SECTOR + 1) * SECTOR, stop, SECTOR)]
            for start, end in itertools.pairwise([*starts, stop]):
                end = min(end, len(content))
                if chance.random() < likely and start < end:
                    content[start:end] = change.data[start - change.offset : end - change.offset]
        # What was written through the map is unknown.
        path.write_bytes(chance.randbytes(len(content)) if self.mapped else content)

    def compare(self, path: Path) -> None:
        content = bytearray(self.durable)
        _carry_out(self.pending, content)
        if not self.mapped and path.read_bytes() != content:
            raise NotModelled(f"{path} is not what the recorded calls make of it")


def _carry_out(changes: Iterable[Write | Resize], content: bytearray) -> None:
    for change in changes:
        if isinstance(change, Resize):
            _resize(content, change.size, bytes)
        else:
            stop = change.offset + len(change.data)
            _resize(content, max(len(content), stop), bytes)
            content[change.offset : stop] = change.data


def _resize(content: bytearray, size: int, fill: Callable[[int], bytes]) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(fill(size - len(content)))


_Names = dict[str, "_File | _Folder"]


class _Folder:
    """A folder's names on the disk, those that programs see, and the changes that lie between."""

    def __init__(self) -> None:
        self.durable: _Names = {}
        self.seen: _Names = {}
        self._pending: list[Callable[[_Names], object]] = []

    def enter(self, name: str, node: _File | _Folder) -> None:
        self._change(lambda names: names.update({name: node}))

    def rename(self, old: str, new: str) -> None:
        self._change(lambda names: names.update({new: names.pop(old)}))

    def remove(self, name: str) -> None:
        self._change(lambda names: names.pop(name))

    def _change(self, change: Callable[[_Names], object]) -> None:
        self._pending.append(change)
        change(self.seen)

    def sync(self) -> None:
        self.durable = dict(self.seen)
        self._pending.clear()

    def survive(self, chance: Random, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        names = dict(self.durable)
        for change in self._pending[: chance.randint(0, len(self._pending))]:
            change(names)
        for name, node in names.items():
            node.survive(chance, path / name)

    def compare(self, path: Path) -> None:
        if {entry.name for entry in path.iterdir()} != self.seen.keys():
            raise NotModelled(f"{path} does not hold the names that the recorded calls put there")
        for name, node in self.seen.items():
            node.compare(path / name)


def _replay(operations: Iterable[Operation]) -> _Folder:
    """The recorded folder after some operations."""
    root = _Folder()

    def find(path: Path) -> Any:
        node: Any = root
        for name in path.parts:
            if name not in node.seen:
                raise NotModelled(f"{path} came to be without a recorded call")
            node = node.seen[name]
        return node

    for operation in operations:
        match operation:
            case Sync(path=path):
                find(path).sync()
            case Write(path) | Resize(path):
                find(path).pending.append(operation)
            case Map(path):
                find(path).mapped = True
            case Open(path) if path.name not in find(path.parent).seen:
                find(path.parent).enter(path.name, _File())
            case Open(path, truncate=True):
                find(path).pending.append(Resize(path, 0))
            case MakeFolder(path):
                find(path.parent).enter(path.name, _Folder())
            case Rename(path, target):
                find(path.parent).rename(path.name, target.name)
            case Remove(path):
                find(path.parent).remove(path.name)
    return root
