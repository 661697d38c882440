"""What this machine computes, as JSON, to be compared with another's: ``arm64_probe.py BUNDLE DATA ENGINE ...``.

Bits that must be equal are given as hashes; what an engine computes as numbers.
"""

from __future__ import annotations

import json
import platform
import sys
from hashlib import sha256
from itertools import product
from pathlib import Path

import numpy as np

from fedspzo.device_runtime.data.store import load_data
from fedspzo.device_runtime.directions.format import CHUNK, DISTRIBUTIONS, Direction, DirectionKernel, NumpyKernel, Step
from fedspzo.device_runtime.directions.halves import DTYPES
from fedspzo.device_runtime.directions.native import make_kernel
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.estimator import measure
from fedspzo.device_runtime.step.runner import Forward

STEPS = [
    Step([Direction(2**63 + 7, 1e-3)], 5),
    Step([Direction(seed, 0.01 * (seed - 9)) for seed in range(19)], 2**64 - 1),
]
PLAN = Plan(
    round=1, base_seed=7, shared=True, distribution="rademacher", steps=2, batch=4, epsilon=1e-3,
    blocks=(Block(3, 1, 0.25, 1e-3), Block(5, 4, 1.0, 1e-2)), deadline=60.0, digest=False,
)  # fmt: skip


def stepped(kernel: DirectionKernel, dtype: str, size: int) -> str:
    """The hash of weights of a type after two sums, and of a perturbed pair of them."""
    drawn = np.random.default_rng(size).standard_normal(size, np.float32) * np.float32(1e-3)
    stored = (drawn.view(np.uint32) >> 16).astype("<u2") if dtype == "bfloat16" else drawn.astype(DTYPES[dtype])
    plus, minus = np.empty((2, size), np.float32)
    kernel.step({5: stored}, STEPS)
    kernel.shift_pair({5: stored}, STEPS[1].directions, Direction(3, 1e-3), {5: plus}, {5: minus})
    return sha256(stored.tobytes() + plus.tobytes() + minus.tobytes()).hexdigest()


def main(bundle_folder: str, data: str, *engines: str) -> None:
    bundle = Bundle(Path(bundle_folder))
    store = load_data(data, bundle)
    scalars = [list(measure(Forward(create_engine(e), Replica(bundle)), store, PLAN, "a").scalars) for e in engines]
    replica = Replica(bundle)
    replica.apply(Entry(PLAN, (Contribution("", 1.0, tuple(np.linspace(-1, 1, PLAN.scalars))),)))
    kernels = {
        f"{type(kernel).__name__} {distribution}": [
            stepped(kernel, *case) for case in product(DTYPES, (7, 5000, CHUNK + 4100))
        ]
        for distribution in DISTRIBUTIONS
        for kernel in (NumpyKernel(distribution), make_kernel(distribution))
    }
    bits = {
        "tokens": sha256(store.ids.tobytes() + store.lengths.tobytes()).hexdigest(),
        "replica": replica.digest().hex(),
        **kernels,
    }
    print(
        json.dumps({"machine": platform.machine(), "bits": bits, "scalars": dict(zip(engines, scalars, strict=True))})
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
