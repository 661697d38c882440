"""A device's examples: JSON lines in, tokenised once, batches out. They never leave the device."""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from device_runtime.bundle import TOKENIZER, Bundle
from device_runtime.errors import DataError
from device_runtime.task import Task
from device_runtime.tensors import replace_durably

#: Half a character, which JSON can write and no encoding can.
_SURROGATE = re.compile("[\ud800-\udfff]")


class Encoder:
    """Turns the fields of an example into token ids that fit the bundle's length."""

    def __init__(self, bundle: Bundle) -> None:
        from tokenizers import Tokenizer  # loaded only where text is encoded: a device with a token cache needs none

        self._tokenizer = Tokenizer.from_file(str(bundle.folder / TOKENIZER))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._task = bundle.manifest.task
        self._length = bundle.manifest.length

    def encode(self, fields: Mapping[str, str]) -> tuple[list[int], bool]:
        """Token ids of the filled-in template, and whether a field had to be cut to fit.

        Only fields are cut, from the end of the longest; the template's own text stays whole.

        Raises:
            DataError: the template alone is longer than the limit.
        """
        kept = dict(fields)
        ids = self._ids(kept)
        excess = len(ids) - self._length
        while excess > 0:
            spans = {name: self._spans(kept[name]) for name in self._task.fields}
            longest = max(spans, key=lambda name: len(spans[name]))
            if not spans[longest]:
                raise DataError(
                    f"the template of task '{self._task.name}' needs more than {self._length} tokens by itself;"
                    " export with a larger --max-length"
                )
            keep = max(0, len(spans[longest]) - excess)
            kept[longest] = kept[longest][: spans[longest][keep - 1][1]] if keep else ""
            ids = self._ids(kept)
            excess = len(ids) - self._length
        return ids, kept != dict(fields)

    def _ids(self, fields: Mapping[str, str]) -> list[int]:
        return list(self._tokenizer.encode(self._task.render(fields)).ids)

    def _spans(self, text: str) -> list[tuple[int, int]]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).offsets)


@dataclass(frozen=True)
class DataStore:
    """Tokenised examples.

    Attributes:
        ids: int32 [examples, length], zero after each example's end.
        lengths: int32 [examples].
        labels: int32 [examples], indices into the task's labels.
        truncated: how many examples were cut to fit.
    """

    ids: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    truncated: int

    def __len__(self) -> int:
        return len(self.labels)

    def sample(self, seed: int, count: int) -> np.ndarray:
        """Indices of ``count`` examples (or all, if fewer) drawn without replacement, the same for the same seed."""
        draws = np.random.Philox(key=np.array([seed, 0], np.uint64), counter=0).random_raw(len(self))
        return np.argsort(draws, kind="stable")[:count]


def load_data(path: Path, bundle: Bundle, cache: Path | None = None) -> DataStore:
    """Read a JSON-lines file: each line an object with the template's fields and ``label``.

    Args:
        path: the file.
        bundle: gives the task and the tokenizer.
        cache: where to keep the tokens; reused while file and bundle stay the same.

    Raises:
        DataError: the file cannot be read, has no examples, or a line is not an example of the task.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    key = hashlib.sha256(hashlib.sha256(text).digest() + bundle.identity).hexdigest()
    if cache is not None and (stored := _read_cache(cache, key)) is not None:
        return stored
    examples = list(_parse(path, text, bundle.manifest.task))
    if not examples:
        raise DataError(f"{path} has no examples; give one JSON object a line")
    store = tokenise(bundle, examples)
    if cache is not None:
        _write_cache(cache, key, store)
    return store


def tokenise(bundle: Bundle, examples: Sequence[tuple[Mapping[str, str], int]]) -> DataStore:
    """A store of examples, each its fields and the index of its label.

    Raises:
        DataError: the task's template alone is longer than the bundle's length.
    """
    encoder = Encoder(bundle)
    encoded = [encoder.encode(fields) for fields, _ in examples]
    ids = np.zeros((len(examples), bundle.manifest.length), np.int32)
    for row, (tokens, _) in zip(ids, encoded, strict=True):
        row[: len(tokens)] = tokens
    return DataStore(
        ids=ids,
        lengths=np.array([len(tokens) for tokens, _ in encoded], np.int32),
        labels=np.array([label for _, label in examples], np.int32),
        truncated=sum(cut for _, cut in encoded),
    )


def _parse(path: Path, text: bytes, task: Task) -> Iterator[tuple[dict[str, str], int]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise DataError(f"{where} is not JSON") from None
        if not isinstance(record, dict):
            raise DataError(f"{where} is not a JSON object")
        for field in (*task.fields, "label"):
            if not isinstance(record.get(field), str):
                raise DataError(f"{where} lacks the text field '{field}', which task '{task.name}' needs")
            if _SURROGATE.search(record[field]):
                raise DataError(f"{where}: the field '{field}' is not valid Unicode text")
        try:
            yield {field: record[field] for field in task.fields}, task.label_index(record["label"])
        except DataError as error:
            raise DataError(f"{where}: {error}") from None


def _read_cache(cache: Path, key: str) -> DataStore | None:
    try:
        with np.load(cache) as arrays:
            if str(arrays["key"]) != key:
                return None
            return DataStore(arrays["ids"], arrays["lengths"], arrays["labels"], int(arrays["truncated"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write_cache(cache: Path, key: str, store: DataStore) -> None:
    partial = cache.with_name(cache.name + ".partial")
    with partial.open("wb") as file:
        np.savez(file, key=key, ids=store.ids, lengths=store.lengths, labels=store.labels, truncated=store.truncated)
        file.flush()
        os.fsync(file.fileno())
    replace_durably(partial, cache)
