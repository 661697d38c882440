"""`fedspzo energy`, and joules on their way from a device's sensor to the server: real processes over a real broker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet
import pytest
from federation import Processes, broker, finish, processes
from sensors import BatteryTree, RaplTree

from fedspzo.broker.rounds.aggregate import ClosedRound, Spending
from fedspzo.broker.server.store import ServerStore
from fedspzo.cli import main
from fedspzo.device_runtime.energy.book import read_book
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.plan import Plan

__all__ = ["broker", "processes"]

IDLE_W, WORK_W = 10.0, 25.0
CUT = ("--split", "3", "--fanouts", "1,4")


def others_cpu_seconds() -> float:
    """What the process spent beside the thread that asks, whose files would else look like work."""
    return time.process_time() - time.thread_time()


@contextmanager
def powered(root: Path, cpu_seconds: Callable[[], float] = others_cpu_seconds) -> Iterator[Path]:
    """A machine that draws so much when it is idle, and so much more for each CPU second of a process."""
    tree = RaplTree(root / "sys/class/powercap")
    stop = threading.Event()

    def run() -> None:
        started = time.monotonic()
        while not stop.wait(0.004):
            tree.show(IDLE_W * (time.monotonic() - started) + WORK_W * cpu_seconds(), 0.0)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield root
    finally:
        stop.set()
        thread.join()


@contextmanager
def meter(log: Path) -> Iterator[None]:
    """A meter that appends to its log what this process draws, row by row, in a process of its own."""
    program = f"""
import psutil, sys, time
host = psutil.Process({os.getpid()})
spent = lambda: sum(host.cpu_times()[:2])
before, used = time.time(), spent()
print("time,W", flush=True)
while True:
    time.sleep(0.02)
    now, cpu = time.time(), spent()
    print(f"{{(now + before) / 2:.4f}},{{{IDLE_W} + {WORK_W} * (cpu - used) / (now - before):.3f}}", flush=True)
    before, used = now, cpu
"""
    with log.open("wb") as rows, subprocess.Popen([sys.executable, "-c", program], stdout=rows) as process:
        while not log.stat().st_size:
            time.sleep(0.01)
        try:
            yield
        finally:
            process.kill()


def ask(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["energy", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def refuse(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["energy", *map(str, arguments)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("fedspzo energy: ")
    assert said.count("\n") == 1
    return said


@pytest.fixture
def measured(bundle_folder: Path, tmp_path: Path, write_examples: Callable[[Path, int], Path]) -> list[object]:
    """The arguments of a short measurement."""
    return ["measure", bundle_folder, "--data", write_examples(tmp_path / "data.jsonl", 12), *CUT, "--idle", 0.4]


def test_sources_of_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = ask(capsys, "sources", "--energy-root", tmp_path)
    assert "this device has no energy sensor that could be read" in said
    assert said.count("\nno ") + said.startswith("no ") == 4
    RaplTree(tmp_path / "sys/class/powercap")
    BatteryTree(tmp_path / "sys/class/power_supply", ("current",), 1000, status="Charging")
    said = ask(capsys, "sources", "--energy-root", tmp_path)
    assert (
        "rapl: a counter of joules of 2 processor packages with dram (package+dram); it tells 6.1e-05 J apart" in said
    )
    assert "updated every 0.001 s" in said
    assert "not at the moment: the charger is connected" in said
    BatteryTree(tmp_path / "sys/class/power_supply", ("current",), 1000)
    found = json.loads(ask(capsys, "sources", "--json", "--energy-root", tmp_path))
    power, package, platform = found["sources"]
    assert (power["name"], power["kind"], power["now"]) == ("battery-power", "power", "readable")
    assert any("is in mA, not in µA" in remark for remark in power["remarks"])
    assert package["resolution_joules"] == 2**-14
    assert platform["name"] == "psys"
    assert set(found["missing"]) == {"jetson", "pi5", "battery"}


def test_measure_by_a_sensor(measured: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with powered(tmp_path) as root:
        # a busy machine lags behind
        more = ("--energy-root", root, "--steps", 200, "--interval", 0.05, "--idle", 2, "--repeat", 2)
        found = json.loads(ask(capsys, *measured, *more, "--json"))
        kept = ("--readings", tmp_path / "readings.csv", "--series", tmp_path / "series.parquet")
        said = ask(capsys, *measured, *more, *kept, "--plot", tmp_path / "power.png")
    header, *rows = (tmp_path / "readings.csv").read_text().splitlines()
    assert header.startswith("time (s),joules,")
    assert (tmp_path / "power.png").read_bytes().startswith(b"\x89PNG")
    times = [float(row.split(",")[0]) for row in rows]
    assert times == sorted(set(times))
    assert times[-1] - times[0] > 2 + 2  # idle before and after
    series = pyarrow.parquet.read_table(tmp_path / "series.parquet").to_pydict()
    assert series["step"] == list(range(1, 401))
    for joules, width in zip(series["joules above idle"], series["half of its 95 % interval"], strict=True):
        assert (joules is None) == (width is None)
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(json.dumps(found))
    same = json.loads(ask(capsys, "compare", tmp_path / "a.json", tmp_path / "b.json", "--json"))
    assert (same["difference"], same["differ"], same["alike"]) == (0.0, False, True)
    assert found["source"] == "rapl"
    assert found["measured"]
    assert found["idle"]["watts"] == pytest.approx(IDLE_W, rel=0.25)
    assert found["idle"]["drift"] is not None
    assert found["joules"] > 0
    assert found["steps"] == 400
    assert len(found["repetitions"]) == 2
    assert found["joules_per_step"] == pytest.approx(found["joules"] / 400, rel=0.2)
    assert found["joules_per_step_half_width"] > 0
    assert set(found["phases"]) == {
        "tokenise", "perturb", "forward block 1", "forward block 2", "apply", "other",
    }  # fmt: skip
    for figure in found["phases"].values():
        assert (figure["half_width"] is None) == bool(figure["reason"])
    assert found["machine"]["kernel"]
    assert found["plan"]["repeats"] == 2
    assert "forward block 2 " in said
    assert "J above idle (400 steps in 2 repetitions" in said
    assert "ESTIMATE" not in said


def test_an_estimate_is_called_one(measured: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    price = ("--joules-per-flop", "2e-9", "--steps", 3, "--repeat", 1)
    found = json.loads(ask(capsys, *measured, *price, "--json"))
    assert found["measured"] is False
    assert "ESTIMATE" in found["remarks"][0]
    assert found["joules"] > 0
    assert found["joules_half_width"] is None
    assert found["reason"] == "an estimate has no interval"
    said = ask(capsys, *measured, *price, "--plot", tmp_path / "power.svg")
    assert "a step takes by ESTIMATE" in said
    assert "J a step above idle, by ESTIMATE" in (tmp_path / "power.svg").read_text()


def test_backpropagation_by_the_same_meter(
    measured: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Methods are compared by what a loss takes: here the counted operations of a step are known."""
    what, bundle, *data = measured[:4]
    course = ("--joules-per-flop", "2e-9", "--steps", 12, "--repeat", 2, "--idle", 0.1, "--target-loss", 10, "--json")
    found = {
        name: json.loads(ask(capsys, what, bundle, *data, "--method", name, *course)) for name in ("fedadam", "mezo")
    }
    for name, each in found.items():
        assert each["plan"]["method"] == name
        assert each["target"]["steps"] == 8
        assert each["target"]["joules"] == pytest.approx(8 * each["joules_per_step"])
    assert (found["fedadam"]["engine"], found["mezo"]["engine"]) == ("torch", "litert")
    # Two forward passes against one with gradients of weights and of inputs, which embeddings do not need.
    assert 1.0 < found["fedadam"]["joules_per_step"] / found["mezo"]["joules_per_step"] < 1.6


def test_measure_by_a_meter(measured: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A log that is there when the steps are done, and one that comes later."""
    log, timeline = tmp_path / "meter.csv", tmp_path / "timeline.json"
    # a busy machine lags behind, and what else it does hides the edges of the work
    more = ("--steps", 800, "--idle", 2, "--repeat", 1, "--offset", 0)
    with meter(log):
        found = json.loads(ask(capsys, *measured, "--csv", log, "--timeline", timeline, *more, "--json"))
    assert found["source"] == "csv"
    assert found["joules"] > 0
    later = json.loads(ask(capsys, "report", timeline, "--csv", log, "--offset", 0, "--json"))
    assert later["steps"] == 800
    assert later["joules"] == pytest.approx(found["joules"], rel=0.3)
    assert "is written; then: fedspzo energy report" in ask(capsys, *measured, "--timeline", timeline, "--steps", 2)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--energy-root", "/nowhere"], "[energy.no-sensor]"),
        (["--source", "wattmeter", "--energy-root", "/nowhere"], "[energy.unknown-source]"),
        (["--source", "rapl", "--joules-per-flop", "1e-9"], "[option.source-and-estimate]"),
        (["--joules-per-flop", "5"], "such as 2e-10 [option.joules-per-flop]"),
        (["--csv", "log.csv", "--source", "rapl"], "[option.csv-beside-source]"),
        (["--csv", "log.csv", "--offset", "soon"], "[option.offset]"),
        (["--csv", "log.csv", "--offset", "nan"], "[option.offset]"),
        (["--steps", "0"], "[option.energy-range]"),
        (["--idle", "nan"], "[option.energy-range]"),
        (["--interval", "inf"], "[option.energy-range]"),
        (
            ["--csv", "/nowhere/log.csv"],
            "or --timeline, and the log afterwards to energy report [energy.log-unreadable]",
        ),
        (["--csv", "/nowhere/log.csv", "--volts", "nan"], "[option.volts]"),
        (
            ["--timeline", "/nowhere/timeline.json"],
            "its folder is missing, or may not be written to); give another path",
        ),
        (["--readings", "/nowhere/readings.csv", "--joules-per-flop", "1e-9"], "[option.unwritable]"),
        (["--series", "series.xls", "--joules-per-flop", "1e-9"], "[option.table-form]"),
        (["--plot", "power.bmp"], "[option.picture-form]"),
        (["--plot", "/nowhere/power.png"], "[option.unwritable]"),
        (["--method", "backpropagation"], "[job.unknown-method]"),
        (["--method", "fedadam", "--engine", "litert"], "[job.blocks-differ"),
    ],
)
def test_what_cannot_be_measured_gets_a_sentence(
    measured: list[object], more: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refuse(capsys, *measured, *more)


def test_a_battery_that_is_being_charged_measures_nothing(
    measured: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    BatteryTree(tmp_path / "sys/class/power_supply", status="Charging")
    root = ("--energy-root", tmp_path, "--steps", 2, "--repeat", 1)
    assert "gave no reading during the measurement (the charger is connected" in refuse(
        capsys, *measured, *root, "--source", "battery"
    )
    assert "[energy.no-reading-now]" in refuse(capsys, *measured, *root)


def test_reports_that_cannot_be_made(tmp_path: Path, pinned: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert "[energy.no-records]" in refuse(capsys, "report", tmp_path)
    ServerStore(tmp_path / "state", pinned.identity)
    assert "run fedspzo server with --energy" in refuse(capsys, "report", tmp_path / "state")
    (tmp_path / "energy.jsonl").write_text('{"half a li')
    assert "[energy.no-rounds]" in refuse(capsys, "report", tmp_path)
    (tmp_path / "timeline.json").write_text("{}")
    assert "[option.timeline-without-csv]" in refuse(capsys, "report", tmp_path / "timeline.json")


def keep_rounds(
    folder: Path,
    bundle: Bundle,
    make_plan: Callable[..., Plan],
    rounds: int,
    estimated: Sequence[int] = (0, 0),
    scatter: float = 0.01,
) -> Path:
    """A server's folder after rounds in which the loss fell by a point in 50, with two devices that told 3 J each; so
    many of them estimated, by turns."""
    store = ServerStore(folder, bundle.identity)
    for round in range(1, rounds + 1):
        plan = make_plan(round=round)
        loss = 2.0 - round / 50 + scatter * (round % 3)
        closed = ClosedRound(round, loss, ("a", "b"), 1.0, 0.1, Spending(6.0, 0.5, 2, estimated[round % 2]))
        store.close_round(Entry(plan, (Contribution("", 1.0, (1.0,) * 4),)), closed)
    return folder


def test_joules_of_a_point_of_loss(
    tmp_path: Path, pinned: Bundle, make_plan: Callable[..., Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = keep_rounds(tmp_path, pinned, make_plan, 50, (0, 1))
    found = json.loads(ask(capsys, "report", folder, "--json"))
    assert (found["rounds"], found["joules"], found["joules_uncertainty"]) == (50, 300.0, 25.0)
    assert found["joules_a_device_round"] == 3.0
    assert found["joules_a_device_round_uncertainty"] == 0.25
    assert found["joules_a_point"] == pytest.approx(300 / 0.8, rel=0.02)
    assert found["joules_a_point_uncertainty"] > 25 / 0.8
    assert "(25% of it by ESTIMATE)" in ask(capsys, "report", folder)


def test_joules_of_rounds_have_an_interval_or_the_reason_why_not(
    tmp_path: Path, pinned: Bundle, make_plan: Callable[..., Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    few = keep_rounds(tmp_path / "few", pinned, make_plan, 9)
    assert json.loads(ask(capsys, "report", few, "--json"))["joules_a_point"] is None
    assert "a point of loss has no price, as fewer than 10 rounds have a loss" in ask(capsys, "report", few)
    flat = keep_rounds(tmp_path / "flat", pinned, make_plan, 10, scatter=0.1)
    assert "has no price, as the loss fell too little to tell one (it fell by" in ask(capsys, "report", flat)
    guess = ask(capsys, "report", keep_rounds(tmp_path / "guess", pinned, make_plan, 50, (2, 2)))
    assert "50 rounds took 300 J above idle (by ESTIMATE)" in guess
    assert "a device's: 3 J (an estimate has no interval)" in guess
    assert guess.count("±") == 1, "of the loss alone"


@pytest.mark.slow
def test_joules_come_to_the_server(
    processes: Processes,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One device measures, one estimates, one does neither; the measured joules are those that its work took."""
    running: list[psutil.Process] = []
    last = [0.0]

    def cpu_seconds() -> float:
        if running:
            times = running[0].cpu_times()
            last[0] = max(last[0], times.user + times.system)
        return last[0]

    server = processes.server("--energy", "--rounds", "150", "--cohort", "3", "--sampling", "energy")
    with powered(tmp_path / "root", cpu_seconds) as root:
        one = processes.device("meter", more=("--energy", "auto", "--energy-root", root, "--energy-idle", 4))
        running.append(psutil.Process(one.pid))
        processes.device("price", more=("--joules-per-flop", "1e-9"))
        processes.device("silent")
        progress, closing, _ = finish(server)
    rounds = [event for event in progress if "results" in event]
    assert {event.get("joules_devices") for event in rounds[20:]} == {2}
    assert {event["joules_estimated"] for event in rounds[20:]} == {1}
    devices = closing["devices"]
    assert closing["energy"]["measured_joules"] == pytest.approx(devices["meter"]["joules"], rel=0.9)
    assert 0 < closing["energy"]["estimated_joules"] <= devices["price"]["joules"]
    assert not devices["meter"]["joules_estimated"]
    assert devices["price"]["joules_estimated"]
    assert "joules" not in devices["silent"]
    records = read_book(tmp_path / "meter")
    assert {record["round"] for record in records} >= set(range(2, 150))
    assert {record["source"] for record in records} == {"rapl"}
    assert all(record["loss"] is not None for record in records[1:-1])
    assert {"perturb", "forward block 1", "forward block 2", "apply", "network"} <= {
        phase for record in records for phase in record["phases"]
    }
    work = sum(record["joules"] for record in records)
    margin = 4 * sum(record["uncertainty"] for record in records)
    assert work == pytest.approx(devices["meter"]["joules"], abs=margin)
    assert 0 < devices["meter"]["joules"] < WORK_W * last[0] + margin
    status: dict[str, Any] = json.loads(_status(capsys, "--json", tmp_path / "server"))
    told = {device["name"]: device["joules_a_round"] for device in status["devices"]}
    assert told["silent"] is None
    assert told["price"] > 0
    assert [device["joules_estimated"] for device in status["devices"]] == [False, True, False]
    assert "in part by ESTIMATE" in _status(capsys, tmp_path / "server")
    assert "J above idle (50% of it by ESTIMATE)" in ask(capsys, "report", tmp_path / "server")
    assert "measured by: rapl" in ask(capsys, "report", tmp_path / "meter")
    assert "forward block 2: " in ask(capsys, "report", tmp_path / "meter")


def _status(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["status", *map(str, arguments)]) == 0
    return capsys.readouterr().out
