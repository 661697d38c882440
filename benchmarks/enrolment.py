"""Many devices enrol by one invitation: a real server, a managed mosquitto over TLS, simulated devices' real requests.

Each device has a state folder and a key of its own, and asks as ``fedspzo device --invitation`` does, many at a time.
Then all of them connect with the logins that they got (``swarm.py``), and the server has heard each of them. Devices,
server and broker share the machine: all of their processor time is in the seconds.

    python benchmarks/enrolment.py --devices 1000 --together 64
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from load import PATIENCE_S, Process, free_port, make_bundle

from fedspzo.broker.mqtt.mosquitto import ManagedBroker
from fedspzo.broker.server.enrolment.invitations import invite, list_askers
from fedspzo.broker.server.state_folder import DATABASE
from fedspzo.broker.server.status import read_status
from fedspzo.device_runtime.device.download import read
from fedspzo.device_runtime.device.enrolment import enrol
from fedspzo.device_runtime.device.transfer import DownloadError
from fedspzo.device_runtime.link.access import Access
from fedspzo.device_runtime.link.invitation import Invitation
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.enrolment import ADMITTED
from fedspzo.device_runtime.protocol.signing import PIN
from fedspzo.device_runtime.replica.device_key import KEY

JOB = "enrolment"


def measure(bundle: Path, folder: Path, devices: int, together: int) -> dict[str, Any]:
    """Enrol devices, and have them connect."""
    port, state = free_port(), folder / "server"
    with ManagedBroker(folder / "broker", port=free_port()) as broker:
        broker.server_access()
        pem, url = broker.folder / "server.pem", f"https://localhost:{port}"
        server = Process(
            [sys.executable, "-m", "fedspzo", "server", bundle, "--access", broker.folder / "server.json", "--job", JOB,
             "--state", state, "--json", "--devices", devices + 1, "--cohort", devices, "--http", f"127.0.0.1:{port}",
             "--http-url", url, "--http-certificate", pem, "--http-key", pem],
            folder / "server.log",
        )  # fmt: skip
        swarm: Process | None = None
        try:
            while not (state / DATABASE).exists() or not _answers(url, broker.authority):
                time.sleep(0.2)
            access = Access(broker.url, authority=broker.authority)
            token = invite(state, "all", devices, PATIENCE_S * 10, broker.folder, "swarm")
            invitation = Invitation(access, JOB, url, token)
            usages = {"server": server.usage, "broker": psutil.Process(broker.pid), "devices": psutil.Process()}
            before = {name: sum(usage.cpu_times()[:2]) for name, usage in usages.items()}
            accesses, seconds, waits = _enrol(folder, invitation, devices, together)
            spent = {f"{name}_cpu_s": sum(u.cpu_times()[:2]) - before[name] for name, u in usages.items()}
            assert len(list_askers(state, ADMITTED)) == len({access["user"] for access in accesses}) == devices
            file = folder / "accesses.json"
            file.write_text(json.dumps(accesses))
            command = [sys.executable, Path(__file__).with_name("swarm.py"), "--accesses", file, "--job", JOB]
            swarm = Process([*command, "--bundle-identity", Bundle(bundle).identity.hex()], folder / "swarm.log")
            swarm.next()
            connecting = time.monotonic()
            assert swarm.popen.stdin is not None
            print(file=swarm.popen.stdin, flush=True)
            while (heard := len(read_status(state)["devices"])) < devices:
                if time.monotonic() > connecting + PATIENCE_S:
                    raise SystemExit(f"only {heard} of {devices} devices were heard: {swarm.latest}")
                time.sleep(0.2)
            return {
                "devices": devices, "together": together, "seconds": seconds, "median_wait_s": statistics.median(waits),
                "longest_wait_s": max(waits), **spent, "all_heard_after_s": time.monotonic() - connecting,
                "refused": sum(count for what, count in swarm.latest.items() if "refused" in what),
                "load_average": os.getloadavg()[0],
            }  # fmt: skip
        finally:
            server.stop()
            if swarm is not None:
                swarm.stop()


def _enrol(
    folder: Path, invitation: Invitation, devices: int, together: int
) -> tuple[list[dict[str, str]], float, list[float]]:
    """Accesses with the devices' keys, seconds until all had one, and how long each has waited."""

    def join(number: int) -> tuple[dict[str, str], float]:
        started, state = time.monotonic(), folder / "devices" / f"{number:05d}"
        access = enrol(state, invitation, f"device-{number:05d}")
        waited = time.monotonic() - started
        return {**asdict(access), "secret": (state / KEY).read_bytes().hex()}, waited

    started = time.monotonic()
    with ThreadPoolExecutor(together) as pool:
        joined = list(pool.map(join, range(devices)))
    seconds = time.monotonic() - started
    return [access for access, _ in joined], seconds, [waited for _, waited in joined]


def _answers(url: str, authority: str) -> bool:
    try:
        return read(f"{url}/healthz", 100, authority) == b"ok"
    except DownloadError:
        return False


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--together", type=int, default=64, help="devices that ask at a time")
    parser.add_argument("--bundle", type=Path, help="by default a tiny one is made")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="enrolment-") as name:
        folder = Path(name)
        made = options.bundle or make_bundle(folder)
        bundle = Path(shutil.copytree(made, folder / "copy", ignore=shutil.ignore_patterns(PIN)))
        print(json.dumps(measure(bundle, folder, options.devices, options.together)), flush=True)


if __name__ == "__main__":
    main()
