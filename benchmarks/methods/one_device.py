"""One device's rounds in this process: their time, and the memory that they take. It imports no more than a device has.

    python benchmarks/methods/one_device.py BUNDLE DATA PLAN [--first-order NAME]

PLAN is a plan's bytes in hexadecimal. Without a first-order method the plan is measured and applied with LiteRT.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fedspzo.device_runtime.data.store import DataStore, load_data
from fedspzo.device_runtime.engines.protocol import Engine, create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.platform.memory import peak_rss_bytes
from fedspzo.device_runtime.protocol.codec import decode
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.estimator import draw_examples, measure
from fedspzo.device_runtime.step.graphs import load_graph
from fedspzo.device_runtime.step.runner import Forward

#: Rounds; the median of their times counts.
ROUNDS = 5


def zeroth_order(folder: Path) -> tuple[Bundle, Callable[[DataStore, Plan], None]]:
    """A round of a device by LiteRT: measure, and apply what was found."""
    bundle = Bundle(folder)
    forward = Forward(create_engine("litert"), Replica(bundle))

    def step(store: DataStore, plan: Plan) -> None:
        plan = replace(plan, round=forward.weights.round + 1)
        scalars = measure(forward, store, plan, "a").scalars
        forward.weights.apply(Entry(plan, (Contribution("" if plan.shared else "a", 1.0, scalars),)))

    return bundle, step


def first_order(folder: Path, name: str) -> tuple[Bundle, Callable[[DataStore, Plan], None]]:
    """A round of a device by PyTorch, from weights that it was sent."""
    from fedspzo.broker.simulation.first_order import ALGORITHMS, device_update
    from fedspzo.broker.simulation.gradient import Backpropagation

    bundle = Bundle(folder)
    backpropagation = Backpropagation(bundle)
    weights = backpropagation.start()

    def step(store: DataStore, plan: Plan) -> None:
        device_update(
            ALGORITHMS[name],
            weights,
            plan,
            lambda at, number: backpropagation(at, store, draw_examples(plan, store, "a", number)),
        )

    return bundle, step


def load_a_graph(bundle: Bundle, engine: Engine) -> None:
    """Load the smallest graph and let it go, so that the engine has all of its own code."""
    shape, stage = bundle.manifest.shapes[-1], bundle.manifest.stages[0]
    load_graph(bundle, engine, shape.graphs[stage.graph], stage.constants)


def resident_bytes() -> int:
    """What this process holds now."""
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) * 1024


def main() -> None:
    """Run the rounds and print: MB of the process with its engine alone, MB at most, seconds of a round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("plan", type=bytes.fromhex)
    parser.add_argument("--first-order", metavar="NAME")
    options = parser.parse_args()
    plan = decode(options.plan)
    assert isinstance(plan, Plan)
    load_a_graph(Bundle(options.bundle), create_engine("torch" if options.first_order else "litert"))
    empty = resident_bytes()
    bundle, step = (
        first_order(options.bundle, options.first_order) if options.first_order else zeroth_order(options.bundle)
    )
    store = load_data(options.data, bundle)
    step(store, plan)
    Path("/proc/self/clear_refs").write_text("5")  # what loading held does not count
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        step(store, plan)
        seconds.append(time.perf_counter() - started)
    figures = {"engine_mb": empty / 1e6, "peak_mb": peak_rss_bytes() / 1e6, "seconds": statistics.median(seconds)}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
