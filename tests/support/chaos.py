"""A federation in which everything that can break does: a real mosquitto over TLS, a server and devices as processes.

Faults come at random instants, drawn from a seed, and half of them right where a phase of a round begins: kill -9 of
server, devices and broker; connections that are cut, that swallow what they carry, that are slow; acknowledgements and
messages that vanish or come twice. At the end the journal, every replica and every acknowledgement must agree, nobody
was taken for a flooder, and all phases were struck. ``make chaos`` runs it; ``python tests/support/chaos.py --help``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from faulty_proxy import FaultyProxy
from patience import PATIENCE_S
from phases import NAMES, Phases

from fedspzo.broker.mqtt.logins import SERVER_USER
from fedspzo.broker.mqtt.mosquitto import ManagedBroker
from fedspzo.broker.rounds.aggregate import close_round
from fedspzo.broker.rounds.groups import close_sums
from fedspzo.broker.server.state_folder import pin_bundle, read_history, read_journal
from fedspzo.device_runtime.data.store import DataStore, load_data
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.errors import BrokerError
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.privacy.words import pack
from fedspzo.device_runtime.protocol.entry import Entry
from fedspzo.device_runtime.protocol.messages import Result
from fedspzo.device_runtime.protocol.signing import PIN
from fedspzo.device_runtime.replica.state import DeviceState
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.estimator import Measurement, measure
from fedspzo.device_runtime.step.runner import Forward

#: Fault → how often it is drawn, relative to the others.
WEIGHTS = {
    "kill a device": 5, "kill the server": 3, "kill the broker": 2, "cut": 5, "black hole": 4, "delay": 4,
    "swallow acknowledgements": 4, "duplicate acknowledgements": 4, "duplicate messages": 4, "refuse connections": 1,
}  # fmt: skip
#: Mean seconds between faults, and how often one waits for the phase that was struck least.
PACE_S, AIMED = 0.5, 0.5
#: Least share of the faults that strikes in each phase of a round.
SHARE = 0.05
#: Local steps, so that a round lasts long enough to be hit.
STEPS = 8
#: Mode → the server's options; in the first, directions are the devices' own, so that the journal has all results.
MODES: dict[str, list[object]] = {
    "robust": ["--seeds", "device", "--cohort", 4, "--quorum", 2],
    "groups": ["--mode", "groups", "--cohort", 12, "--quorum", 4],
    "secure": ["--mode", "secure", "--cohort", 4, "--quorum", 4],
}
#: Seconds after which what was struck last has recovered: longer than any fault lasts.
QUIET_S = 8.0
#: Rounds after the last fault, and a number of them that no run comes to.
AFTERWARDS, _WITHOUT_END = 10, 1_000_000
#: Rounds whose results are measured again at the end.
RECOMPUTED = 20


@dataclass
class Part:
    """A process that is started again whenever it was killed.

    Attributes:
        arguments: of ``fedspzo``.
        again: when to start it next, if it is down.
    """

    name: str
    arguments: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    again: float = 0.0
    starts: int = 0

    def tend(self, now: float) -> None:
        """Start it when it is time. An end that nobody asked for is an error."""
        if self.process is not None and self.process.poll() not in (None, 0, -signal.SIGKILL):
            if "broker" not in self.tail():  # one that starts while the broker is down says so and ends
                raise AssertionError(f"{self.name} ended by itself: {self.tail()}")
            self.process, self.again = None, now + 1.0
        if self.process is None and now >= self.again:
            with self.log.open("ab") as log:
                command = [sys.executable, "-m", "fedspzo", *self.arguments]
                self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            self.starts += 1

    def kill(self, again: float) -> bool:
        """Kill it without warning; whether it was there to be killed."""
        if self.process is None or self.process.poll() is not None:
            return False
        self.process.kill()
        self.process.wait()
        self.process, self.again = None, again
        return True

    @property
    def done(self) -> bool:
        return self.process is not None and self.process.poll() == 0

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""


@dataclass
class Chaos:
    """One run.

    Attributes:
        mode: one of :data:`MODES`.
        rounds: of the job at the least.
        faults: what took effect, how often.
        struck: phase of a round → faults that struck there.
        rounds_in_faults: rounds closed when the last fault had struck.
        quiet_from: the first round without any fault.
    """

    bundle: Path
    folder: Path
    data: Callable[[Path, int], Path]
    seed: int = 0
    devices: int = 6
    rounds: int = 200
    wanted: int = 200
    mode: str = "robust"
    faults: Counter[str] = field(default_factory=Counter)
    struck: Counter[int] = field(default_factory=Counter)
    rounds_in_faults: int = 0
    quiet_from: int = 0

    def run(self) -> None:
        """Start everything, do harm until enough was done, then let the job end."""
        self.draw = random.Random(self.seed)
        options = MODES[self.mode]
        self.phases = Phases(int(str(options[options.index("--cohort") + 1])), masked=self.mode != "robust")
        self._aim: int | None = None
        self._there = threading.Event()
        bundle = shutil.copytree(self.bundle, self.folder / "bundle", ignore=shutil.ignore_patterns(PIN))
        pin_bundle(bundle, self.folder / "server")
        self.port = _free_port()
        self.broker = broker = self._broker()
        broker.start()
        names = [f"phone-{i}" for i in range(1, self.devices + 1)]
        accesses = [*broker.add_users(names), broker.server_access()]
        listen = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        listen.load_cert_chain(broker.folder / "server.pem")
        upstream = ssl.create_default_context(cadata=accesses[0].authority)
        with FaultyProxy("localhost", broker.port, upstream, listen) as proxy:
            proxy.watch = self._watch
            for access in accesses:
                replace(access, url=f"mqtts://localhost:{proxy.port}").save(self.folder / f"{access.user}.json")
            self.parts = {name: self._device(name, bundle) for name in names}
            self.parts[SERVER_USER] = self._server(bundle, _WITHOUT_END)
            try:
                self._harm(proxy, names)
                self._bring_to_an_end(bundle)
                self._settle()
            finally:
                for part in self.parts.values():
                    part.kill(0)
                self.broker.close()

    def _broker(self) -> ManagedBroker:
        return ManagedBroker(self.folder / "broker", ["localhost"], self.port)

    def _device(self, name: str, bundle: Path) -> Part:
        data = self.data(self.folder / f"{name}.jsonl", 12)
        access, state = self.folder / f"{name}.json", self.folder / name
        arguments = ["device", bundle, "--access", access, "--state", state, "--data", data]
        return Part(name, list(map(str, arguments)), self.folder / f"{name}.log")

    def _server(self, bundle: Path, rounds: int) -> Part:
        arguments = [
            "server", bundle, "--access", self.folder / f"{SERVER_USER}.json", "--state", self.folder / "server",
            "--json", "--rounds", rounds, "--devices", self.devices, "--over-selection", 1.25,
            "--deadline", 3, "--split", 3, "--fanouts", "1,4", "--steps", STEPS, "--serve-after", 0, *MODES[self.mode],
        ]  # fmt: skip
        return Part(SERVER_USER, list(map(str, arguments)), self.folder / "server.log")

    def _harm(self, proxy: FaultyProxy, names: list[str]) -> None:
        kinds, weights = list(WEIGHTS), list(WEIGHTS.values())
        end = time.monotonic() + PATIENCE_S
        while '"results"' not in self.parts[SERVER_USER].tail():  # faults before the first round would strike nobody
            assert time.monotonic() < end, "no round was closed before the first fault"
            self._tend(0.5)
        while sum(self.faults.values()) < self.wanted or self._spared():
            self._tend(self.draw.expovariate(1 / PACE_S))
            if self.draw.random() < AIMED:
                self._wait_for(min(self.phases.all, key=lambda phase: self.struck[phase]))
            kind = self.draw.choices(kinds, weights)[0]
            client = self.draw.choice([*names, SERVER_USER, SERVER_USER])
            phase = self.phases.phase
            struck = self._strike(kind, client, proxy)
            proxy.thaw()
            self.faults[kind] += struck
            self.struck[phase] += struck
        self.rounds_in_faults = self._round()

    def _watch(self, client: str, payload: bytes) -> bool:
        """Follow the round, in the proxy's thread; it stands still where the phase begins that is waited for."""
        if not self.phases.see(client, payload) or self.phases.phase != self._aim:
            return False
        self._aim = None
        self._there.set()
        return True

    def _wait_for(self, phase: int) -> None:
        """Let time pass until a phase begins; nothing is forwarded then."""
        end = time.monotonic() + PATIENCE_S
        self._there.clear()
        self._aim = phase
        while not self._there.wait(0.02):
            assert time.monotonic() < end, f"no round came to where it is {NAMES[phase]}"
            self._tend(0.0)

    def _spared(self) -> list[str]:
        """Phases in which too few faults have struck."""
        least = SHARE * sum(self.faults.values())
        return [NAMES[phase] for phase in self.phases.all if self.struck[phase] < least]

    def _bring_to_an_end(self, bundle: Path) -> None:
        """Start the server once more, with some rounds to go: how many there have been depends on the machine."""
        self._tend(QUIET_S)
        server = self.parts[SERVER_USER]
        server.kill(0)
        self.quiet_from = self._round() + 2  # what was said of the open round may be lost with the server
        self.rounds = max(self.rounds, self._round() + AFTERWARDS)
        server.arguments = self._server(bundle, self.rounds).arguments

    def _strike(self, kind: str, client: str, proxy: FaultyProxy) -> int:
        """Do harm; returns how often it took effect."""
        draw, now = self.draw, time.monotonic()
        if kind == "kill a device":
            names = [name for name in self.parts if name != SERVER_USER]
            return self.parts[draw.choice(names)].kill(now + draw.uniform(0, 4))
        if kind == "kill the server":
            return self.parts[SERVER_USER].kill(now + draw.uniform(0, 3))
        if kind == "kill the broker":
            if self.broker.pid is None:
                return 0
            os.kill(self.broker.pid, signal.SIGKILL)
            self._broker_again = now + draw.uniform(0, 2)
            return 1
        if kind == "cut":
            return proxy.cut(client)
        if kind == "black hole":
            return proxy.black_hole(client, draw.uniform(0.5, 6))
        if kind == "delay":
            return proxy.delay(client, draw.uniform(0.1, 3))
        if kind == "refuse connections":
            proxy.refuse(draw.uniform(0.2, 2))
            return 1
        alter = {
            "swallow acknowledgements": proxy.swallow_acknowledgements,
            "duplicate acknowledgements": proxy.duplicate_acknowledgements,
            "duplicate messages": proxy.duplicate_publishes,
        }[kind]
        before = proxy.counts.copy()
        if not alter(client, draw.randint(1, 3)):
            return 0
        proxy.thaw()
        self._tend(0.3)
        return int(proxy.counts != before)

    def _tend(self, seconds: float) -> None:
        """Let time pass, starting again what is down."""
        end = time.monotonic() + seconds
        while True:
            now = time.monotonic()
            if self.broker.pid is None and now >= self._broker_again:
                self.broker.close()
                self.broker = self._broker()
                self.broker.start()
            for part in self.parts.values():
                part.tend(now)
            if now >= end:
                return
            time.sleep(min(0.05, end - now))

    _broker_again = 0.0

    def _settle(self) -> None:
        """Wait until the server and every device have come to the job's end.

        A server does not wait for devices that it does not see; started again, it brings up those that come later.
        """
        end = time.monotonic() + PATIENCE_S
        server = self.parts[SERVER_USER]
        while not all(part.done for part in self.parts.values()):
            if server.done:
                server.process, server.again = None, 0.0
            self._tend(0.2)
            if time.monotonic() > end:
                late = {part.name: part.tail() for part in self.parts.values() if not part.done}
                raise AssertionError(f"after {PATIENCE_S:g} s these have not ended: {json.dumps(late, indent=1)}")

    def _round(self) -> int:
        return len(read_journal(self.folder / "server"))

    def check(self) -> dict[str, object]:
        """That all agree. Raises AssertionError when they do not."""
        bundle = Bundle(self.folder / "bundle")
        names = [name for name in self.parts if name != SERVER_USER]
        journal, closed = read_journal(self.folder / "server"), read_history(self.folder / "server")
        assert [entry.round for entry in journal] == [r.round for r in closed] == list(range(1, self.rounds + 1))
        asked = {(r.round, name) for r in closed for name in r.devices}
        assert all(len(set(r.devices)) == len(r.devices) >= 2 for r in closed)
        for entry, record in zip(journal, closed, strict=True):
            assert entry.plan.mode == self.mode
            if self.mode == "robust":
                assert sorted(c.owner for c in entry.contributions) == sorted(record.devices)
            else:
                assert sum(each.devices for each in entry.sums) == len(record.devices)
                assert close_sums(entry.plan, entry.sums, close_round) == entry
        told: dict[str, set[tuple[int, str]]] = {"counted": set(), "too late": set()}
        for name in names:
            said = re.findall(
                r"round (\d+)(?: of \d+)?: (counted|too late)$", self.parts[name].log.read_text(errors="replace"), re.M
            )
            for number, verdict in said:
                told[verdict].add((int(number), name))
                assert ((int(number), name) in asked) == (verdict == "counted"), f"{name}: round {number}: {verdict}"
        untold = {each for each in asked if each[0] >= self.quiet_from} - told["counted"]
        assert not untold, f"nobody told these after the last fault that their results count: {sorted(untold)}"
        assert not self._spared(), f"hardly any fault struck in these phases: {self._spared()}"
        self._recompute(bundle, names)
        replica = Replica(bundle)
        for entry in journal:
            replica.apply(entry)
        digest = replica.digest()
        for name in names:
            state = DeviceState(self.folder / name, bundle, name)
            assert (state.replica.round, state.replica.digest()) == (self.rounds, digest), name
        last = json.loads((self.folder / "server.log").read_text().strip().splitlines()[-1])
        assert last["server_digest"] == digest.hex()
        assert not last["counts"].get("floods"), "honest devices were not heard"
        assert {report["digest"] for report in last["devices"].values()} <= {digest.hex()}
        return {
            "faults": dict(self.faults), "struck": {NAMES[phase]: self.struck[phase] for phase in self.phases.all},
            "most messages of a device in 10 s": self.phases.busiest(10.0), "rounds": self.rounds,
            "rounds when the last fault struck": self.rounds_in_faults,
            "starts": {part.name: part.starts for part in self.parts.values()}, "results in the journal": len(asked),
            "acknowledged as counted": len(told["counted"]), "acknowledged as late": len(told["too late"]),
            "counts": last["counts"], "digest": digest.hex(),
        }  # fmt: skip

    def _recompute(self, bundle: Bundle, names: list[str]) -> None:
        """What the journal holds is what the devices measured: some of it is measured again."""
        stores = {name: load_data(self.folder / f"{name}.jsonl", bundle) for name in names}
        forward = Forward(create_engine("litert"), Replica(bundle))
        closed = {record.round: record.devices for record in read_history(self.folder / "server")}
        rounds = set(random.Random(self.seed).sample(range(1, self.rounds + 1), min(RECOMPUTED, self.rounds)))
        for entry in read_journal(self.folder / "server"):
            if entry.round in rounds and self.mode == "robust":  # which bounds what is much larger than usual
                results = {
                    name: _result(entry, measure(forward, stores[name], entry.plan, name))
                    for name in closed[entry.round]
                }
                assert close_round(entry.plan, results) == entry
            elif entry.round in rounds:
                self._sum_again(entry, forward, stores, closed[entry.round])
            forward.weights.apply(entry)

    @staticmethod
    def _sum_again(entry: Entry, forward: Forward, stores: Mapping[str, DataStore], devices: Collection[str]) -> None:
        """A round's sums are those of what its devices measured, in whole numbers."""
        plan, sums = entry.plan, np.zeros(entry.plan.scalars + 2, np.int64)
        for device in devices:
            sums += pack(plan, _result(entry, measure(forward, stores[device], plan, device)))[: len(sums)]
        words = [np.frombuffer(each.words, "<i4").astype(np.int64)[: len(sums)] for each in entry.sums]
        assert np.sum(words, axis=0).tolist() == sums.tolist()


def _result(entry: Entry, found: Measurement) -> Result:
    """What a device sends of what it measured."""
    return Result(entry.round, b"", found.scalars, found.loss, found.examples, 0.0, b"")


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Run it with a model made here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the faults (%(default)s)")
    parser.add_argument("--rounds", type=int, default=200, help="of the job at the least (%(default)s)")
    parser.add_argument("--faults", type=int, default=200, help="that must take effect (%(default)s)")
    parser.add_argument("--devices", type=int, default=6, help="(%(default)s)")
    parser.add_argument("--mode", choices=MODES, default="robust", help="of the job (%(default)s)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="do it there, and leave everything behind")
    options = parser.parse_args()
    from tiny import make_bundle, make_checkpoint, write_requests

    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            bundle = make_bundle(make_checkpoint(folder / "model"), folder / "exported")
            chaos = Chaos(
                bundle,
                folder,
                write_requests,
                options.seed,
                options.devices,
                options.rounds,
                options.faults,
                options.mode,
            )
            started = time.monotonic()
            chaos.run()
            print(json.dumps({**chaos.check(), "seconds": round(time.monotonic() - started)}, indent=1))
        except (AssertionError, BrokerError) as error:
            sys.exit(f"chaos: seed {options.seed}: {error}")


if __name__ == "__main__":
    main()
