"""One login that floods a job: messages as fast as a rate allows, at the lowest priority, until it is terminated.

``benchmarks/flood.py`` and tests start it. It prints a JSON line each time that it connects, and when it is cut off.

    python benchmarks/flooder.py ACCESS --job load --bundle-identity HEX --kind sync --bytes-per-second 200000
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path

import cbor2
import paho.mqtt.client as mqtt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from paho.mqtt.enums import CallbackAPIVersion

from fedspzo.device_runtime.link.access import Access
from fedspzo.device_runtime.protocol.codec import encode
from fedspzo.device_runtime.protocol.masked import Inquiry, Masked, Partner, Ready
from fedspzo.device_runtime.protocol.messages import EntryBatch, Message, Presence, Result, Sync
from fedspzo.device_runtime.protocol.signing import Scope
from fedspzo.device_runtime.protocol.topics import Topics
from fedspzo.device_runtime.replica.chain import EMPTY

KINDS = ("sync", "session", "result", "batch", "presence", "pattern", "noise", "ready", "masked", "inquiry")


class Flooder:
    """A device of the job that says the same again and again."""

    def __init__(self, access: Access, job: str, bundle: bytes) -> None:
        self._name, self._bundle, self._topics = access.user, bundle, Topics(job)
        self._key = Ed25519PrivateKey.generate()
        self._public = self._key.public_key().public_bytes_raw()
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=self._name, protocol=mqtt.MQTTv311)
        self.client.username_pw_set(access.user, access.password)
        self.client.on_connect = lambda *found: print(json.dumps({"connected": not found[3].is_failure}), flush=True)
        self.client.on_disconnect = lambda *_: print(json.dumps({"cut": True}), flush=True)
        self.client.connect_async(access.host, access.port)
        self.client.loop_start()

    def sign(self, message: Message) -> bytes:
        """A message and its signature."""
        payload = encode(message)
        return payload + self._key.sign(Scope(self._topics.job, self._bundle, self._name).text(payload))

    def sync(self, session: int = 1) -> bytes:
        """It stands at the start, and wants all of the journal; it takes part in no round, so none waits for it."""
        return self.sign(Sync(self._public, session, self._bundle, 0, EMPTY, 5, 1.0, True, False))

    def maker(self, kind: str) -> tuple[str, Callable[[], bytes]]:
        """The topic of a kind of flood, and what makes its next message."""
        up = self._topics.up(self._name)
        if kind == "session":
            return up, lambda: self.sync(secrets.randbits(60))
        if kind == "presence":
            return self._topics.state(self._name), lambda: self.sign(Presence(bool(secrets.randbits(1)), 1))
        if kind == "noise":
            return up, lambda: secrets.token_bytes(60_000)
        same = {
            "sync": lambda: self.sync(),
            "result": lambda: self.sign(Result(1, bytes(8), (1.0,) * 200, 1.0, 4, 0.1, bytes(16))),
            "batch": lambda: self.sign(EntryBatch((secrets.token_bytes(200),) * 200)),
            # For a job whose results are summed. The signature in a Ready has to be checked, and is wrong.
            "ready": lambda: self.sign(
                Ready(1, bytes(8), b"", (Partner(self._public, secrets.token_bytes(32), bytes(64)),))
            ),
            "masked": lambda: self.sign(Masked(1, 1, bytes(60_000))),
            "inquiry": lambda: self.sign(Inquiry(tuple(secrets.token_bytes(16) for _ in range(3_000)))),
            # What a decoder of any CBOR compiles as a pattern.
            "pattern": lambda: cbor2.dumps(cbor2.CBORTag(35, "(a?){200}" * 2300)) + bytes(64),
        }[kind]()
        return up, lambda: same


def main() -> None:
    """Flood."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("access", type=Path, help="JSON of its access")
    parser.add_argument("--job", default="default")
    parser.add_argument("--bundle-identity", required=True, metavar="HEX")
    parser.add_argument("--kind", choices=KINDS, default="sync")
    parser.add_argument("--bytes-per-second", type=float, default=200_000.0)
    options = parser.parse_args()
    os.nice(19)
    flooder = Flooder(
        Access(**json.loads(options.access.read_bytes())), options.job, bytes.fromhex(options.bundle_identity)
    )
    topic, make = flooder.maker(options.kind)
    flooder.client.publish(f"fl/v1/{options.job}/up/{flooder._name}", flooder.sync(), qos=1)
    started, sent = time.monotonic(), 0
    while True:
        if not flooder.client.is_connected():
            time.sleep(0.1)
            started, sent = time.monotonic(), 0
            continue
        if flooder.client.socket() is not None:
            flooder.client.socket().setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        payload = make()
        flooder.client.publish(topic, payload, qos=0)
        sent += len(payload)
        time.sleep(max(0.0, started + sent / options.bytes_per_second - time.monotonic()))


if __name__ == "__main__":
    main()
