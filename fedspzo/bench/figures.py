"""Figures of a step, of adding directions, of memory and of starting, each with the bound that it is compared with."""

from __future__ import annotations

import json
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from fedspzo.bench.watch import run_watched
from fedspzo.bench.workload import Setting, generate, open_forward, run_forwards, take_step
from fedspzo.device_runtime.directions.format import Direction, Step
from fedspzo.device_runtime.directions.native import make_kernel
from fedspzo.device_runtime.errors import EngineError
from fedspzo.device_runtime.files import cache_folder
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.platform.memory import available_bytes
from fedspzo.device_runtime.step.budget import ALL, parse_memory, streams_within
from fedspzo.device_runtime.step.cost import forecast_inference, stage_runs
from fedspzo.device_runtime.step.streamed import FOLDER

log = logging.getLogger(__name__)

#: Directions that are added in one pass.
TOGETHER = 8


@dataclass(frozen=True)
class Figure:
    """What was measured.

    Attributes:
        name: what it is of.
        value: in ``unit``.
        bound: what physics allows, in ``unit``.
        bound_is: in words.
    """

    name: str
    value: float
    unit: str
    bound: float
    bound_is: str

    @property
    def ratio(self) -> float:
        """How many times the bound the value is, or the bound the value where more is better."""
        return self.bound / self.value if self.unit.startswith("G") else self.value / self.bound


def measure_step(setting: Setting, repeats: int) -> list[Figure]:
    """Seconds of a step, against its forward passes alone on the same engine and weights, timed in turn."""
    forward = open_forward(setting)
    store = generate(forward.manifest, setting.shape)
    runs = stage_runs(forward.manifest, setting.plan)
    step, passes = _in_turn(
        repeats,
        lambda: take_step(forward, store, setting.plan),
        lambda: run_forwards(forward, store, runs),
    )
    return [Figure("step", step, "s", passes, "its forward passes alone, branch by branch")]


def measure_apply(setting: Setting, repeats: int) -> list[Figure]:
    """Directions added to all trained weights in place, against reading and writing these weights once."""
    replica = open_forward(setting).weights
    weights = {index: array for index, array in replica.trainable.items() if array.dtype == np.float32}
    if not weights:
        weights = {index: np.zeros(array.shape, np.float32) for index, array in replica.trainable.items()}
    size = sum(array.size for array in weights.values())
    kernel = make_kernel("rademacher", setting.threads)
    directions = [Direction(seed, 1e-9) for seed in range(TOGETHER)]
    with ThreadPoolExecutor(setting.threads) as pool:
        touch = _toucher(list(weights.values()), setting.threads, pool)
        one, many, once = _in_turn(
            repeats,
            lambda: kernel.step(weights, [Step(directions[:1], 0)]),
            lambda: kernel.step(weights, [Step(directions, 0)]),
            touch,
        )
    bound = "weights read and written once, on as many threads"
    return [
        Figure("1 direction", size / one / 1e9, "G weight·directions/s", size / once / 1e9, bound),
        Figure(f"{TOGETHER} directions", TOGETHER * size / many / 1e9, "G weight·directions/s",
               TOGETHER * size / once / 1e9, bound),
    ]  # fmt: skip


def measure_memory(setting: Setting, repeats: int) -> list[Figure]:
    """Peak memory of a process that takes steps, against one that only infers, stage by stage as well.

    Where the base streams from files, also the seconds of steps, against those with all in memory if there is room.
    """
    inference = _child(setting, "inference")  # makes the files, where there are none
    manifest = Bundle(setting.bundle).manifest
    if not streams_within(manifest, setting.engine, setting.memory):
        step = _child(setting, "step")
        _compare(step, setting)
        return [_peak(step, inference, "inference by the same runtime")]
    _evict([*setting.bundle.iterdir(), *(cache_folder() / FOLDER).glob("*")])
    step, inference = (_child(setting, kind) for kind in ("step", "inference"))
    _compare(step, setting)
    how = "" if step["streamed"] else ", all in memory after all"
    found = [
        _peak(step, inference, "inference by the same runtime", how),
        Figure(f"the first step, files not in memory{how}", step["first_step_s"], "s", step["second_step_s"],
               "a later step"),
    ]  # fmt: skip
    needed, free = forecast_inference(manifest, setting.engine, streams=False).total, available_bytes()
    if free is not None and needed > free:
        log.warning("all in memory is not measured: it takes some %.0f MB, of %.0f MB free", needed / 1e6, free / 1e6)
        return found
    kept = _child(replace(setting, memory=ALL), "step")
    return [
        *found,
        _peak(step, kept, "all in memory", how),
        Figure(f"a step{how}", step["second_step_s"], "s", kept["second_step_s"], "all in memory"),
    ]


def _compare(step: dict[str, float], setting: Setting) -> None:
    """Say so where a step took more than the process should take."""
    limit = parse_memory(setting.memory)
    if limit is not None and step["peak_mb"] * 1e6 > limit:
        log.warning("a step takes %.0f MB, more than --memory %s; give more", step["peak_mb"], setting.memory)


def _peak(found: dict[str, float], bound: dict[str, float], bound_is: str, how: str = "") -> Figure:
    return Figure(f"peak memory of a step{how}", found["peak_mb"], "MB", bound["peak_mb"], bound_is)


def _evict(files: Iterable[Path]) -> None:
    """Have the system let go of what it keeps in memory of files; folders, and files that are gone, do not matter."""
    for file in files:
        with suppress(OSError):
            if file.is_file():
                with file.open("rb") as opened:
                    os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_startup(setting: Setting, repeats: int) -> list[Figure]:
    """Seconds from a device process's start to the end of its first step, against a second step."""
    found = [_child(setting, "step") for _ in range(repeats)]
    started, step = (statistics.median(f[key] for f in found) for key in ("first_step_done_s", "second_step_s"))
    over = found[0]["peak_rss_mb"] - found[0]["weights_mb"]
    return [
        Figure("process start to first step done", started, "s", step, "a later step"),
        Figure(
            "peak memory", found[0]["peak_rss_mb"], "MB", found[0]["weights_mb"], f"the weights ({over:.0f} MB less)"
        ),
    ]


FIGURES: dict[str, Callable[[Setting, int], list[Figure]]] = {
    "step": measure_step,
    "apply": measure_apply,
    "memory": measure_memory,
    "startup": measure_startup,
}


def _in_turn(repeats: int, *works: Callable[[], None]) -> list[float]:
    """Median seconds of each, run in turn after one run that does not count."""
    seconds: list[list[float]] = [[] for _ in works]
    for repeat in range(repeats + 1):
        for work, times in zip(works, seconds, strict=True):
            started = time.perf_counter()
            work()
            if repeat:
                times.append(time.perf_counter() - started)
    return [statistics.median(times) for times in seconds]


def _toucher(arrays: Sequence[np.ndarray], threads: int, pool: ThreadPoolExecutor) -> Callable[[], None]:
    """Reads and writes arrays once, each thread its share."""
    shares: list[list[np.ndarray]] = [[] for _ in range(threads)]
    for array in arrays:
        for share, part in zip(shares, np.array_split(array.reshape(-1), threads), strict=True):
            share.append(part)

    def touch(share: list[np.ndarray]) -> None:
        for part in share:
            np.multiply(part, np.float32(1), out=part)

    def touch_all() -> None:
        list(pool.map(touch, shares))

    return touch_all


def _child(setting: Setting, kind: str) -> dict[str, float]:
    """What a process of its own found. Raises EngineError when it ends otherwise."""
    fields = asdict(setting) | {"bundle": str(setting.bundle)}
    command = [sys.executable, "-m", "fedspzo.bench.child", kind, json.dumps(fields)]
    status, output, errors, peak = run_watched(command)
    if status:
        reason = (errors.strip().splitlines() or [f"status {status}"])[-1]
        raise EngineError(
            "bench.process-ended", f"the measured process ended ({reason}); correct that, and run fedspzo bench again"
        )
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    return found | {"peak_mb": max(peak / 1e6, found["peak_rss_mb"])}
