"""Many simulated devices in one process: real connections, keys, messages and signatures, but no weights.

Each answers a plan with random scalars, at once or after the seconds that a step would take, sends again until it is
acknowledged, and follows the journal by its hash. Signatures of the server are not checked, and words are sent in sums
as they are, without masks: the server cannot tell. It prints what it has counted as a JSON line now and then, until it
is terminated. ``benchmarks/load.py`` starts it.

    python benchmarks/swarm.py --accesses FILE --job load --bundle-identity HEX
"""

from __future__ import annotations

import argparse
import functools
import heapq
import itertools
import json
import random
import resource
import secrets
import selectors
import socket
import ssl
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt
from cryptography.hazmat.primitives.asymmetric import x25519
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from paho.mqtt.enums import CallbackAPIVersion

from fedspzo.device_runtime.device.outbox import IDLE_S, RESEND_S
from fedspzo.device_runtime.link.access import Access
from fedspzo.device_runtime.privacy.partners import PURPOSE
from fedspzo.device_runtime.privacy.words import pack
from fedspzo.device_runtime.protocol.codec import decode, encode, fingerprint
from fedspzo.device_runtime.protocol.entry import Entry
from fedspzo.device_runtime.protocol.masked import Group, Masked, Partner, Ready
from fedspzo.device_runtime.protocol.messages import Ack, EntryBatch, Hello, Message, Presence, Refusal, Result, Sync
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.protocol.signing import Scope, split
from fedspzo.device_runtime.protocol.topics import Topics
from fedspzo.device_runtime.replica.chain import EMPTY, chain

KEEPALIVE_S = 60
#: Seconds between connections that are opened: none wait for each other, but they do not come in one instant.
CONNECT_EVERY_S = 0.0005
RECONNECT_S = 2.0
REPORT_S = 0.25

# What all devices of the process are sent alike is read once.
read = functools.lru_cache(maxsize=64)(decode)
print_of = functools.lru_cache(maxsize=8)(fingerprint)
extend = functools.lru_cache(maxsize=64)(lambda head, entry: chain(head, encode(entry)))


class Swarm:
    """The loop that all devices share.

    Attributes:
        counts: what happened how often, over all devices.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()

    def wake(self, call: Callable[[float], None], at: float) -> None:
        """Call something of a device at a time of the monotonic clock, with the time then."""
        heapq.heappush(self._timers, (at, next(self._order), call))

    def watch(self, device: Device, connection: Any) -> None:
        """Serve a device's new connection."""
        self._selector.register(connection, selectors.EVENT_READ, device)

    def want_write(self, device: Device, connection: Any, wanted: bool) -> None:
        """Whether a connection has something to write."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if wanted else 0)
        self._selector.modify(connection, events, device)

    def forget(self, connection: Any) -> None:
        """Do not serve a connection any more."""
        self._selector.unregister(connection)

    def run(self) -> None:
        """Serve until the process is terminated."""
        report_at = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= report_at:
                print(json.dumps(self.counts), flush=True)
                report_at = now + REPORT_S
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2](time.monotonic())
            wait = min(self._timers[0][0], report_at) - time.monotonic()
            for key, events in self._selector.select(max(wait, 0.0)):
                key.data.serve(events)


class Device:
    """One device, as :class:`fedspzo.device_runtime.device.agent.Agent` looks from outside."""

    def __init__(
        self,
        swarm: Swarm,
        access: Access,
        secret: str,
        job: str,
        bundle: bytes,
        tls: ssl.SSLContext | None,
        step: float,
    ) -> None:
        self._step = step
        self._swarm, self._access, self._name, self._bundle = swarm, access, access.user, bundle
        self._topics = Topics(job)
        key = bytes.fromhex(secret)
        self._key = Ed25519PrivateKey.from_private_bytes(key) if key else Ed25519PrivateKey.generate()
        self._public = self._key.public_key().public_bytes_raw()
        self._session = secrets.randbits(63)
        self._round, self._head = 0, EMPTY
        self._ahead: Plan | None = None
        self._result: Result | None = None
        self._answer: Result | Ready | Masked | None = None
        self._agreement = x25519.X25519PrivateKey.generate().public_key().public_bytes_raw()
        self._introduced = False
        self._unanswered = False
        self._synced_at = self._spoke_at = 0.0
        self._client = client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=self._name, clean_session=True, protocol=mqtt.MQTTv311
        )
        client.username_pw_set(access.user, access.password)
        if tls is not None:
            client.tls_set_context(tls)
        client.will_set(self._topics.state(self._name), self._sign(Presence(False, self._session)), 1, retain=True)
        client.on_socket_open = self._on_socket_open
        client.on_socket_close = lambda _client, _data, connection: swarm.forget(connection)
        client.on_socket_register_write = lambda _c, _d, connection: swarm.want_write(self, connection, True)
        client.on_socket_unregister_write = lambda _c, _d, connection: swarm.want_write(self, connection, False)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.connect_async(access.host, access.port, keepalive=KEEPALIVE_S)

    def look(self, now: float) -> None:
        """Do what is due by the clock: connect, send a result again, sync, ping."""
        client = self._client
        if client.socket() is None:
            try:
                client.reconnect()
            except OSError as error:
                self._swarm.counts[f"connection refused: {error}"] += 1
                self._swarm.wake(self.look, now + random.uniform(0, RECONNECT_S))
                return
        elif client.is_connected():
            if self._unanswered and now >= self._spoke_at + RESEND_S:
                self._swarm.counts["results sent again"] += 1
                self._send_result(now)
            elif now >= max(self._spoke_at, self._synced_at) + IDLE_S:
                self._sync(now)
        client.loop_misc()
        self._swarm.wake(self.look, now + random.uniform(0.5, 1.0) * RESEND_S / 2)

    def serve(self, events: int) -> None:
        """Read and write what the connection is ready for."""
        client = self._client
        if events & selectors.EVENT_READ:
            client.loop_read()
            while isinstance(connection := client.socket(), ssl.SSLSocket) and connection.pending():
                client.loop_read()
        if events & selectors.EVENT_WRITE and client.socket() is not None:
            client.loop_write()

    def _on_socket_open(self, client: mqtt.Client, userdata: Any, connection: Any) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._swarm.watch(self, connection)

    def _on_connect(self, client: mqtt.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._swarm.counts[f"connection refused: {reason}"] += 1
        else:
            self._swarm.counts["connected"] += 1
            client.subscribe([(topic, 1) for topic in self._subscriptions()])

    def _on_disconnect(self, client: mqtt.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        self._swarm.counts["disconnected"] += 1

    def _on_subscribe(self, client: mqtt.Client, userdata: Any, mid: int, reasons: Any, properties: Any) -> None:
        self._swarm.counts["subscribed"] += 1
        self._publish(self._topics.state(self._name), Presence(True, self._session), retain=True)
        self._sync(time.monotonic())

    def _on_message(self, client: mqtt.Client, userdata: Any, received: mqtt.MQTTMessage) -> None:
        now = time.monotonic()
        message = read(split(bytes(received.payload)))
        self._swarm.counts[f"{type(message).__name__} received"] += 1
        if isinstance(message, Entry):
            self._follow(message, now)
        elif isinstance(message, EntryBatch):
            for signed in message.entries:
                entry = read(split(signed))
                assert isinstance(entry, Entry)
                self._follow(entry, now)
            self._sync(now)
        elif isinstance(message, Plan):
            self._take_plan(message, now)
        elif isinstance(message, Ack):
            self._settle(message.round)
            self._swarm.counts["results counted" if message.counted else "results not counted"] += 1
        elif isinstance(message, Group):
            self._join(message, now)
        elif isinstance(message, Hello):
            self._sync(now)
        elif isinstance(message, Refusal):
            self._swarm.counts[f"refused: {message.reason}"] += 1

    def _subscriptions(self) -> tuple[str, ...]:
        return self._topics.round, self._topics.result, self._topics.down(self._name)

    def _follow(self, entry: Entry, now: float) -> None:
        if entry.round == self._round + 1:
            self._round, self._head = entry.round, extend(self._head, entry)
            self._settle(entry.round)
            ahead, self._ahead = self._ahead, None
            if ahead is not None:
                self._take_plan(ahead, now)
        elif entry.round > self._round + 1 and now >= self._synced_at + RESEND_S:
            self._swarm.counts["entries missed"] += 1
            self._sync(now)

    def _take_plan(self, plan: Plan, now: float) -> None:
        if plan.round == self._round + 1:
            if self._result is None or self._result.round != plan.round:
                scalars = np.random.default_rng().standard_normal(plan.scalars, np.float32).tolist()
                self._result = Result(plan.round, print_of(plan), tuple(scalars), 1.0, plan.batch, 0.1, b"")
                self._answer = self._ready(plan) if plan.masking else self._result
                self._plan = plan
                self._swarm.counts["results sent"] += 1
                self._swarm.wake(self._send_result, now + self._step)
            else:
                self._send_result(now)
        elif plan.round > self._round + 1:
            self._swarm.counts["plans ahead"] += 1
            self._ahead = plan
            if now >= self._synced_at + RESEND_S:
                self._sync(now)

    def _ready(self, plan: Plan) -> Ready:
        signed = self._key.sign(Scope(self._topics.job, self._bundle).text(PURPOSE + self._agreement))
        card = () if self._introduced else (Partner(self._public, self._agreement, signed),)
        return Ready(plan.round, print_of(plan), b"", card)

    def _join(self, group: Group, now: float) -> None:
        if self._result is not None and group.plan == self._result.plan:
            self._introduced = True
            words = pack(self._plan, self._result).astype("<u4").tobytes()
            self._answer = Masked(group.round, self._plan.masking[0].attempt, words)
            self._send_result(now)

    def _send_result(self, now: float) -> None:
        if self._answer is None or self._answer.round <= self._round:
            return
        self._unanswered, self._spoke_at = not isinstance(self._answer, Ready), now
        self._publish(self._topics.up(self._name), self._answer)

    def _settle(self, round: int) -> None:
        if self._answer is not None and self._answer.round <= round:
            self._unanswered = False

    def _sync(self, now: float) -> None:
        self._synced_at = now
        self._swarm.counts["syncs sent"] += 1
        sync = Sync(self._public, self._session, self._bundle, self._round, self._head, 20, 1.0, True, True)
        self._publish(self._topics.up(self._name), sync)

    def _publish(self, topic: str, message: Message, retain: bool = False) -> None:
        self._client.publish(topic, self._sign(message), qos=1, retain=retain)

    def _sign(self, message: Message) -> bytes:
        payload = encode(message)
        return payload + self._key.sign(Scope(self._topics.job, self._bundle, self._name).text(payload))


def main() -> None:
    """Make the devices, and serve them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--accesses",
        type=Path,
        required=True,
        help="JSON list of the devices' accesses, each perhaps with the secret key",
    )
    parser.add_argument("--job", required=True)
    parser.add_argument("--bundle-identity", required=True, metavar="HEX")
    parser.add_argument("--step-seconds", type=float, default=0.0, help="that a device takes for a result")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    listed = json.loads(options.accesses.read_bytes())
    keys = [fields.pop("secret", "") for fields in listed]
    accesses = [Access(**fields) for fields in listed]
    tls = ssl.create_default_context(cadata=accesses[0].authority) if accesses[0].tls else None
    swarm = Swarm()
    bundle = bytes.fromhex(options.bundle_identity)
    devices = [
        Device(swarm, access, key, options.job, bundle, tls, options.step_seconds)
        for access, key in zip(accesses, keys, strict=True)
    ]
    print(json.dumps({"ready": len(devices)}), flush=True)
    sys.stdin.readline()  # all processes begin when the first line comes
    now = time.monotonic()
    for number, device in enumerate(devices):
        swarm.wake(device.look, now + number * CONNECT_EVERY_S)
    swarm.run()


if __name__ == "__main__":
    main()
