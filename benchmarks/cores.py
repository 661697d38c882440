"""A step of 16 branches on the cores of the last layer, against the same step on all parameters of that layer.

Both bundles are of one model, exported for one shape of batches. The layers before are run once, as a device does that
keeps their activations, and do not count. Seconds are CPU seconds of one thread, the median of some steps in turn.

    python benchmarks/cores.py CORES FULL --data FILE
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

BRANCHES = 16


def main() -> None:
    """Time both, and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs=2, type=Path, metavar="BUNDLE", help="with cores, and with all parameters")
    parser.add_argument("--data", type=Path, required=True, help="examples")
    parser.add_argument("--engine", default="litert")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    from fedspzo.broker.rounds.recommend import last_layer
    from fedspzo.device_runtime.data.store import load_data
    from fedspzo.device_runtime.engines.protocol import create_engine
    from fedspzo.device_runtime.model.bundle import Bundle
    from fedspzo.device_runtime.protocol.plan import Block, Plan
    from fedspzo.device_runtime.replica.weights import Replica
    from fedspzo.device_runtime.step.estimator import measure
    from fedspzo.device_runtime.step.prefix_cache import PrefixCache
    from fedspzo.device_runtime.step.runner import Forward

    with tempfile.TemporaryDirectory(prefix="cores-") as folder:
        steps = []
        for number, bundle in enumerate(map(Bundle, options.bundles)):
            manifest = bundle.manifest
            blocks = (Block(last_layer(manifest), 0, 1.0, 1.0), Block(len(manifest.stages), BRANCHES, 1.0, 1.0))
            plan = Plan(1, 7, True, "rademacher", 1, manifest.batch, 1e-3, blocks, 60.0, False, sides=1)
            forward = Forward(create_engine(options.engine, 1), Replica(bundle))
            store, cache = load_data(options.data, bundle), PrefixCache(Path(folder) / str(number))
            steps.append((forward, store, plan, cache))
            measure(forward, store, plan, "a", cache)
        seconds: list[list[float]] = [[], []]
        flops = []
        for _ in range(options.repeats):
            for taken, (forward, store, plan, cache) in zip(seconds, steps, strict=True):
                forward.flops = 0
                start = time.process_time()
                measure(forward, store, plan, "a", cache)
                taken.append(time.process_time() - start)
                flops.append(forward.flops)
        cores, full = map(statistics.median, seconds)
        print(json.dumps({"cores": cores, "full": full, "ratio": cores / full, "flops": flops[:2]}))


if __name__ == "__main__":
    main()
