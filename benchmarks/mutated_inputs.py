"""Mutated manifests and tensor files, read as ``fedspzo inspect`` does, and messages: outcomes, longest time, memory.

A traceback ends the run, and names the seed that made the input.

    python benchmarks/mutated_inputs.py BUNDLE --manifests 20000 --headers 5000 --messages 1000000
"""

from __future__ import annotations

import argparse
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

from fedspzo.device_runtime.model.manifest import MANIFEST, WEIGHTS
from fedspzo.device_runtime.protocol.plan import Block, Plan


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


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--manifests", type=int, default=20_000)
    parser.add_argument("--headers", type=int, default=5_000)
    parser.add_argument("--messages", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(shutil.copytree(options.bundle, Path(temporary) / "bundle"))
        manifest, weights = (folder / MANIFEST).read_bytes(), (folder / WEIGHTS).read_bytes()
        inspection = Inspection(folder)
        inspection(manifest)
        try_all("manifests", options.manifests, manifest, mutated_text, inspection)
        scratch = Path(temporary) / WEIGHTS
        try_all("tensor files", options.headers, weights, mutated_tensors, lambda data: read_tensors(scratch, data))
    blocks = (Block(3, 2, 0.25, 1e-3), Block(5, 4, 1.0, 1e-2))
    samples = sample_messages(Plan(1, 2, True, "rademacher", 1, 8, 1e-3, blocks, 60.0, True))
    try_all("messages", options.messages, b"", lambda _, random: mutated_message(random.choice(samples), random),
            read_message)  # fmt: skip


if __name__ == "__main__":
    main()
