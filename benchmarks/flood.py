"""Rounds a second of a job, calm and while one login floods it: the server and mosquitto are real, devices simulated.

The flooder runs at the lowest priority and at a rate of its own, and devices take as long as a fast one does for a
step, so that cores are not what is measured. Each kind of flood has a federation of its own.

    python benchmarks/flood.py --kinds sync,noise --bytes-per-second 200000,2000000
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flooder import KINDS
from load import JOB, Federation, federation, make_bundle

from fedspzo.device_runtime.model.bundle import Bundle


def rounds_per_second(running: Federation, seconds: float) -> float:
    """Over some seconds from now."""
    while not running.server.lines.empty():
        running.server.next()
    started, closed = time.monotonic(), 0
    while time.monotonic() < started + seconds:
        _, line = running.server.next()
        closed += "results" in line
    return closed / (time.monotonic() - started)


def measure(bundle: Path, kind: str, rate: float, options: argparse.Namespace) -> dict[str, Any]:
    """One flood: rounds a second before it, in its first seconds, and after that."""
    devices = argparse.Namespace(
        tls=False, swarms=1, mode=options.mode, group=0, cut_off=options.cut_off, step_seconds=options.step_seconds,
        http=False,
    )  # fmt: skip
    with federation(bundle, options.devices, devices, options.devices, options.devices) as running:
        running.connect()
        rounds_per_second(running, 2.0)
        calm = rounds_per_second(running, options.seconds)
        with TemporaryDirectory() as folder:
            access = running.let_in("flooder")
            (Path(folder) / "access.json").write_text(json.dumps(asdict(access)))
            command = [
                sys.executable, Path(__file__).with_name("flooder.py"), Path(folder) / "access.json", "--job", JOB,
                "--bundle-identity", Bundle(bundle).identity.hex(), "--kind", kind, "--bytes-per-second", rate,
            ]  # fmt: skip
            flooder = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
            try:
                assert flooder.stdout is not None
                flooder.stdout.readline()
                first = rounds_per_second(running, options.seconds)
                later = rounds_per_second(running, options.seconds)
            finally:
                flooder.kill()
                flooder.wait()
        return {
            "kind": kind, "bytes_per_second": rate, "cut_off": options.cut_off, "calm": calm, "first": first,
            "later": later, "first_share": first / calm, "later_share": later / calm,
            "named": "'flooder' sends far more" in running.server.log(),
        }  # fmt: skip


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="by default a tiny one is made")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--bytes-per-second", default="200000,2000000")
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--mode", default="robust", help="of the job; groups takes 12 devices")
    parser.add_argument("--step-seconds", type=float, default=0.05, help="that a device takes for a result")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--cut-off", action="store_true", help="let the server take the login away")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        bundle = options.bundle or make_bundle(Path(folder))
        for kind in options.kinds.split(","):
            for rate in map(float, options.bytes_per_second.split(",")):
                print(json.dumps(measure(bundle, kind, rate, options)), flush=True)


if __name__ == "__main__":
    main()
