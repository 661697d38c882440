"""Nothing of what people did leaves a device but through the scalars: a test that reads all that is sent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from federation import Peer, Processes, assert_equal_replicas, broker, finish, processes  # noqa: F401
from tiny import write_requests

from fedspzo.broker.mqtt.embedded import EmbeddedBroker
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.codec import decode
from fedspzo.device_runtime.protocol.messages import Result
from fedspzo.device_runtime.protocol.signing import SIGNATURE_BYTES

WORDS = ("wake", "six", "alarm", "music", "call")


def write_reactions(path: Path, count: int) -> Path:
    """Reactions for devices, labels for the server's held-out file."""
    if path.stem == "held-out":
        return write_requests(path, count)
    lines = [
        {"text": "wake me at six", "shown": ("alarm", "music")[n % 2], "reward": 1 - 2 * (n % 2)} for n in range(9)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["robust", "secure"])
def test_what_is_sent(
    processes: Processes,  # noqa: F811
    broker: EmbeddedBroker,  # noqa: F811
    bundle: Bundle,
    tmp_path: Path,
    mode: str,
) -> None:
    processes.write = write_reactions
    names = {f"device-{n}" for n in range(4)}
    listener = Peer(broker, "listener", ["#"], tmp_path / "listener", bundle)
    for name in names:
        processes.device(name)
    server = processes.server("--rounds", "3", "--cohort", "4", "--objective", "reward", "--mode", mode)
    _, last, _ = finish(server)
    listener.close()
    assert_equal_replicas(bundle, tmp_path, last, names)
    sent = [payload for topic, payload in listener.received]
    assert sent
    assert not [word for payload in sent for word in WORDS if word.encode() in payload]
    results = []
    for payload in sent:
        try:
            message = decode(payload[:-SIGNATURE_BYTES])
        except Exception:  # a login, or what is signed otherwise
            continue
        if isinstance(message, Result):
            results.append(message)
            assert len(payload) <= 128 + 4 * len(message.scalars)
    assert bool(results) == (mode == "robust")
