"""Inputs from outside with one to three things wrong with them, and programs that read them."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import cbor2

from fedspzo.commands import inspect
from fedspzo.device_runtime.errors import FedSPZOError, MessageError
from fedspzo.device_runtime.model.manifest import MANIFEST
from fedspzo.device_runtime.model.tensor_file import TensorFile
from fedspzo.device_runtime.protocol.codec import decode, encode, fingerprint
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.masked import Group, Inquiry, Masked, Partner, Partners, Ready
from fedspzo.device_runtime.protocol.messages import (
    Ack,
    Authorities,
    Decline,
    Dismissal,
    Energy,
    EntryBatch,
    Finish,
    HandOver,
    Hello,
    Keep,
    Offer,
    Presence,
    Rebase,
    Refusal,
    Report,
    Result,
    Sync,
    Wanted,
)
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.protocol.sums import BlockSums, Sums

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
#: What may stand in the place of anything in a message.
_ODD_CBOR: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 23, 24, 255, 2**32, 2**64 - 1, 2**64, -(2**64), 2**4000, 0.5, 1e300, -1e-300),
    *(float("nan"), float("inf"), cbor2.undefined, cbor2.CBORTag(35, "(a*)*b"), cbor2.CBORTag(2, b"9" * 4000)),
    *("", "x", "\x1b[2J", "\0", "y" * 5000, b"", b"1", bytes(4), b"\xff" * 8, b"z" * 40_000),
    *([], {}, [[]], [0], [1] * 3000, [[[[[[[[[[]]]]]]]]]], {"a": 1}, [[n, 2**63, 1.0, 0.0] for n in range(1, 2500)]),
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


def sample_messages(plan: Plan) -> list[bytes]:
    """One message of each kind."""
    entry = Entry(plan, (Contribution("", 1.0, (0.5,) * plan.scalars),))
    sums = Sums(3, plan.distribution, (BlockSums(0, 0, 2, (1.0, 2.0, 3.0)),))
    energy = (Energy(1.0, 0.5, True),)
    partner = Partner(bytes(32), bytes(32), bytes(64), bytes(64))
    messages = (
        plan, entry, Result(1, fingerprint(plan), (0.5,) * plan.scalars, 1.0, 4, 0.1, bytes(16), energy), Ack(1, True),
        Sync(bytes(32), 1, bytes(32), 2, bytes(16), 5, 0.5, True, True), Refusal(bytes(32), 1, "text"), Finish(3),
        Report(1, bytes(16), 1, 2, 3, 4, energy), Presence(True, 9), Hello(), Decline(1, "text", True),
        EntryBatch((encode(entry), encode(entry))), Offer(1, bytes(32), 9, "http://x"), Dismissal(3),
        Rebase(3, bytes(16), sums), Keep(4, 9), Wanted(5), HandOver(bytes(32), b"1" * 32, 7), Authorities((bytes(9),)),
        Ready(1, fingerprint(plan), bytes(16), (partner,)), Group(1, fingerprint(plan), (bytes(16), b"1" * 16)),
        Masked(1, 1, bytes(80)), Inquiry((bytes(16),)), Partners((partner, replace(partner, certificate=b""))),
    )  # fmt: skip
    return [encode(message) for message in messages]


def mutated_message(blob: bytes, random: Random) -> bytes:
    """A message with values replaced, dropped, repeated or exchanged, or with bytes of it changed."""
    if random.random() < 0.3:
        return mutated_bytes(blob, random)
    record = cbor2.loads(blob)
    for _ in range(random.randint(1, 3)):
        if not (nodes := list(_nodes(record))):
            break
        container, key = random.choice(nodes)
        match random.randrange(4):
            case 0:
                container[key] = _copy(random.choice(_ODD_CBOR))
            case 1:
                del container[key]
            case 2:
                other, its = random.choice(nodes)
                container[key] = _copy(other[its])
            case _:
                if isinstance(container, list):
                    container.insert(key, _copy(container[key]))
    return cbor2.dumps(record, canonical=True)


def read_message(blob: bytes) -> str:
    """Decode a message: the kind of the error, "" where there is none."""
    try:
        decode(blob)
    except MessageError as error:
        str(error).encode()
        return error.kind
    return ""


def _copy(value: Any) -> Any:
    """A copy, so that no value holds itself."""
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return dict(value) if isinstance(value, dict) else value


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
