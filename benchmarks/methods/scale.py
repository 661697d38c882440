"""Thousands of virtual devices on one machine: rounds a minute, peak memory, and what more workers bring.

    python benchmarks/methods/scale.py --json scale.json        # some ten minutes, 2 cores left alone

MiniLM on the demo's intents, one-sided, K = 16, cohorts of 20; `fedspzo simulate` in processes of its own, in turn. The
CPU time of workers and parent tells what more cores would bring where they are not free.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from settings import open_setting

DEVICES, MANY, RAY_BAR = (100, 1_000, 10_000), 10_000, 1.6
METHOD = "fedspzo-one-sided:16"


@dataclass(frozen=True)
class Kind:
    """Who computes.

    Attributes:
        devices: virtual ones.
        workers: how many, of one thread each.
        ray: whether they are Ray's.
    """

    devices: int
    workers: int
    ray: bool

    @property
    def name(self) -> str:
        """In words."""
        who = "Ray's worker" if self.ray else "process" if self.workers == 1 else "worker process"
        plural = "es" if who.endswith("process") else "s"
        return f"{self.devices:,} devices, {self.workers} {who}{plural * (self.workers > 1)}"


@dataclass(frozen=True)
class Run:
    """What a simulation took.

    Attributes:
        rounds_a_minute: after the first round, which warms up.
        peak_mb: resident memory of all its processes together, at most; what they share counts once for each.
        parent_cpu, workers_cpu: seconds a round, of the process that holds the journal and of all the others.
    """

    rounds_a_minute: float
    peak_mb: float
    parent_cpu: float
    workers_cpu: float


def simulate(place: Path, kind: Kind, rounds: int) -> Run:
    """One simulation in processes of its own. Raises SystemExit when it fails."""
    with tempfile.TemporaryDirectory(prefix="scale-") as name, (Path(name) / "out").open("w+") as out:
        command = [
            sys.executable, "-m", "fedspzo", "simulate", place / "bundle", "--data", place / "train.jsonl", "--state",
            Path(name) / "state", "--devices", kind.devices, "--examples-per-device", 20, "--cohort", 20, "--method",
            METHOD, "--rounds", rounds, "--workers", kind.workers, "--json", *["--ray"] * kind.ray,
        ]  # fmt: skip
        process = subprocess.Popen(list(map(str, command)), stdout=out, stderr=subprocess.PIPE, text=True)
        watched, peak = psutil.Process(process.pid), 0.0
        marks: dict[int, dict[int, float]] = {}  # rounds that are closed → process → its CPU seconds when that was seen
        while process.poll() is None:
            resident, spent = look(watched)
            peak = max(peak, resident)
            if spent:
                marks[len(Path(out.name).read_text().splitlines())] = spent
            time.sleep(0.25)
        out.seek(0)
        lines = [json.loads(line) for line in out if line.startswith("{")]
        seconds = {line["round"]: line["seconds"] for line in lines if "virtual_seconds" in line}
        if process.returncode or rounds not in seconds:
            raise SystemExit(f"{kind.name}: the simulation failed: {process.communicate()[1][-2000:]}")
    first, last = (min(at for at in marks if at >= 1), max(at for at in marks if at <= rounds))
    spent = {pid: used - marks[first].get(pid, 0.0) for pid, used in marks[last].items()}
    parent = spent.pop(process.pid)
    between = last - first
    return Run(
        60 * (rounds - 1) / (seconds[rounds] - seconds[1]), peak, parent / between, sum(spent.values()) / between
    )


def look(parent: psutil.Process) -> tuple[float, dict[int, float]]:
    """Resident megabytes of a process and all below it together, and the CPU seconds of each by its id."""
    resident, spent = 0.0, {}
    try:
        for process in (parent, *parent.children(recursive=True)):
            with process.oneshot():
                resident += process.memory_info().rss / 1e6
                times = process.cpu_times()
                spent[process.pid] = times.user + times.system
    except psutil.NoSuchProcess:
        return resident, {}
    return resident, spent


def slope(peaks: Mapping[int, float]) -> float:
    """Kilobytes for each device more, by least squares."""
    return 1e3 * statistics.linear_regression(list(peaks), list(peaks.values())).slope


def table(runs: Mapping[Kind, Run]) -> str:
    """Markdown."""
    lines = [
        "| who | rounds a minute | peak MB, all processes | CPU s a round: workers | parent |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for kind, run in runs.items():
        alone = kind.workers == 1 and not kind.ray  # which is worker and parent in one
        workers, parent = (
            ("", f"{run.parent_cpu:.3f}") if alone else (f"{run.workers_cpu:.3f}", f"{run.parent_cpu:.3f}")
        )
        lines.append(f"| {kind.name} | {run.rounds_a_minute:.1f} | {run.peak_mb:,.0f} | {workers} | {parent} |")
    return "\n".join(lines)


def measure(place: Path, kinds: Sequence[Kind], rounds: int, repeats: int) -> dict[Kind, Run]:
    """The median of each, in turn."""
    found: dict[Kind, list[Run]] = {kind: [] for kind in kinds}
    for _ in range(repeats):
        for kind in kinds:
            found[kind].append(simulate(place, kind, rounds))
            print(json.dumps({"who": kind.name, **asdict(found[kind][-1])}), file=sys.stderr, flush=True)
    return {
        kind: Run(
            *(statistics.median(figures) for figures in zip(*(asdict(run).values() for run in runs), strict=True))
        )
        for kind, runs in found.items()
    }


def main() -> None:
    """Make model and data, simulate in turn, and say whether the bar is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, help="where the study's settings are, to use again (default: make new ones)"
    )
    parser.add_argument("--rounds", type=int, default=15, help="of each simulation (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of which the median counts (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="scale-") as name:
        folder = options.folder or Path(name)
        open_setting("intents", folder)
        kinds = [Kind(devices, workers, False) for devices in DEVICES for workers in (1, 2)]
        kinds += [Kind(MANY, workers, True) for workers in (1, 2)]
        runs = measure(folder / "intents", kinds, options.rounds, options.repeats)
    slopes = {w: slope({n: runs[Kind(n, w, False)].peak_mb for n in DEVICES}) for w in (1, 2)}
    rates = {
        who: runs[Kind(MANY, 2, ray)].rounds_a_minute / runs[Kind(MANY, 1, ray)].rounds_a_minute
        for who, ray in (("processes", False), ("Ray's", True))
    }
    print(table(runs))
    print(f"\nKilobytes for each device more: {slopes[1]:.2f} in one process, {slopes[2]:.2f} with two workers.")
    print("Two workers' rate over one's: " + ", ".join(f"{who} {rate:.2f}" for who, rate in rates.items()))
    if options.json:
        figures = {
            "runs": [{**asdict(kind), **asdict(run)} for kind, run in runs.items()],
            "kilobytes_a_device": slopes,
            "two_workers_over_one": rates,
        }
        options.json.write_text(json.dumps(figures, indent=1))
    if rates["Ray's"] < RAY_BAR:
        raise SystemExit(f"Ray with two workers has less than {RAY_BAR} times the rate of one")


if __name__ == "__main__":
    main()
