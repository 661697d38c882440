"""Load on the server and a managed mosquitto: rounds of many simulated devices, and many that are idle.

The server is the real process with a tiny model, so that only rounds cost; devices come from ``swarm.py``. A row of
rounds counts those after the first. A row of idle devices spans a little more than one of their periodic syncs.
Processor seconds include all that a process does; the load average tells whether others also used the machine.

    python benchmarks/load.py --rounds-with 100,300,1000 --idle 1000,2500,5000
    python benchmarks/load.py --rounds-with 1000 --rounds 50 --idle "" --tls --json
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil

from fedspzo.broker.mqtt.mosquitto import ManagedBroker
from fedspzo.broker.server.status import read_status
from fedspzo.device_runtime.link.access import Access
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.signing import PIN

JOB = "load"
SCALARS = 200
DEADLINE_S = 60.0
#: What a round of 1,000 devices is held to.
BAR_DEVICES, BAR_ROUNDS_PER_MINUTE, BAR_RSS_MB = 1000, 5.0, 400.0
SYNC_WINDOW_S = 65.0
PATIENCE_S = 300.0


def make_bundle(folder: Path) -> Path:
    """A tiny BERT with random weights, as a bundle for LiteRT."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    from fedspzo.device_runtime.model.task import Label, Task
    from fedspzo.export.network.target import Target
    from fedspzo.export.pipeline import export_bundle

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "please", "wake", "me", "up", "play", "some", "music"]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder / "model")
    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "model" / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
    labels = (Label("alarm", "wake me up"), Label("music", "play some music"))
    task = Task("requests", "similarity", "please {text}", labels)
    export_bundle(str(folder / "model"), {task.form: task}, Target(["litert"], [4], [12]), folder / "bundle")
    return folder / "bundle"


class Process:
    """A process whose lines of JSON are read as they come.

    Attributes:
        lines: (time by the monotonic clock, what the line held) in order; None when it has ended.
    """

    def __init__(self, command: Sequence[object], log: Path) -> None:
        self._log = log
        with log.open("w") as errors:
            self.popen = subprocess.Popen(
                list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.lines: queue.Queue[tuple[float, dict[str, Any]] | None] = queue.Queue()
        self.latest: dict[str, Any] = {}
        self.usage = psutil.Process(self.popen.pid)
        threading.Thread(target=self._read, daemon=True).start()

    def next(self, timeout: float = PATIENCE_S) -> tuple[float, dict[str, Any]]:
        """The next line. Ends the benchmark when there is none in time."""
        try:
            line = self.lines.get(timeout=timeout)
        except queue.Empty:
            line = None
        if line is None:
            raise SystemExit(f"{self.popen.args!r} says nothing more: {self.log()[-2000:]}")
        return line

    def log(self) -> str:
        """What it has written to standard error."""
        return self._log.read_text()

    def stop(self) -> None:
        """Kill it."""
        self.popen.kill()
        self.popen.wait()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.latest = json.loads(line)
            self.lines.put((time.monotonic(), self.latest))
        self.lines.put(None)


class Federation:
    """A broker, a server, and devices that are ready to connect.

    Attributes:
        server: the server's process.
        state: its folder.
    """

    def __init__(
        self, bundle: Path, folder: Path, devices: int, options: argparse.Namespace, cohort: int, wanted: int
    ) -> None:
        """Start all but the devices' connections.

        Args:
            cohort: devices in a round.
            wanted: devices that must come before the first.
        """
        self.devices, self.state = devices, folder / "server"
        port, plain = free_port(), free_port()
        self._plain = f"mqtt://127.0.0.1:{plain}"
        self._broker = ManagedBroker(folder / "broker", port=port, plain_port=plain)
        self._broker.start()
        self._processes: list[Process] = []
        try:
            self._start(bundle, folder, options, (cohort, wanted), self._plain)
        except BaseException:
            self.close()
            raise

    def _start(
        self, bundle: Path, folder: Path, options: argparse.Namespace, sizes: tuple[int, int], plain: str
    ) -> None:
        cohort, wanted = sizes
        accesses = self._broker.add_users(f"device-{number:05d}" for number in range(self.devices))
        place = [] if options.tls else ["--broker", plain]
        self._broker.server_access()
        stages = len(Bundle(bundle).manifest.stages)
        self.server = self._spawn(
            folder / "server.log",
            [sys.executable, "-m", "fedspzo", "server", bundle, "--access", folder / "broker" / "server.json", *place,
             "--job", JOB, "--state", self.state, "--json", "--rounds", 1_000_000, "--devices", wanted,
             "--cohort", cohort, "--quorum", cohort, "--deadline", DEADLINE_S, "--split", stages - 2,
             "--fanouts", f"1,{SCALARS}", "--mode", options.mode, "--group", options.group,
             *(["--cut-off", folder / "broker"] if options.cut_off else []),
             *(["--http", "127.0.0.1:0"] if options.http else [])],
        )  # fmt: skip
        self.swarms = []
        for number in range(options.swarms):
            share = accesses[number :: options.swarms]
            file = folder / f"accesses-{number}.json"
            file.write_text(json.dumps([asdict(a) if options.tls else asdict(a) | {"url": plain} for a in share]))
            command = [sys.executable, Path(__file__).with_name("swarm.py"), "--accesses", file, "--job", JOB]
            self.swarms.append(
                self._spawn(
                    folder / f"swarm-{number}.log",
                    [*command, "--bundle-identity", Bundle(bundle).identity.hex(),
                     "--step-seconds", options.step_seconds],
                )
            )  # fmt: skip
        for swarm in self.swarms:
            swarm.next()
        while not (self.state / "server.sqlite").exists():
            time.sleep(0.2)
        time.sleep(2.0)
        assert self._broker.pid is not None
        self._mosquitto = psutil.Process(self._broker.pid)

    def connect(self) -> float:
        """Let the devices connect; seconds until all have subscribed."""
        started = time.monotonic()
        for swarm in self.swarms:
            assert swarm.popen.stdin is not None
            swarm.popen.stdin.write("\n")
            swarm.popen.stdin.flush()
        while self.counts["subscribed"] < self.devices:
            if time.monotonic() > started + PATIENCE_S:
                raise SystemExit(f"only {self.counts['subscribed']} of {self.devices} devices came: {self.counts}")
            time.sleep(0.05)
        return time.monotonic() - started

    def let_in(self, name: str) -> Access:
        """The access of another login, to the listener without TLS."""
        return replace(self._broker.add_user(name), url=self._plain, authority="")

    @property
    def known(self) -> int:
        """Devices whose sync the server has taken."""
        return len(read_status(self.state)["devices"])

    @property
    def counts(self) -> Counter[str]:
        """What the devices have counted, up to a second ago."""
        return sum((Counter(swarm.latest) for swarm in self.swarms), Counter())

    def processor_seconds(self) -> dict[str, float]:
        """Processor time that each part has used so far."""
        parts = {"server": [self.server.usage], "broker": [self._mosquitto], "devices": [s.usage for s in self.swarms]}
        return {name: sum(sum(u.cpu_times()[:2]) for u in usages) for name, usages in parts.items()}

    def resident_mb(self) -> dict[str, float]:
        """Resident memory of the server and the broker, in megabytes."""
        found = {"server": self.server.usage, "broker": self._mosquitto}
        return {f"{name}_rss_mb": usage.memory_info().rss / 1e6 for name, usage in found.items()}

    def close(self) -> None:
        """Stop everything."""
        for process in self._processes:
            process.stop()
        self._broker.close()

    def _spawn(self, log: Path, command: Sequence[object]) -> Process:
        process = Process(command, log)
        self._processes.append(process)
        return process


@contextmanager
def federation(
    bundle: Path, devices: int, options: argparse.Namespace, cohort: int, wanted: int
) -> Iterator[Federation]:
    """A federation in a folder of its own, stopped and removed at the end."""
    with tempfile.TemporaryDirectory(prefix="load-") as name:
        copy = Path(name, "bundle")  # each server leaves its own key in it
        shutil.copytree(bundle, copy, ignore=shutil.ignore_patterns(PIN))
        running = Federation(copy, Path(name), devices, options, cohort, wanted)
        try:
            yield running
        finally:
            running.close()


def measure_rounds(bundle: Path, devices: int, options: argparse.Namespace) -> dict[str, Any]:
    """Rounds, in which every device takes part if no cohort is given."""
    cohort = options.cohort or devices
    with federation(bundle, devices, options, cohort, wanted=devices) as running:
        connect = running.connect()
        started, _ = next_round(running)
        while not running.server.lines.empty():
            started, _ = next_round(running)
        before = running.processor_seconds()
        seconds, resident = [], []
        for _ in range(options.rounds):
            ended, closed = next_round(running)
            seconds.append(closed["seconds"])
            resident.append(running.resident_mb()["server_rss_mb"])
        after = running.processor_seconds()
        time.sleep(1.0)  # until the devices have told what they counted
        counts = running.counts
        found = {
            "devices": devices,
            "cohort": cohort,
            "mode": options.mode,
            "tls": options.tls,
            "connect_s": connect,
            "rounds": len(seconds),
            "rounds_per_minute": 60 * len(seconds) / (ended - started),
            "round_s_median": statistics.median(seconds),
            "round_s_max": max(seconds),
            **{f"{part}_cpu_s_per_round": (after[part] - before[part]) / len(seconds) for part in after},
            **running.resident_mb(),
            "server_rss_mb_growth": resident[-1] - resident[0],
            "results_sent_again": counts["results sent again"],
            "disconnected": counts["disconnected"],
            "server_warnings": len(running.server.log().splitlines()) - 1,  # it says that it waits for devices
            "load_average": os.getloadavg()[0],
        }
        if cohort >= BAR_DEVICES:
            found["passed"] = (
                found["rounds_per_minute"] >= BAR_ROUNDS_PER_MINUTE and found["server_rss_mb"] <= BAR_RSS_MB
            )
        return found


def measure_idle(bundle: Path, devices: int, options: argparse.Namespace) -> dict[str, Any]:
    """Devices that are connected, while the server waits for one more."""
    with federation(bundle, devices, options, cohort=1, wanted=devices + 1) as running:
        started = time.monotonic()
        connect = running.connect()
        while running.known < devices:
            if time.monotonic() > started + PATIENCE_S:
                raise SystemExit(f"the server knows only {running.known} of {devices} devices")
            time.sleep(0.2)
        synced = time.monotonic() - started
        time.sleep(2.0)
        start_up, counted = running.processor_seconds(), running.counts
        time.sleep(SYNC_WINDOW_S)
        after, counts = running.processor_seconds(), running.counts - counted
        return {
            "devices": devices,
            "tls": options.tls,
            "connect_s": connect,
            "synced_s": synced,
            "syncs_in_window": counts["syncs sent"],
            **{f"{part}_cpu_s_to_connect": start_up[part] for part in ("server", "broker")},
            **{f"{part}_cpu_s_per_minute": 60 * (after[part] - start_up[part]) / SYNC_WINDOW_S for part in after},
            **running.resident_mb(),
            "disconnected": counts["disconnected"],
            "server_warnings": len(running.server.log().splitlines()) - 1,
            "load_average": os.getloadavg()[0],
        }


def next_round(running: Federation) -> tuple[float, dict[str, Any]]:
    """When the server said that it closed the next round, and what it said."""
    at, event = running.server.next()
    while "results" not in event:
        at, event = running.server.next()
    return at, event


def free_port() -> int:
    """A TCP port that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _show(rows: list[dict[str, Any]]) -> None:
    """A table in Markdown, a line for each figure."""
    for name in rows[0] if rows else ():
        cells = (f"{row[name]:,.2f}" if isinstance(row.get(name), float) else str(row.get(name, "")) for row in rows)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> int:
    """Measure, and exit with 1 when a figure is beyond its bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds-with", default="100,300,1000", metavar="N,N", help="devices in a round")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of each that are timed")
    parser.add_argument("--cohort", type=int, metavar="N", help="how many of them a round asks; by default all")
    parser.add_argument("--idle", default="1000,2500,5000", metavar="N,N", help="devices that are only connected")
    parser.add_argument("--swarms", type=int, default=2, help="processes of simulated devices")
    parser.add_argument("--mode", default="robust", help="robust, groups or secure; swarms do not mask what they send")
    parser.add_argument("--group", type=int, default=0, help="devices in a group at least")
    parser.add_argument("--step-seconds", type=float, default=0.0, help="that a device takes for a result")
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--cut-off", action="store_true", help="let the server take the login of a flooder away")
    parser.add_argument("--http", action="store_true", help="serve metrics and the console as well")
    parser.add_argument("--bundle", type=Path, help="a small one to use; by default one is made")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    passed = True
    with tempfile.TemporaryDirectory(prefix="load-bundle-") as name:
        bundle = options.bundle or make_bundle(Path(name))
        for measure, sizes in ((measure_rounds, options.rounds_with), (measure_idle, options.idle)):
            rows = []
            for size in filter(None, sizes.split(",")):
                rows.append(measure(bundle, int(size), options))
                passed = passed and rows[-1].get("passed", True)
                print(json.dumps(rows[-1]) if options.json else f"{size} devices: done", flush=True)
            if not options.json:
                _show(rows)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
