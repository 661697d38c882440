"""Adapters over bases of 32, 8 and 4 bits: time of the same step, and resident bytes for each weight of the base.

Layers as wide as LLaMA-3.2-3B's (3072, random weights), batch 1 × 64, 8 perturbations. Steps are timed in turn in one
process; memory is what a process with three layers has more than one with two.

    python benchmarks/bases.py --engine litert
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from branches import make_checkpoint

if TYPE_CHECKING:
    from fedspzo.device_runtime.data.store import DataStore
    from fedspzo.device_runtime.protocol.plan import Plan
    from fedspzo.device_runtime.replica.weights import Replica
    from fedspzo.device_runtime.step.runner import Forward

BASES = ("float32", "int8", "int4")
LENGTH = 64


def prepare(bundle_folder: Path, engine: str, threads: int) -> tuple[Forward[Replica], DataStore, Plan]:
    """All that a step needs."""
    from fedspzo.device_runtime.data.store import DataStore
    from fedspzo.device_runtime.engines.protocol import create_engine
    from fedspzo.device_runtime.model.bundle import Bundle
    from fedspzo.device_runtime.protocol.plan import Block, Plan
    from fedspzo.device_runtime.replica.weights import Replica
    from fedspzo.device_runtime.step.runner import Forward

    bundle = Bundle(bundle_folder)
    ids = np.random.default_rng(0).integers(5, 600, (1, LENGTH), np.int32)
    store = DataStore(ids, np.array([LENGTH], np.int32), np.array([LENGTH - 1], np.int32), np.zeros(1, np.int32))
    blocks = (Block(len(bundle.manifest.stages), 8, 1.0, 1e-3),)
    plan = Plan(1, 7, True, "rademacher", 1, 1, 1e-3, blocks, 60.0, False)
    return Forward(create_engine(engine, threads), Replica(bundle, threads=threads)), store, plan


def print_memory(bundle: Path, engine: str, threads: int) -> None:
    """Take two steps and print what is resident, at most and at the end."""
    from fedspzo.device_runtime.step.estimator import measure

    forward, store, plan = prepare(bundle, engine, threads)
    for _ in range(2):
        measure(forward, store, plan, "a")
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(json.dumps({name: int(status[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM")}))


def memory(bundle: Path, options: argparse.Namespace) -> dict[str, int]:
    """Resident bytes of a process of its own."""
    command = [sys.executable, __file__, "--engine", options.engine, "--threads", str(options.threads)]
    done = subprocess.run([*command, "--memory", str(bundle)], check=True, capture_output=True, text=True)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Export, then measure memory, then time all bases in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="litert")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--groups", default="", help="branches that go through a layer together (default: one by one)")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--memory", type=Path, metavar="BUNDLE", help="only print the memory of two steps")
    options = parser.parse_args()
    if options.memory:
        print_memory(options.memory, options.engine, options.threads)
        return
    from fedspzo.device_runtime.step.estimator import measure

    with tempfile.TemporaryDirectory(prefix="bases-") as name:
        folder = Path(name)
        for layers in (2, 3):
            make_checkpoint(folder / f"model-{layers}", layers)
            for base in BASES:
                subprocess.run(
                    [sys.executable, "-m", "fedspzo", "export", str(folder / f"model-{layers}"), "--task", "sst2",
                     "--engine", options.engine, "--batch", "1", "--max-length", str(LENGTH), "--lora-rank", "8",
                     "--targets", "q_proj,v_proj", "--groups", options.groups, "--weights", base,
                     "--out", str(folder / f"{base}-{layers}")],
                    check=True, capture_output=True,
                )  # fmt: skip
        resident = {(base, n): memory(folder / f"{base}-{n}", options) for base in BASES for n in (2, 3)}
        ready = {base: prepare(folder / f"{base}-2", options.engine, options.threads) for base in BASES}
        seconds: dict[str, list[float]] = {base: [] for base in BASES}
        for _ in range(options.repeats + 1):
            for base, (forward, store, plan) in ready.items():
                started = time.perf_counter()
                measure(forward, store, plan, "a")
                seconds[base].append(time.perf_counter() - started)
        manifest = ready["int4"][0].manifest
        weights = sum(int(np.prod(manifest.tensors[index].shape)) for index in manifest.constants)
        for base in BASES:
            median = statistics.median(seconds[base][1:])
            more = {key: resident[base, 3][key] - resident[base, 2][key] for key in ("VmRSS", "VmHWM")}
            found = {
                "engine": options.engine,
                "base": base,
                "seconds_a_step": round(median, 4),
                "times_faster_than_float32": round(statistics.median(seconds["float32"][1:]) / median, 2),
                "resident_bytes_a_weight": round(more["VmRSS"] / (weights / 2), 3),
                "peak_bytes_a_weight": round(more["VmHWM"] / (weights / 2), 3),
            }
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
