"""Adapters: a step whose branches go through a layer together, beside one branch by branch, and beside inference.

One layer as wide as LLaMA-3.2-3B's (3072, random weights), 16 branches (two-sided, K = 8), timed in turn in one
process. Inference is one plain forward pass of as many rows over the same codes, where an adapter of rank 1 on one
matrix, which a quantised base must have, stays as it is.

    python benchmarks/branches.py --engine litert --shapes 1x8,1x32,1x64,4x64
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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
    save_tokenizer(folder, 700, closes=False)


def export(model: Path, out: Path, options: argparse.Namespace, *more: str) -> None:
    """A bundle of the layer; more options are its batches, lengths and adapters."""
    command = [sys.executable, "-m", "fedspzo", "export", str(model), "--task", "sst2", "--engine", options.engine,
               "--weights", options.weights, "--no-check", *more, "--out", str(out)]  # fmt: skip
    if options.weights == "int4":  # random weights have no outputs to keep
        command += ["--rounding", "nearest"]
    subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    """Export, then time all ways in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="litert")
    parser.add_argument("--weights", default="int4", help="float32, int8 or int4 (%(default)s)")
    parser.add_argument("--shapes", default="1x8,1x32,1x64,4x64")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="branches-") as name:
        make_checkpoint(Path(name) / "model")
        for shape in options.shapes.split(","):
            batch, length = map(int, shape.split("x"))
            print(json.dumps(compare(Path(name), batch, length, options), ensure_ascii=False), flush=True)


def compare(folder: Path, batch: int, length: int, options: argparse.Namespace) -> dict[str, object]:
    """Medians for one shape, and what they say."""
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

    def random_store(count: int) -> DataStore:
        ids = np.random.default_rng(0).integers(5, 600, (count, length), np.int32)
        return DataStore(ids, np.full(count, length, np.int32), np.full(count, length - 1, np.int32),
                         np.zeros(count, np.int32))  # fmt: skip

    common = ("--max-length", str(length))
    split, whole = (folder / f"{kind}-{batch}x{length}" for kind in ("split", "whole"))
    export(folder / "model", split, options, *common, "--batch", str(batch), "--lora-rank", "8", "--groups",
           str(BRANCHES), "--targets", "q_proj,v_proj")  # fmt: skip
    export(folder / "model", whole, options, *common, "--batch", str(BRANCHES * batch), "--lora-rank", "1",
           "--targets", "o_proj")  # fmt: skip
    plan = Plan(1, 7, True, "rademacher", 1, batch, 1e-3, (Block(2, BRANCHES // 2, 1.0, 1e-3),), 60.0, False)
    store, rows = random_store(batch), random_store(BRANCHES * batch)

    def forward(kind: type[Forward[Replica]], bundle: Path) -> Forward[Replica]:
        return kind(create_engine(options.engine, options.threads), Replica(Bundle(bundle), threads=options.threads))

    together, alone, plain = forward(Forward, split), forward(Alone, split), forward(Forward, whole)
    scalars: dict[str, tuple[float, ...]] = {}

    def infer() -> None:
        fed = plain.batch(rows, np.arange(len(rows)))
        plain.release(plain.run_all(plain.manifest.stages, fed))

    ways: dict[str, Callable[[], object]] = {
        "together": lambda: scalars.update(together=measure(together, store, plan, "a").scalars),
        "alone": lambda: scalars.update(alone=measure(alone, store, plan, "a").scalars),
        "inference": infer,
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(options.repeats + 1):
        for way, run in ways.items():
            started = time.perf_counter()
            run()
            seconds[way].append(time.perf_counter() - started)
    medians = {way: statistics.median(times[1:]) for way, times in seconds.items()}
    return {
        "engine": options.engine,
        "weights": options.weights,
        "shape": f"{batch} × {length}",
        "branches": BRANCHES,
        **{f"seconds_{way}": round(median, 4) for way, median in medians.items()},
        "times_faster": round(medians["alone"] / medians["together"], 2),
        "step_to_inference": round(medians["together"] / medians["inference"], 3),
        "largest_difference": float(np.abs(np.subtract(scalars["together"], scalars["alone"])).max()),
    }


if __name__ == "__main__":
    main()
