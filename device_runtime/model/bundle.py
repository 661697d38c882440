"""The bundle: a folder with everything a device needs of a model (manifest, graphs, weights, tokenizer, task).

Opening a bundle checks its files against the manifest, so that what runs later is what was exported. The frozen base,
most of a large bundle, is checked before it is first read: a process whose packed files are there never reads it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from fedspzo.device_runtime.errors import BundleError
from fedspzo.device_runtime.model.manifest import BASE, MANIFEST, WEIGHTS, TensorSpec
from fedspzo.device_runtime.model.manifest_reader import FILE_NAME, MANIFEST_BYTES, parse_manifest
from fedspzo.device_runtime.model.stored import Stored, layout, view
from fedspzo.device_runtime.model.tensor_file import TensorFile

#: Says where the original model was at the export. It stays on that machine: the manifest does not list it, and a
#: server does not hand it out.
SOURCE = "source.txt"


class Bundle:
    """An opened bundle: its manifest, and its weights by mmap."""

    def __init__(self, folder: Path | str) -> None:
        """Open and check a bundle.

        Raises:
            BundleError: a file is missing, truncated, altered, or of a version this runtime does not know.
        """
        self.folder = Path(folder)
        self._seen = self._version()
        text = self._read_manifest()
        self._hash = _text_hash(text)
        self.manifest = parse_manifest(self.folder, text)
        self._unchecked = {BASE} & self.manifest.files.keys()
        for name, expected in self.manifest.files.items():
            if name not in self._unchecked:
                self._check_file(name, expected)
        #: 32 bytes that are equal where bundles can train together.
        self.identity = self.manifest.identity()
        self.weights = TensorFile(self.folder / WEIGHTS)
        self._base = TensorFile(self.folder / BASE) if self._unchecked else None
        graphs_alone = self.manifest.constants if self._base is None else frozenset()
        for index, tensor in enumerate(self.manifest.tensors):
            file = self._file_of(tensor)
            for name, expected_array in layout(tensor.name, tensor.shape, tensor.dtype).items():
                if index in graphs_alone and name not in file:
                    continue
                if (file.shape(name), file.dtype(name)) != expected_array:
                    raise BundleError(
                        "bundle.weights-mismatch",
                        f"{self.folder} has a tensor '{name}' that differs from its manifest; export the bundle again",
                    )

    def replaced(self) -> bool:
        """Whether the folder has another bundle by now, or none; each is told once."""
        version = self._version()
        if version == self._seen:
            return False
        self._seen = version
        try:
            return _text_hash(self._read_manifest()) != self._hash
        except BundleError:
            return True

    @property
    def source(self) -> str:
        """Where the original model was at the export, as a path or a hub id; "" when that is not known here."""
        file, model = self.folder / SOURCE, self.manifest.model
        if file.is_file():
            return file.read_text(encoding="utf-8", errors="replace")
        return model.get("source") or model.get("hub", "")  # older bundles have it in the manifest

    @cached_property
    def formats(self) -> tuple[str, ...]:
        """Formats that every graph has a file of."""
        graphs = [
            graph for shape in (*self.manifest.shapes, *self.manifest.continuations) for graph in shape.graphs.values()
        ]
        return tuple(name for name in graphs[0].files if all(name in graph.files for graph in graphs))

    def tensor(self, index: int) -> Stored:
        """A tensor as the bundle has it, over the mapped file. Raises BundleError when only graphs have it."""
        spec = self.manifest.tensors[index]
        return view(self.tensor_file(spec), spec.name, spec.dtype)

    def let_go(self, indices: Iterable[int]) -> None:
        """Let go of the pages that views of some tensors have in memory; they are read again when touched."""
        for spec in (self.manifest.tensors[index] for index in indices):
            file = self._file_of(spec)
            for name in layout(spec.name, spec.shape, spec.dtype):
                if name in file:
                    file.let_go(name)

    def tensor_file(self, spec: TensorSpec) -> TensorFile:
        """The file that a tensor lies in. Raises BundleError where it is the base, and altered."""
        file = self._file_of(spec)
        if file is self._base:
            self.check_base()
        return file

    def check_base(self) -> None:
        """Check the frozen base against the manifest, once. Raises BundleError when it was truncated or altered."""
        for name in self._unchecked:
            self._check_file(name, self.manifest.files[name])
        self._unchecked = set()

    def _file_of(self, spec: TensorSpec) -> TensorFile:
        return self.weights if self._base is None or spec.name in self.weights else self._base

    def _version(self) -> tuple[int, int, int] | None:
        """What changes with the manifest; None where the folder lacks it."""
        try:
            status = (self.folder / MANIFEST).stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def _read_manifest(self) -> str:
        try:
            with (self.folder / MANIFEST).open("rb") as file:
                return file.read(MANIFEST_BYTES + 1).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = "there is no manifest.json in it" if isinstance(error, FileNotFoundError) else str(error)
            raise BundleError(
                "bundle.not-a-bundle", f"{self.folder} is not a bundle ({reason}); make one with: fedspzo export"
            ) from None

    def _check_file(self, name: str, expected: str) -> None:
        path = self.folder / name
        try:
            if not FILE_NAME.fullmatch(name) or (path.exists() and not path.is_file()):
                raise BundleError(
                    "bundle.foreign-file",
                    f"{self.folder / MANIFEST} lists {name!r}, which is not a file of a bundle; get or export it again",
                )
            found = file_hash(path)
        except OSError as error:
            raise BundleError(
                "bundle.file-unreadable", f"{path} cannot be read ({error.strerror}); get or export the bundle again"
            ) from None
        if found != expected:
            raise BundleError(
                "bundle.file-altered", f"{path} was truncated or altered after the export; get the bundle again"
            )


def _text_hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
