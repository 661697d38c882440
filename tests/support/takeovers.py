"""Two servers of one job, of which the one that has it is killed again and again: the other takes it over.

A real mosquitto, devices as processes, and the state in one folder (sqlite) or shared in a real PostgreSQL. At the end
the journal, every replica and every acknowledgement must agree. ``make chaos-ha`` runs it.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from chaos import Part
from patience import PATIENCE_S
from ports import free_port
from postgres import running

from fedspzo.broker.mqtt.mosquitto import ManagedBroker
from fedspzo.broker.server.state_folder import read_history, read_journal
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.signing import PIN
from fedspzo.device_runtime.replica.state import DeviceState
from fedspzo.device_runtime.replica.weights import Replica

STORES = ("sqlite", "postgres")
#: Rounds that a server closes before it is killed at the least, and those after the last kill.
BETWEEN, AFTERWARDS = 2, 5
_WITHOUT_END = 1_000_000


@dataclass
class TakeOvers:
    """One run.

    Attributes:
        database: URL where the state is shared; "" for one folder for both servers.
        seconds: from each kill to the next round that the other server has closed.
    """

    bundle: Path
    folder: Path
    data: Callable[[Path, int], Path]
    kills: int = 20
    database: str = ""
    devices: int = 3
    seed: int = 0
    seconds: list[float] = field(default_factory=list)

    def run(self) -> None:
        """Start everything, kill, and let the job end."""
        draw = random.Random(self.seed)
        bundle = shutil.copytree(self.bundle, self.folder / "bundle", ignore=shutil.ignore_patterns(PIN))
        with ManagedBroker(self.folder / "broker", ["localhost"], free_port()) as broker:
            names = [f"phone-{i}" for i in range(1, self.devices + 1)]
            for access in (*broker.add_users(names), broker.server_access()):
                access.save(self.folder / f"{access.user}.json")
            self.servers = {name: self._server(name, bundle, _WITHOUT_END) for name in ("first", "second")}
            self.phones: dict[str, Part] = {}
            try:
                self._until((bundle / PIN).exists)
                self.phones = {name: self._device(name, bundle) for name in names}
                self._until(lambda: self._last_round() >= BETWEEN)
                for _ in range(self.kills):
                    self._take_over(draw.uniform(0.0, 2.0))
                for name, server in self.servers.items():
                    server.kill(0)
                    server.arguments = self._server(name, bundle, self._last_round() + AFTERWARDS).arguments
                self._until(lambda: all(part.done for part in (*self.servers.values(), *self.phones.values())))
            finally:
                for part in (*self.servers.values(), *self.phones.values()):
                    part.kill(0)

    def state(self, server: str) -> Path:
        """The folder of a server's state."""
        return self.folder / (server if self.database else "server")

    def check(self) -> dict[str, object]:
        """That all agree. Raises AssertionError when they do not."""
        bundle = Bundle(self.folder / "bundle")
        for server in self.servers:
            journal, closed = read_journal(self.state(server)), read_history(self.state(server))
            assert (
                [entry.round for entry in journal] == [each.round for each in closed] == list(range(1, len(closed) + 1))
            )
        assert all(len(set(each.devices)) == len(each.devices) >= 2 for each in closed)
        asked = {(each.round, name) for each in closed for name in each.devices}
        replica = Replica(bundle)
        for entry in journal:
            replica.apply(entry)
        for name, phone in self.phones.items():
            said = re.findall(r"round (\d+)(?: of \d+)?: counted$", phone.log.read_text(), re.M)
            assert {(int(number), name) for number in said} <= asked, f"{name} was told of a round that is not kept"
            state = DeviceState(self.folder / name, bundle, name)
            assert (state.replica.round, state.replica.digest()) == (len(journal), replica.digest()), name
        return {
            "kills": len(self.seconds), "rounds": len(journal), "results": len(asked),
            "seconds to the next round": sorted(round(each, 1) for each in self.seconds),
            "digest": replica.digest().hex(),
        }  # fmt: skip

    def _take_over(self, later: float) -> None:
        """Kill the server that has the job, and wait for rounds of the other."""
        self._tend(later)
        name = max(self.servers, key=self._closed)
        other = next(each for each in self.servers if each != name)
        before = self._closed(other)
        self.servers[name].kill(again=math.inf)
        killed = time.monotonic()
        self._until(lambda: self._closed(other) > before)
        self.seconds.append(time.monotonic() - killed)
        self.servers[name].again = 0.0
        self._until(lambda: self._closed(other) >= before + BETWEEN)

    def _closed(self, server: str) -> int:
        """The last round that a server says that it has closed."""
        log = self.servers[server].log
        found = re.findall(r'"round": (\d+), "loss"', log.read_text(errors="replace")) if log.exists() else []
        return int(found[-1]) if found else 0

    def _last_round(self) -> int:
        return max(map(self._closed, self.servers))

    def _tend(self, seconds: float) -> None:
        """Let time pass, starting again what is down."""
        end = time.monotonic() + seconds
        while True:
            for part in (*self.servers.values(), *self.phones.values()):
                part.tend(time.monotonic())
            if time.monotonic() >= end:
                return
            time.sleep(0.05)

    def _until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not condition():
            parts = (*self.servers.values(), *self.phones.values())
            assert time.monotonic() < end, json.dumps({part.name: part.tail() for part in parts}, indent=1)
            self._tend(0.1)

    def _server(self, name: str, bundle: Path, rounds: int) -> Part:
        arguments = [
            "server", bundle, "--access", self.folder / "server.json", "--state", self.state(name), "--standby",
            "--json", "--rounds", rounds, "--devices", self.devices, "--cohort", self.devices, "--quorum", 2,
            "--deadline", 3, "--split", 3, "--fanouts", "1,4", "--serve-after", 0,
            *(("--database", self.database) if self.database else ()),
        ]  # fmt: skip
        return Part(name, list(map(str, arguments)), self.folder / f"{name}.log")

    def _device(self, name: str, bundle: Path) -> Part:
        data = self.data(self.folder / f"{name}.jsonl", 12)
        access, state = self.folder / f"{name}.json", self.folder / name
        arguments = ["device", bundle, "--access", access, "--state", state, "--data", data]
        return Part(name, list(map(str, arguments)), self.folder / f"{name}.log")


def main() -> None:
    """Run it with a model made here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", choices=STORES, default="sqlite", help="where the state is (%(default)s)")
    parser.add_argument("--kills", type=int, default=20, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the instants (%(default)s)")
    options = parser.parse_args()
    from tiny import make_bundle, make_checkpoint, write_requests

    with tempfile.TemporaryDirectory() as temporary, running(options.store == "postgres") as database:
        folder = Path(temporary)
        bundle = make_bundle(make_checkpoint(folder / "model"), folder / "exported")
        run = TakeOvers(
            bundle, folder, write_requests, options.kills, database.url if database else "", seed=options.seed
        )
        try:
            run.run()
            print(json.dumps({"store": options.store, **run.check()}, indent=1))
        except AssertionError as error:
            sys.exit(f"chaos-ha: seed {options.seed}: {error}")


if __name__ == "__main__":
    main()
