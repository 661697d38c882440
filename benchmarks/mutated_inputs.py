"""Mutated manifests and tensor files, read as ``fedspzo inspect`` does, and messages: outcomes, longest time, memory.

A traceback ends the run, and names the seed that made the input.

    python benchmarks/mutated_inputs.py BUNDLE --manifests 20000 --headers 5000 --messages 1000000 --heard 20000

Of the messages that are heard, three of four are signed by a device and heard by a server in each mode, and one by its
server and heard by a device.
"""

from __future__ import annotations

import argparse
import logging
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
import numpy as np
from heard import HeardByDevice, HeardByServer
from mutations import (
    Inspection,
    Mutate,
    mutated_message,
    mutated_tensors,
    mutated_text,
    read_message,
    read_tensors,
    sample_messages,
)

from fedspzo.broker.server.state_folder import pin_bundle
from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import MANIFEST, WEIGHTS
from fedspzo.device_runtime.model.modes import MODES
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.protocol.signing import PIN


def try_all(name: str, count: int, original: bytes, mutate: Mutate, read: Callable[[bytes], str]) -> None:
    """Read ``count`` mutations, and print what came of them."""
    outcomes: Counter[str] = Counter()
    longest, before = (0.0, 0), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(count):
        data = mutate(original, Random(seed))
        start = time.process_time()
        try:
            outcomes[read(data) or "read"] += 1
        except Exception:
            print(f"{name} of seed {seed}:", flush=True)
            raise
        longest = max(longest, (time.process_time() - start, seed))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{count} {name}: at most {1e3 * longest[0]:.0f} ms of CPU time (seed {longest[1]}), {grown / 1024:.0f} MiB")
    for outcome, times in outcomes.most_common():
        print(f"    {times:6d} {outcome}")


def hear_all(bundle: Path, folder: Path, count: int) -> None:
    """Have servers and a device hear ``count`` odd messages with good signatures; what ends one ends the run."""
    logging.disable(logging.CRITICAL)
    for number, mode in enumerate(MODES):
        start = time.process_time()
        server = HeardByServer(folder, mode, Random(number))
        server.hear_extremes()
        kinds = Counter(getattr(server.turn(), "__name__", "mutated") for _ in range(count // 4))
        server.check()
        server.close()
        print(f"{count // 4} messages to a server, mode {mode}: {time.process_time() - start:.0f} s, {dict(kinds)}")
    start = time.process_time()
    shutil.copytree(bundle, folder / "pinned", ignore=shutil.ignore_patterns(PIN))
    pin_bundle(folder / "pinned", folder / "server")
    pinned = Bundle(folder / "pinned")
    ids = np.full((20, pinned.manifest.length), 5, np.int32)
    store = DataStore(ids, np.full(20, 4, np.int32), np.zeros(20, np.int32), np.zeros(20, np.int32))
    device = HeardByDevice(pinned, folder, store, Random(9))
    ends = Counter(device.turn() or "lives" for _ in range(count // 4))
    print(f"{count // 4} messages to a device: {time.process_time() - start:.0f} s, {dict(ends)}")


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--manifests", type=int, default=20_000)
    parser.add_argument("--headers", type=int, default=5_000)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--heard", type=int, default=20_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(shutil.copytree(options.bundle, Path(temporary) / "bundle"))
        manifest, weights = (folder / MANIFEST).read_bytes(), (folder / WEIGHTS).read_bytes()
        inspection = Inspection(folder)
        inspection(manifest)
        try_all("manifests", options.manifests, manifest, mutated_text, inspection)
        scratch = Path(temporary) / WEIGHTS
        try_all("tensor files", options.headers, weights, mutated_tensors, lambda data: read_tensors(scratch, data))
        hear_all(options.bundle, Path(temporary), options.heard)
    blocks = (Block(3, 2, 0.25, 1e-3), Block(5, 4, 1.0, 1e-2))
    samples = sample_messages(Plan(1, 2, True, "rademacher", 1, 8, 1e-3, blocks, 60.0, True))
    try_all("messages", options.messages, b"", lambda _, random: mutated_message(random.choice(samples), random),
            read_message)  # fmt: skip


if __name__ == "__main__":
    main()
