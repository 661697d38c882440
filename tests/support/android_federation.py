"""A federation for the app to join: mosquitto with TLS, a server, devices as on Linux, a proxy before the phone.

As a program (``python tests/support/android_federation.py FOLDER ROUNDS``) it prints an invitation, and then carries
out a line of standard input at a time: ``cut`` resets the phone's connection, ``end`` waits for the job's end and
prints digests. It ends with its standard input.
"""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    sys.path[:0] = [str(here), str(here.parents[1])]

from android_bundle import small_bundle
from faulty_proxy import FaultyProxy
from patience import PATIENCE_S
from ports import free_port

from fedspzo.broker.mqtt.mosquitto import ManagedBroker
from fedspzo.broker.server.state_folder import read_journal
from fedspzo.device_runtime.link.access import Access
from fedspzo.device_runtime.link.invitation import Invitation
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.replica.weights import Replica

PHONE = "phone-1"


class Federation:
    """Started on entry, stopped on exit. The proxy has TLS of its own on either side."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        """``bundle`` is pinned to a server whose state is in ``folder / "server"``."""
        self.bundle, self.folder = bundle, folder
        self.broker = ManagedBroker(folder / "broker", port=free_port())
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Federation:
        self.broker.start()
        pem = self.broker.folder / "server.pem"
        inside = ssl.create_default_context(cafile=str(self.broker.folder / "ca.pem"))
        outside = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        outside.load_cert_chain(pem)
        self.proxy = FaultyProxy("localhost", self.broker.port, inside, outside)
        self.proxy.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running:
            process.kill()
            process.wait()
        self.proxy.__exit__()
        self.broker.close()

    def start(self, name: str, command: str, access: Access, *options: object) -> subprocess.Popen[bytes]:
        """A process of ``fedspzo``; its output goes into files."""
        access.save(self.folder / f"{name}.json")
        places = ("--access", self.folder / f"{name}.json", "--state", self.folder / name)
        arguments = [sys.executable, "-m", "fedspzo", command, self.bundle, *places, *options]
        with (self.folder / f"{name}.out").open("w") as out, (self.folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen(list(map(str, arguments)), stdout=out, stderr=log)
        self._running.append(process)
        return process

    def invitation(self, login: Access, http_port: int | None = None) -> Invitation:
        """To the broker through the proxy, and to the bundle where the server's port is given."""
        bundle_url = f"https://localhost:{http_port}" if http_port else ""
        return Invitation(replace(login, url=f"mqtts://localhost:{self.proxy.port}"), bundle_url=bundle_url)

    def digests(self, server: subprocess.Popen[bytes]) -> dict[str, str]:
        """Once the server has ended: the replica's hash as it says, as its journal gives, and as each device says."""
        assert server.wait(PATIENCE_S) == 0, (self.folder / "server.log").read_text()
        last = json.loads((self.folder / "server.out").read_text().splitlines()[-1])
        replica = Replica(Bundle(self.bundle))
        for entry in read_journal(self.folder / "server"):
            replica.apply(entry)
        devices: dict[str, Any] = last["devices"]
        return {
            "server": last["server_digest"],
            "journal": replica.digest().hex(),
            **{name: report["digest"] for name, report in devices.items()},
        }


def main(folder: Path, rounds: str) -> None:
    """One phone and one other device."""
    made = small_bundle()
    for part in ("bundle", "server"):
        shutil.copytree(made / part, folder / part)
    with Federation(folder / "bundle", folder) as federation:
        phone, other = federation.broker.add_users([PHONE, "board-1"])
        federation.start("board-1", "device", other, "--data", made / "examples.jsonl")
        port, pem = free_port(), federation.broker.folder / "server.pem"
        server = federation.start(
            "server", "server", federation.broker.server_access(), "--json", "--devices", "2", "--cohort", "2",
            "--rounds", rounds, "--deadline", "60", "--fanouts", "1,64", "--serve-after", "0",
            "--http", f"localhost:{port}", "--http-certificate", pem, "--http-key", pem,
        )  # fmt: skip
        print(federation.invitation(phone, port).text(), flush=True)
        for line in sys.stdin:
            if line.strip() == "cut":
                print(federation.proxy.cut(PHONE), flush=True)
            else:
                print(json.dumps(federation.digests(server)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
