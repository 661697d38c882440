"""Downloads that survive a broken network, a killed program and a power cut; the bundle of a server, file by file.

What has arrived lies in ``NAME.part``, and which version of the file it is of (its entity tag) in ``NAME.part.etag``. A
file gets its name when it is whole, checked and on disk.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fedspzo.device_runtime.device.transfer import STRONG, DownloadError, MissingError, RemoteFile, Transfer
from fedspzo.device_runtime.errors import BundleError
from fedspzo.device_runtime.files import PUBLIC, cure, lock_folder, move_into_place, write_atomically
from fedspzo.device_runtime.model.bundle import Bundle, file_hash
from fedspzo.device_runtime.model.manifest import MANIFEST
from fedspzo.device_runtime.model.manifest_reader import FILE_NAME, MANIFEST_BYTES, parse_manifest
from fedspzo.device_runtime.protocol.signing import PIN, write_pin

#: Most bytes of a public key.
_PIN_BYTES = 1 << 10


def download(
    url: str,
    path: Path,
    expected_sha256: str | None = None,
    authority: str = "",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    size: int | None = None,
    mode: int = PUBLIC,
) -> int:
    """Download a file, or what is missing of it; ``path`` is replaced once all is there. One process at a time.

    Args:
        expected_sha256: of the file, in hexadecimal; None takes what comes.
        authority: the only certificates to trust (PEM text), in place of the system's.
        on_progress: told the bytes that are there and those of the whole file, as they arrive.
        size: bytes that the file was announced to have; None takes what the server says.
        mode: who may read it.

    Returns:
        Bytes received, fewer than the file's when a part of it was there.

    Raises:
        MissingError: the server does not have it.
        DownloadError: the server cannot be reached or trusted (what has arrived is kept, where it can be
            continued), the file has another size or is not the expected one, or the disk refuses or has no room.
    """
    source = RemoteFile.parse(url, authority)
    part, note = _partial(path)

    def keep(tag: str) -> None:
        write_atomically(note, tag.encode("latin-1"))

    def accept(done: int, total: int) -> None:
        if size not in (None, total):
            os.truncate(part, 0)
            raise DownloadError(
                "download.other-size",
                f"{url} has {total} bytes, and {size} were announced; try again, and if that fails, tell the server's"
                " operator",
            )
        if total - done > (room := shutil.disk_usage(path.parent).free):
            raise DownloadError(
                "download.no-room",
                f"{url} has {total} bytes, and there is room for {room} in {path.parent}; make room on the disk",
            )

    with _writing(path):
        try:
            with open(part, "a+b", opener=lambda name, flags: os.open(name, flags, mode)) as file:
                transfer = Transfer(source, file, _tag(note), accept, on_progress, keep)
                transfer.run()
            if expected_sha256 not in (None, file_hash(part)):
                os.truncate(part, 0)
                raise DownloadError(
                    "download.altered",
                    f"{url} is not the file that the manifest names (its SHA-256 differs) and was removed; try again,"
                    " and if that fails, tell the server's operator",
                )
            move_into_place(part, path)
        finally:
            if not (part.exists() and part.stat().st_size and STRONG.fullmatch(_tag(note))):
                discard(path)
    return transfer.received


def discard(path: Path) -> None:
    """Remove what has arrived of a file that is not downloaded on."""
    for file in _partial(path):
        file.unlink(missing_ok=True)


def _partial(path: Path) -> tuple[Path, Path]:
    """What has arrived of a file, and the entity tag of its version."""
    return path.with_name(path.name + ".part"), path.with_name(path.name + ".part.etag")


def _tag(note: Path) -> str:
    return note.read_text(encoding="latin-1") if note.exists() else ""


def read(url: str, limit: int, authority: str = "") -> bytes:
    """The content of a small file, of ``limit`` bytes at most. Raises as :func:`download` does."""

    def accept(done: int, total: int) -> None:
        if total > limit:
            raise DownloadError(
                "download.too-large", f"{url} has {total} bytes, more than the {limit} allowed; check the URL"
            )

    file = io.BytesIO()
    Transfer(RemoteFile.parse(url, authority), file, accept=accept).run()
    return file.getvalue()


@dataclass(frozen=True)
class Fetched:
    """A bundle from a server.

    Attributes:
        bundle: the bundle, opened and so checked.
        received: bytes of its files that had to be downloaded.
    """

    bundle: Bundle
    received: int


def fetch_bundle(
    url: str,
    folder: Path,
    authority: str = "",
    on_progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> Fetched:
    """Get the bundle of a server, or what of it has changed or is missing in ``folder``.

    The manifest is written last: until all is there, the folder is not a bundle.

    Args:
        url: of the server's HTTP endpoint.
        authority: the only certificates to trust (PEM text), in place of the system's.
        on_progress: told a file's name, the bytes of it that are there, and all it has.

    Raises:
        DownloadError: something cannot be downloaded, or is not what the manifest lists.
        BundleError: it is not a bundle that this runtime knows, or the folder's belongs to another server.
        StateError: the folder is in use or cannot be made.
    """
    place = url.rstrip("/") + "/bundle/"
    with lock_folder(folder, private=False), _writing(folder):
        content = read(place + MANIFEST, MANIFEST_BYTES, authority)
        announced = parse_manifest(folder, content.decode("utf-8", "replace"))
        files = announced.files
        for name in files:
            if not FILE_NAME.fullmatch(name) or name.lower() in (MANIFEST, PIN):
                raise BundleError(
                    "download.foreign-file",
                    f"{place}{MANIFEST} lists '{name}', which is not a file of a bundle; use another server",
                )
        _pin(place, folder, authority)
        manifest = folder / MANIFEST
        if manifest.exists() and manifest.read_bytes() != content:
            manifest.unlink()
        received = 0
        for name, expected in files.items():
            path = folder / name
            if not path.is_file() or file_hash(path) != expected:
                received += download(
                    place + name, path, expected, authority, partial(on_progress, name), announced.sizes.get(name)
                )
        write_atomically(manifest, content, PUBLIC)
        try:
            return Fetched(Bundle(folder), received)
        except BundleError:
            manifest.unlink()
            raise


def _pin(place: str, folder: Path, authority: str) -> None:
    """Note the server's public key, where it has one. Raises BundleError when the folder has another's."""
    try:
        text = read(place + PIN, _PIN_BYTES, authority)
    except MissingError:
        return
    try:
        key = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        raise DownloadError("download.not-a-key", f"{place}{PIN} is not a public key; check the URL") from None
    write_pin(folder, key)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say in a sentence that the disk refuses."""
    try:
        yield
    except OSError as error:
        raise DownloadError(
            "download.unwritable", f"{path} cannot be written ({error.strerror}); {cure(error)}"
        ) from None
