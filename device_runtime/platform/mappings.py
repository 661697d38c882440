"""Files that are mapped into this process: where they lie, and whose pages are in memory."""

from __future__ import annotations

import ctypes
import mmap
import os
from ctypes import c_int, c_long, c_size_t, c_void_p
from functools import lru_cache
from pathlib import Path

_MAPS = Path("/proc/self/maps")
_MAP_FIXED = 0x10
_FAILED = c_void_p(-1).value


@lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (c_void_p, c_size_t, c_int)
    libc.mprotect.argtypes = (c_void_p, c_size_t, c_int)
    libc.mmap.argtypes = (c_void_p, c_size_t, c_int, c_int, c_int, c_long)
    libc.mmap.restype = c_void_p
    return libc


def let_go(address: int, size: int) -> None:
    """Let go of the pages of a mapped file; they are read again when they are touched."""
    start = address // mmap.PAGESIZE * mmap.PAGESIZE
    _libc().madvise(start, address + size - start, mmap.MADV_DONTNEED)


def let_go_in(folder: Path) -> None:
    """Let go of the pages of all mapped files of a folder. Where there is no ``/proc`` nothing happens."""
    place = folder.resolve()
    for start, size, fields in _mapped():
        if len(fields) == 6 and Path(fields[5]).parent == place:
            let_go(start, size)


def mappings_of(descriptor: int) -> set[tuple[int, int]]:
    """Address and size of each mapping of all of an open file.

    Files are told apart by their names: btrfs and overlayfs give ``fstat`` another device than ``/proc/self/maps``.
    """
    if not _MAPS.exists():
        return set()
    name = os.readlink(f"/proc/self/fd/{descriptor}").replace("\n", "\\012")
    needed = os.fstat(descriptor).st_size
    return {
        (start, size)
        for start, size, fields in _mapped()
        if len(fields) == 6 and fields[5] == name and int(fields[2], 16) == 0 and size >= needed
    }


def memory_files(name: str) -> dict[int, tuple[int, int]]:
    """Address and size of files in memory of a name that are mapped whole and once, by their inodes."""
    found: dict[int, list[tuple[int, int, int]]] = {}
    for start, size, fields in _mapped():
        if len(fields) == 6 and fields[5].startswith(f"/memfd:{name}"):
            found.setdefault(int(fields[4]), []).append((start, size, int(fields[2], 16)))
    return {inode: (start, size) for inode, ((start, size, offset), *more) in found.items() if not (more or offset)}


def make_writable(address: int, size: int) -> bool:
    """Whether a mapping could be made so."""
    return not _libc().mprotect(address, size, mmap.PROT_READ | mmap.PROT_WRITE)


def replace(address: int, size: int, descriptor: int) -> None:
    """Have another file, to be read alone, lie where one is mapped. Raises OSError when the system refuses."""
    found = _libc().mmap(address, size, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, descriptor, 0)
    if found == _FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _mapped() -> list[tuple[int, int, list[str]]]:
    """Of each mapping its address, its size, and its line's fields."""
    if not _MAPS.exists():
        return []
    found = []
    for line in _MAPS.read_text(errors="surrogateescape").split("\n")[:-1]:
        fields = line.split(maxsplit=5)
        start, stop = (int(address, 16) for address in fields[0].split("-"))
        found.append((start, stop - start, fields))
    return found
