"""What a message of Flower holds: our messages, signed, in one direction or the other."""

from __future__ import annotations

from collections.abc import Sequence

from flwr.app import ConfigRecord, RecordDict

from fedspzo.device_runtime.errors import MessageError
from fedspzo.device_runtime.protocol.signing import MAX_SIGNED_BYTES
from fedspzo.device_runtime.protocol.topics import valid_id

#: The record's name in a message of Flower.
RECORD = "fedspzo"
#: Most messages that one of Flower holds.
MOST = 64


def pack(messages: Sequence[bytes], device: str = "") -> RecordDict:
    """The content of a message of Flower; ``device`` is who says it, "" for the server."""
    return RecordDict({RECORD: ConfigRecord({"device": device, "messages": list(messages)})})


def unpack(content: RecordDict) -> tuple[str, list[bytes]]:
    """Who says it, and what: bytes of which nothing is checked but their number and size.

    Raises:
        MessageError: it is not what :func:`pack` gives.
    """
    record = content.get(RECORD)
    device, messages = (record.get("device"), record.get("messages")) if isinstance(record, ConfigRecord) else (0, 0)
    if not (isinstance(device, str) and isinstance(messages, list)) or len(messages) > MOST:
        raise MessageError("message.foreign", "it is not a FedSPZO message")
    if device and not valid_id(device):
        raise MessageError("message.foreign", "it is not a FedSPZO message, for it names no device")
    if not all(isinstance(each, bytes) and len(each) <= MAX_SIGNED_BYTES for each in messages):
        raise MessageError("message.not-signed", "what it holds are not signed messages")
    return device, messages
