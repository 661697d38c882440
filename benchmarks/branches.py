"""Adapters: a step whose branches go through a layer together, against the same step branch by branch.

One layer as wide as LLaMA-3.2-3B's (3072, random weights), 16 branches, timed in turn in one process.

    python benchmarks/branches.py --engine litert --lengths 8,32
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

BRANCHES = 16


def make_checkpoint(folder: Path, layers: int = 1) -> None:
    """Layers of LLaMA-3.2-3B's width, with a small vocabulary."""
    import torch
    from large_models import save_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=700, hidden_size=3072, intermediate_size=8192, num_hidden_layers=layers, num_attention_heads=24,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=256, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder, closes=False)


def main() -> None:
    """Export, then time both ways."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="litert")
    parser.add_argument("--lengths", default="8,32")
    parser.add_argument("--groups", default="16,32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    from fedspzo.device_runtime.data.store import DataStore
    from fedspzo.device_runtime.engines.protocol import create_engine
    from fedspzo.device_runtime.model.bundle import Bundle
    from fedspzo.device_runtime.protocol.plan import Block, Plan
    from fedspzo.device_runtime.replica.weights import Replica
    from fedspzo.device_runtime.step.estimator import measure
    from fedspzo.device_runtime.step.runner import Batch, Forward

    class Alone(Forward[Replica]):
        """Runs branch by branch, whatever graphs there are."""

        def groups(self, batch: Batch) -> list[int]:
            return [1]

    with tempfile.TemporaryDirectory(prefix="branches-") as name:
        folder = Path(name)
        make_checkpoint(folder / "model")
        subprocess.run(
            [sys.executable, "-m", "fedspzo", "export", str(folder / "model"), "--task", "sst2", "--engine",
             options.engine, "--batch", "1", "--max-length", options.lengths, "--lora-rank", "8", "--groups",
             options.groups, "--targets", "q_proj,v_proj", "--out", str(folder / "bundle")],
            check=True, capture_output=True,
        )  # fmt: skip
        bundle = Bundle(folder / "bundle")
        random = np.random.default_rng(0)
        for length in map(int, options.lengths.split(",")):
            store = DataStore(
                random.integers(5, 600, (1, bundle.manifest.length), np.int32), np.array([length], np.int32),
                np.array([length - 1], np.int32), np.zeros(1, np.int32),
            )  # fmt: skip
            plan = Plan(1, 7, True, "rademacher", 1, 1, 1e-3, (Block(2, BRANCHES, 1.0, 1e-3),), 60.0, False)
            together = Forward(create_engine(options.engine, options.threads), Replica(bundle, threads=options.threads))
            alone = Alone(create_engine(options.engine, options.threads), Replica(bundle, threads=options.threads))
            seconds: dict[str, list[float]] = {"together": [], "alone": []}
            scalars = {}
            for _ in range(options.repeats + 1):
                for kind, forward in (("together", together), ("alone", alone)):
                    started = time.perf_counter()
                    scalars[kind] = measure(forward, store, plan, "a").scalars
                    seconds[kind].append(time.perf_counter() - started)
            medians = {kind: statistics.median(times[1:]) for kind, times in seconds.items()}
            difference = np.abs(np.subtract(scalars["together"], scalars["alone"])).max()
            print(
                json.dumps(
                    {
                        "engine": options.engine,
                        "shape": f"1 × {length}",
                        "branches": BRANCHES,
                        "seconds_together": round(medians["together"], 4),
                        "seconds_alone": round(medians["alone"], 4),
                        "times_faster": round(medians["alone"] / medians["together"], 2),
                        "largest_difference": float(difference),
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
