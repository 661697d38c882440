"""What measuring energy costs: CPU time of the reading thread and of the phases' timer, as a share of the steps' own.

Sources are trees of files laid out as the kernel's, and a ``vcgencmd`` that is a process as the real one is. The
reading thread's time is its own clock's (and its children's), the steps' that of the process; a phase is entered and
left some 100,000 times by itself for its price, and counted in a step.

    python benchmarks/energy_overhead.py BUNDLE --seconds 20
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
from sensors import BatteryTree, JavaPhone, JetsonTree, PmicCommand, RaplTree, java

from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.energy.android import find_android, open_phone
from fedspzo.device_runtime.energy.jetson import find_jetson
from fedspzo.device_runtime.energy.meter import Meter
from fedspzo.device_runtime.energy.pmic import find_pmic
from fedspzo.device_runtime.energy.power_supply import find_batteries
from fedspzo.device_runtime.energy.rapl import find_rapl
from fedspzo.device_runtime.energy.sampler import Sampler
from fedspzo.device_runtime.energy.source import Source
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.platform.profiling import OTHER, PERTURB, PhaseTimer
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.estimator import measure
from fedspzo.device_runtime.step.runner import Forward

BAR = 0.005
PHASES = 100_000


class CountingTimer(PhaseTimer):
    """Counts how often a phase is entered."""

    entered = 0

    def enter(self, name: str) -> None:
        self.entered += 1
        super().enter(name)


def make_sources(folder: Path) -> dict[str, Source]:
    """Name → a source over files in a folder, and a phone in Python."""
    RaplTree(folder / "rapl")
    JetsonTree(folder / "jetson")
    BatteryTree(folder / "battery")
    script = folder / "vcgencmd"
    (folder / "adc").write_text(PmicCommand().said)
    script.write_text(f"#!/bin/sh\nexec cat {folder / 'adc'}\n")
    script.chmod(0o755)
    os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"
    with java():
        phone = find_android(open_phone(JavaPhone()))[0][0]
    found = {
        "rapl": find_rapl(folder / "rapl"),
        "jetson": find_jetson(folder / "jetson"),
        "pi5": find_pmic(),
        "battery": find_batteries(folder / "battery")[0][0],
        "phone": phone,
    }
    missing = {name: source for name, source in found.items() if isinstance(source, str)}
    if missing:
        raise SystemExit(f"a source was not found: {missing}")
    return {name: source for name, source in found.items() if not isinstance(source, str)}


def reading_share(source: Source, timer: PhaseTimer, step: Callable[[], None], seconds: float) -> float:
    """CPU time of reading once a second, as a share of that of steps meanwhile."""
    meter = Meter(source, timer)
    started, children = time.process_time(), _children()
    with Sampler(meter.sample) as sampler:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            step()
    reading = sampler.cpu_seconds + _children() - children
    return reading / (time.process_time() - started - sampler.cpu_seconds)


def timing_share(timer: CountingTimer, step: Callable[[], None]) -> float:
    """CPU time of a step's phases as a share of the step's."""
    before, started = timer.entered, time.process_time()
    step()
    spent, entered = time.process_time() - started, timer.entered - before
    started = time.process_time()
    with timer.phase(OTHER):
        for _ in range(PHASES):
            with timer.phase(PERTURB):
                pass
    return entered * (time.process_time() - started) / PHASES / spent


def main() -> None:
    """Measure all sources; status 1 where one costs too much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--engine", default="litert")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each source")
    options = parser.parse_args()
    timer = CountingTimer()
    bundle = Bundle(options.bundle)
    forward = Forward(create_engine(options.engine, options.threads), Replica(bundle, threads=options.threads), timer)
    batch, length = bundle.manifest.batch, bundle.manifest.length
    ids = np.random.default_rng(0).integers(5, 500, (batch, length), np.int32)
    lengths = np.full(batch, length, np.int32)
    store = DataStore(ids, lengths, np.full(batch, length // 2, np.int32), np.zeros(batch, np.int32))
    last = len(bundle.manifest.stages)
    blocks = (Block(last - 2, 1, 1.0, 1e-6), Block(last, 8, 1.0, 1e-6))
    plan = Plan(1, 7, True, "rademacher", 1, batch, 1e-3, blocks, 60.0, False)

    def step() -> None:
        with timer.phase(OTHER):
            measure(forward, store, plan, "a")

    step()
    shares = {"phases": timing_share(timer, step)}
    with tempfile.TemporaryDirectory(prefix="energy-") as name:
        for source, found in make_sources(Path(name)).items():
            shares[source] = reading_share(found, timer, step, options.seconds)
    worst = shares["phases"] + max(share for name, share in shares.items() if name != "phases")
    print(json.dumps({name: round(share, 6) for name, share in shares.items()} | {"worst": worst, "bar": BAR}))
    if worst > BAR:
        sys.exit(1)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
