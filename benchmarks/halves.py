"""Full parameters of 16 bits at rest against float32: the same step, timed in turn in one process.

A few layers of the real width with random weights, batch 1 × 64, P1 = 1, K = 8, block 2 = the last layer and the head.

    python benchmarks/halves.py --models roberta-large,opt-1.3b
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

import numpy as np
from large_models import make_checkpoint

TYPES = ("float32", "bfloat16", "float16")
LAYERS, LENGTH = 4, 64


def main() -> None:
    """Export each type, then time steps in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="roberta-large,opt-1.3b")
    parser.add_argument("--engine", default="litert")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    from fedspzo.device_runtime.data.store import DataStore
    from fedspzo.device_runtime.engines.protocol import create_engine
    from fedspzo.device_runtime.model.bundle import Bundle
    from fedspzo.device_runtime.protocol.plan import Block, Plan
    from fedspzo.device_runtime.replica.weights import Replica
    from fedspzo.device_runtime.step.estimator import measure
    from fedspzo.device_runtime.step.runner import Forward

    ids = np.random.default_rng(0).integers(5, 500, (1, LENGTH), np.int32)
    store = DataStore(ids, np.array([LENGTH], np.int32), np.array([LENGTH // 2], np.int32), np.zeros(1, np.int32))
    for model in options.models.split(","):
        with tempfile.TemporaryDirectory(prefix="halves-") as name:
            folder = Path(name)
            make_checkpoint(model, folder / "model", num_hidden_layers=LAYERS)
            forwards = {}
            for dtype in TYPES:
                subprocess.run(
                    [sys.executable, "-m", "fedspzo", "export", str(folder / "model"), "--task", "sst2", "--engine",
                     options.engine, "--batch", "1", "--max-length", str(LENGTH), "--weights", dtype, "--out",
                     str(folder / dtype)],
                    check=True, capture_output=True,
                )  # fmt: skip
                replica = Replica(Bundle(folder / dtype), threads=options.threads)
                forwards[dtype] = Forward(create_engine(options.engine, options.threads), replica)
            stages = len(forwards["float32"].manifest.stages)
            plan = Plan(
                1, 7, True, "rademacher", 1, 1, 1e-3,
                (Block(stages - 2, 1, 1.0, 1e-3), Block(stages, 8, 1.0, 1e-3)), 60.0, False,
            )  # fmt: skip
            seconds: dict[str, list[float]] = {dtype: [] for dtype in TYPES}
            for _ in range(options.repeats + 1):
                for dtype, forward in forwards.items():
                    started = time.perf_counter()
                    measure(forward, store, plan, "a")
                    seconds[dtype].append(time.perf_counter() - started)
            medians = {dtype: statistics.median(times[1:]) for dtype, times in seconds.items()}
            found = {"model": f"{LAYERS} layers of {model}", "engine": options.engine}
            found |= {f"seconds_{dtype}": round(median, 4) for dtype, median in medians.items()}
            found |= {f"{dtype}_over_float32": round(medians[dtype] / medians["float32"], 3) for dtype in TYPES[1:]}
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
