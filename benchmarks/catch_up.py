"""A device that is many rounds behind: seconds to catch up by the journal, and by a snapshot over HTTP, and what the
planner chooses at each speed of the network. One process, one loopback endpoint, timed in turn.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry

from fedspzo.broker.server.http import serve
from fedspzo.device_runtime.device.catch_up import Pace
from fedspzo.device_runtime.device.download import download
from fedspzo.device_runtime.model.bundle import Bundle, file_hash
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.messages import Offer
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.replica.state import DeviceState

#: Entries of a message of the usual size.
ARRIVE_TOGETHER = 200


def make_journal(bundle: Bundle, rounds: int, fanout: int) -> list[Entry]:
    """Rounds of the paper's two blocks, with shared directions and random scalars."""
    random = np.random.default_rng(0)
    last = len(bundle.manifest.stages)
    blocks = (Block(last - 2, 1, 0.25, 1e-5), Block(last, fanout, 1.0, 1e-4))
    entries = []
    for number in range(1, rounds + 1):
        plan = Plan(number, int(random.integers(1 << 62)), True, "rademacher", 1, 1, 1e-3, blocks, 60.0, False)
        scalars = tuple(random.standard_normal(plan.scalars).astype(np.float32).tolist())
        entries.append(Entry(plan, (Contribution("", 1.0, scalars),)))
    return entries


@contextmanager
def slow_network(url: str, bytes_per_s: float) -> Iterator[str]:
    """The same endpoint through a line of limited bytes per second."""
    import socket

    host, port = url.removeprefix("http://").split(":")
    listener = socket.create_server(("127.0.0.1", 0))

    def pipe(source: socket.socket, target: socket.socket, paced: bool) -> None:
        try:
            while data := source.recv(16384):
                if paced:
                    time.sleep(len(data) / bytes_per_s)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            target.close()

    def accept() -> None:
        while True:
            try:
                client = listener.accept()[0]
            except OSError:
                return
            server = socket.create_connection((host, int(port)))
            threading.Thread(target=pipe, args=(client, server, False), daemon=True).start()
            threading.Thread(target=pipe, args=(server, client, True), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, help="such as runs/demo/bundle")
    parser.add_argument("--rounds", type=int, default=1000, help="behind (%(default)s)")
    parser.add_argument("--fanout", type=int, default=16, help="of the second block (%(default)s)")
    parser.add_argument("--megabytes", default="100,20,2,0.5", help="a second, of the network (%(default)s)")
    options = parser.parse_args()
    bundle = Bundle(options.bundle)
    entries = make_journal(bundle, options.rounds, options.fanout)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        state = DeviceState(folder / "journal", bundle, "a")
        started = time.perf_counter()
        for first in range(0, len(entries), ARRIVE_TOGETHER):
            state.apply_all(entries[first : first + ARRIVE_TOGETHER])
        journal_s = time.perf_counter() - started
        digest, snapshot = state.replica.digest(), folder / "snapshot"
        state.replica.save_snapshot(snapshot)
        size = snapshot.stat().st_size
        print(f"journal: {options.rounds} rounds in {journal_s:.1f} s; snapshot: {size / 1e6:.1f} MB", flush=True)
        with serve(bundle, CollectorRegistry(), lambda: {options.rounds: snapshot}) as url:
            for rate in map(float, options.megabytes.split(",")):
                with slow_network(url, rate * 1e6) as slow:
                    place = f"{slow}/snapshot/{options.rounds}"
                    offer = Offer(options.rounds, bytes.fromhex(file_hash(snapshot)), size, place)
                    other = DeviceState(folder / f"snapshot-{rate}", bundle, "b")
                    started = time.perf_counter()
                    download(offer.url, folder / "whole", offer.sha256.hex())
                    other.adopt(folder / "whole")
                    snapshot_s = time.perf_counter() - started
                    assert other.replica.digest() == digest
                    pace = Pace()
                    pace.applied(options.rounds, journal_s)
                    started = time.perf_counter()
                    chosen = pace.fetch(offer, options.rounds, folder / f"offered-{rate}", "")
                    decided_s = time.perf_counter() - started
                print(
                    json.dumps(
                        {
                            "MB/s": rate,
                            "journal s": round(journal_s, 2),
                            "snapshot s": round(snapshot_s, 2),
                            "chosen": "snapshot" if chosen else "journal",
                            "right": chosen == (snapshot_s < journal_s),
                            "decided after s": round(decided_s, 2),
                        }
                    ),
                    flush=True,
                )


if __name__ == "__main__":
    main()
