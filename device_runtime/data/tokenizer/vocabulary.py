"""A large vocabulary of byte pairs as sorted arrays in a mapped file: a tenth of the memory that Python's dicts take.

The file is a safetensors file, with the rest of tokenizer.json in its header. With V tokens and M merges:

- sorted by the tokens' CRC-32: ``marks`` (that CRC), ``ids`` and ``ends`` in ``text``, their UTF-8 bytes, int32 [V];
- ``places``, by number: where the token is in that order, or -1, int32;
- sorted: ``pairs`` (the first token's number · 2³² + the second's), int64 [M], and their ``ranks``, int32 [M];
- ``merged``, by rank: the number of the token that the pair becomes, int32.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from fedspzo.device_runtime.data.tokenizer.byte_pairs import Merges, learnt
from fedspzo.device_runtime.data.tokenizer.spec import read
from fedspzo.device_runtime.errors import BundleError
from fedspzo.device_runtime.model.tensor_file import TensorFile, write_tensors

_TYPES: dict[str, np.dtype[Any]] = {
    "pairs": np.dtype("i8"),
    **dict.fromkeys(("marks", "ids", "ends", "places", "ranks", "merged"), np.dtype("i4")),
    "text": np.dtype("u1"),
}


@dataclass(frozen=True)
class Names(Mapping[int, str]):
    """Number → token."""

    places: memoryview
    ends: memoryview
    text: memoryview

    def __getitem__(self, id: int) -> str:
        place = self.places[id] if 0 <= id < len(self.places) else -1
        if place < 0:
            raise KeyError(id)
        return str(self.at(place), "utf-8", "replace")

    def at(self, place: int) -> memoryview:
        """A token's bytes by its place in the order of the file."""
        return self.text[self.ends[place - 1] if place else 0 : self.ends[place]]

    def __iter__(self) -> Iterator[int]:
        return (id for id, place in enumerate(self.places) if place >= 0)

    def __len__(self) -> int:
        return len(self.ends)


@dataclass(frozen=True)
class Ids(Mapping[str, int]):
    """Token → number."""

    names: Names
    marks: memoryview
    ids: memoryview

    def __getitem__(self, token: str) -> int:
        sought = token.encode()
        mark = _mark(sought)
        place = bisect_left(self.marks, mark)
        while place < len(self.marks) and self.marks[place] == mark:
            if self.names.at(place) == sought:
                return int(self.ids[place])
            place += 1
        raise KeyError(token)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names.values())

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Ranks(Mapping[int, int]):
    """Pair → rank."""

    pairs: memoryview
    ranks: memoryview

    def __getitem__(self, pair: int) -> int:
        place = bisect_left(self.pairs, pair)
        if place == len(self.pairs) or self.pairs[place] != pair:
            raise KeyError(pair)
        return int(self.ranks[place])

    def __iter__(self) -> Iterator[int]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)


def open_vocabulary(path: Path) -> Any:
    """What tokenizer.json says, with a mapped vocabulary and merges.

    Raises:
        BundleError: the file is damaged.
    """
    file = TensorFile(path)
    try:
        arrays = {name: file.view(name) for name in _TYPES}
        _check(arrays)
        spec = read(file.metadata["tokenizer"].encode())
        views = {name: array.data for name, array in arrays.items()}
        names = Names(views["places"], views["ends"], views["text"])
        merges = Merges(Ranks(views["pairs"], views["ranks"]), views["merged"])
        spec["model"] |= {"vocab": Ids(names, views["marks"], views["ids"]), "merges": merges}
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(
            "tokenizer.vocabulary-damaged", f"{path} is no vocabulary ({error}); get or export the bundle again"
        ) from None
    for name in _TYPES:
        file.let_go(name)
    return spec


def write_vocabulary(path: Path, source: Path) -> None:
    """Write the vocabulary of a tokenizer.json whose model is one of byte pairs."""
    spec = read(source.read_bytes())
    model = spec["model"]
    ids: dict[str, int] = model.pop("vocab")
    merges = learnt(model.pop("merges"), ids, model.get("continuing_subword_prefix") or "")
    tokens = sorted((_mark(token.encode()), token.encode(), id) for token, id in ids.items())
    places = [-1] * (max(ids.values(), default=-1) + 1)
    for place, (_, _, id) in enumerate(tokens):
        places[id] = place
    pairs = sorted(merges.ranks.items())
    arrays = {
        "pairs": [pair for pair, _ in pairs],
        "marks": [mark for mark, _, _ in tokens],
        "ids": [id for _, _, id in tokens],
        "ends": np.cumsum([len(token) for _, token, _ in tokens]),
        "places": places,
        "ranks": [rank for _, rank in pairs],
        "merged": merges.merged,
        "text": np.frombuffer(b"".join(token for _, token, _ in tokens), "u1"),
    }
    tensors = {name: np.asarray(arrays[name], dtype) for name, dtype in _TYPES.items()}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    write_tensors(path, shapes, tensors.values(), {"tokenizer": json.dumps(spec)}, dtypes=_TYPES)


def _mark(token: bytes) -> int:
    """By what tokens are sorted: their CRC-32, as an int32."""
    return crc32(token) - (1 << 31)


def _check(arrays: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError where a lookup would leave the arrays."""
    for name, dtype in _TYPES.items():
        if arrays[name].dtype != dtype or arrays[name].ndim != 1:
            raise ValueError(f"its {name} are no row of {dtype}")
    tokens, merges = len(arrays["ids"]), len(arrays["pairs"])
    if len(arrays["marks"]) != tokens or len(arrays["ends"]) != tokens or len(arrays["ranks"]) != merges:
        raise ValueError("its rows differ in length")
    ends = arrays["ends"]
    if tokens and (ends[0] < 0 or ends[-1] != len(arrays["text"]) or (np.diff(ends) < 0).any()):
        raise ValueError("its tokens overlap")
    most = len(arrays["places"])
    for name, least, limit in (("ids", 0, most), ("places", -1, tokens), ("ranks", 0, len(arrays["merged"])),
                               ("merged", 0, most)):  # fmt: skip
        if len(arrays[name]) and not least <= arrays[name].min() <= arrays[name].max() < limit:
            raise ValueError(f"its {name} leave its rows")
