"""Inputs from outside with one to three things wrong with them, and programs that read them."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from fedspzo.commands import inspect
from fedspzo.device_runtime.errors import FedSPZOError
from fedspzo.device_runtime.model.manifest import MANIFEST
from fedspzo.device_runtime.model.tensor_file import TensorFile

#: What may stand in the place of anything.
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e308, float("inf"), float("nan")),
    *(
        "",
        "x",
        "../x",
        "/dev/zero",
        "\x1b[2J",
        "\ud800",
        "\0",
        "{",
        "{text}",
        "{mask}",
        "{0}",
        "int4",
        "hidden",
        "none",
    ),
    *([], {}, [[]], [0], [-1], ["a"], {"a": 1}, [1, 2, 3], {"": []}, "y" * 5000, list(range(300))),
)
Mutate = Callable[[bytes, Random], bytes]


def mutated_json(text: bytes, random: Random) -> bytes:
    """A JSON object with values replaced, dropped, repeated, renamed, exchanged, or nudged."""
    record = json.loads(text)
    for _ in range(random.randint(1, 3)):
        if nodes := list(_nodes(record)):
            _mutate(*random.choice(nodes), nodes, random)
    return json.dumps(record).encode()


def mutated_bytes(text: bytes, random: Random) -> bytes:
    """Bytes with some flipped, cut out, put in or repeated."""
    data = bytearray(text)
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(data) + 1)
        to = min(len(data), at + random.choice([1, 1, 2, 8, 100]))
        data[at:to] = random.choice(
            [b"", bytes(255 - byte for byte in data[at:to]), random.randbytes(to - at), data[at:to] * 2, b"9" * 5000]
        )
    return bytes(data)


def mutated_text(text: bytes, random: Random) -> bytes:
    """Either, four times of five by its JSON."""
    return (mutated_json if random.random() < 0.8 else mutated_bytes)(text, random)


def mutated_tensors(data: bytes, random: Random) -> bytes:
    """A safetensors file whose header, its length, or the whole is mutated."""
    length = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + length], data[8 + length :]
    kind = random.random()
    if kind < 0.1:
        return mutated_bytes(data, random)
    if kind < 0.2:
        return random.choice([0, 1, 2**63, 2**64 - 1, len(data), len(data) - 8]).to_bytes(8, "little") + data[8:]
    header = mutated_text(header, random)
    return len(header).to_bytes(8, "little") + header + rest


class Inspection:
    """Writes manifests into a bundle's folder, and inspects it as ``fedspzo inspect`` does."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        parser = argparse.ArgumentParser()
        inspect.configure(parser)
        self._options = parser.parse_args([str(folder)])

    def __call__(self, manifest: bytes) -> str:
        """The kind of the error, "" where there is none. Raises whatever else the command raises."""
        (self._folder / MANIFEST).write_bytes(manifest)
        printed = io.TextIOWrapper(io.BytesIO(), "utf-8")
        with contextlib.redirect_stdout(printed):
            try:
                inspect.run(self._options)
            except FedSPZOError as error:
                str(error).encode()  # as a terminal wants it
                return error.kind
        return ""


def read_tensors(path: Path, data: bytes) -> str:
    """Write and read a tensor file: the kind of the error, "" where there is none."""
    path.write_bytes(data)
    try:
        file = TensorFile(path)
        for name in file.names:
            assert file.view(name).shape == file.shape(name)
    except FedSPZOError as error:
        str(error).encode()
        return error.kind
    return ""


def _nodes(value: Any) -> Any:
    """(container, key) of everything in a JSON value."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _nodes(value[key])


def _mutate(container: Any, key: Any, nodes: list[tuple[Any, Any]], random: Random) -> None:
    value = container[key]
    match random.randrange(7):
        case 0:
            container[key] = random.choice(ODD)
        case 1:
            del container[key]
        case 2 if isinstance(container, list):
            container.insert(key, value)
        case 2:
            container[str(random.choice(ODD))[:9]] = container.pop(key)
        case 3:
            other, its = random.choice(nodes)
            container[key] = json.loads(json.dumps(other[its]))
        case 4 if isinstance(value, (int, float)):
            container[key] = random.choice([-value, value + 1, value - 1, value * 1000, not value, str(value)])
        case 5:
            container[key] = [value]
        case _:
            container[key] = json.dumps(value)
