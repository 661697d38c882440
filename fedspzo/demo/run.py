"""The demo from start to end: data, export, federation, and the evidence that it worked."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.status import Status
from rich.table import Table

from fedspzo.api.simulation import simulate
from fedspzo.broker.rounds.job import Job
from fedspzo.broker.server.state_folder import BUNDLE
from fedspzo.demo import intents
from fedspzo.demo.ceiling import Ceiling, measure_ceiling
from fedspzo.demo.plot import plot_accuracy, plot_feedback
from fedspzo.demo.processes import federation
from fedspzo.demo.settings import Settings
from fedspzo.demo.users import write_feedback
from fedspzo.device_runtime.data.store import DataStore, load_data
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.errors import FedSPZOError
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.objective import REWARD
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.rewards import estimate_reward
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.scores import evaluate
from fedspzo.export.network.target import Target
from fedspzo.export.pipeline import export_bundle
from fedspzo.export.tasks import load_task
from fedspzo.progress import describe_evaluation
from fedspzo.run_folder import SERVER, replay
from fedspzo.tables import format_stages

BATCH, LENGTH = 8, 12
TRAIN_PER_INTENT, TEST_PER_INTENT = 180, 40
ALPHA = 0.5
EVALUATE_EVERY = 20
CEILING_ROUNDS = 60
#: A job on feedback stops when the held-out loss is half above its best.
GUARD = 0.5


@dataclass
class Progress:
    """What the server has said so far.

    Attributes:
        losses: mean loss of each round's batches.
        evaluations: (round, held-out accuracy).
        finish: the server's closing words.
    """

    losses: list[float] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    finish: dict[str, Any] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0


def run_demo(settings: Settings) -> None:
    """Run it all and leave ``summary.json`` and ``accuracy.png`` in the run's folder.

    Raises:
        FedSPZOError: something on the way failed, or the replicas differ at the end.
    """
    started = time.monotonic()
    console = Console(file=sys.stdout, soft_wrap=True)  # this one, though the libraries' output is redirected meanwhile
    folder = settings.folder
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "data").mkdir(parents=True)
    meant, held_out = _write_data(settings)
    console.print(
        f"data: {sum(map(_count_lines, meant.values()))} sentences on {len(meant)} devices, split non-IID"
        f" (Dirichlet {ALPHA}); {_count_lines(held_out)} held out, with templates and words of their own"
    )
    with _status(console, "exporting") as status:
        target = Target([settings.engine], [BATCH], [LENGTH])
        bundle = export_bundle("minilm", load_task("intents"), target, folder / BUNDLE, status.update)
    console.print(format_stages(bundle.manifest), highlight=False)
    data = write_feedback(settings, bundle, meant, folder / "feedback") if settings.feedback else meant
    job = [
        "--rounds", settings.rounds, "--devices", settings.devices, "--cohort", min(settings.cohort, settings.devices),
        "--seeds", settings.seeds, "--seed", settings.seed, "--evaluate-every", EVALUATE_EVERY,
        *(["--objective", REWARD, "--guard", GUARD] if settings.feedback else []),
    ]  # fmt: skip
    with federation(folder / BUNDLE, data, held_out, folder, settings.engine, list(map(str, job))) as events:
        progress = _watch(console, settings, events)
    stores = {name: load_data(path, bundle) for name, path in data.items()}
    test = load_data(held_out, bundle)
    with _status(console, "checking the result"):
        evidence = _evidence(settings, bundle, stores, test)
    with _status(console, "training by backpropagation on the same batches, to compare"):
        ceiling = measure_ceiling(bundle, folder / SERVER, stores, test, CEILING_ROUNDS)
    summary = _summarise(settings, progress, evidence, ceiling)
    if settings.feedback:
        with _status(console, "the same rounds with labels, to compare"):
            labelled = _with_labels(settings, bundle, meant, test)
        summary |= _describe_feedback(stores, evidence, ceiling, labelled)
        plot_feedback(folder / "feedback.png", progress.evaluations, progress.losses, ceiling, labelled)
    else:
        plot_accuracy(folder / "accuracy.png", progress.evaluations, ceiling)
    summary["seconds"] = time.monotonic() - started
    (folder / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    _print_summary(console, settings, summary)
    if not _replicas_equal(summary) or len(summary["device_digests"]) != settings.devices:
        raise FedSPZOError(
            "demo.replicas-differ",
            f"the replicas differ at the end; see {folder / 'summary.json'} and {folder / 'logs'}",
        )


def _status(console: Console, doing: str) -> Status:
    """What is being done: on a terminal until it is done, else as a line."""
    if not console.is_terminal:
        console.print(f"{doing} …")
    return console.status(doing)


def _write_data(settings: Settings) -> tuple[dict[str, Path], Path]:
    """Device → its JSON-lines file, and the held-out file."""
    source = intents.load()
    train = intents.generate(source, "train", TRAIN_PER_INTENT, settings.seed)
    try:
        shares = intents.partition(train, settings.devices, ALPHA, settings.seed)
    except ValueError as error:
        raise FedSPZOError("demo.too-many-devices", f"{error}; choose fewer --devices") from None
    folder = settings.folder / "data"

    def write(name: str, examples: Iterable[intents.Example]) -> Path:
        path = folder / f"{name}.jsonl"
        records = ({"text": e.text, "label": source.intents[e.label].name} for e in examples)
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return path

    held_out = write("held-out", intents.generate(source, "test", TEST_PER_INTENT, settings.seed))
    return {f"device-{i}": write(f"device-{i}", share) for i, share in enumerate(shares, start=1)}, held_out


def _watch(console: Console, settings: Settings, events: Iterator[dict[str, Any]]) -> Progress:
    """Follow the server, showing where it is; on a terminal in place, else a line an evaluation."""
    progress = Progress()
    started = time.monotonic()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for event in events:
            if "finished" in event:
                progress.finish = event
                break
            if "accuracy" in event:
                progress.evaluations.append((event["round"], event["accuracy"]))
                console.print(_line(progress, settings, event["round"], time.monotonic() - started))
            else:
                progress.losses.append(event["loss"])
                progress.step_seconds.append(event["step_seconds"])
                progress.bytes_up, progress.bytes_down = event["bytes_up"], event["bytes_down"]
            line = _line(progress, settings, len(progress.losses), time.monotonic() - started)
            live.update(line, refresh=console.is_terminal)
    return progress


def _line(progress: Progress, settings: Settings, round: int, seconds: float) -> str:
    recent = progress.losses[-EVALUATE_EVERY:]
    loss = f"loss {sum(recent) / len(recent):.3f}" if recent else "loss     –"
    accuracy = f"held-out accuracy {progress.evaluations[-1][1]:.1%}" if progress.evaluations else ""
    traffic = f"{progress.bytes_up / 1e3:.1f} kB up, {progress.bytes_down / 1e3:.1f} kB down"
    return f"round {round:3d}/{settings.rounds}  {loss}  {accuracy}  {traffic}  {seconds:.0f} s"


@dataclass(frozen=True)
class _Evidence:
    accuracy_before: float
    accuracy_after: float
    loss_before: float
    loss_after: float
    replay_digest: str


def _evidence(settings: Settings, bundle: Bundle, stores: dict[str, DataStore], test: DataStore) -> _Evidence:
    """Measure θ₀, replay the journal from it, and measure again: independent of what the processes said."""
    forward = Forward(create_engine(settings.engine, threads=2), Replica(bundle))

    def measure() -> tuple[float, float]:
        losses = [(_mean_loss(forward, store), len(store)) for store in stores.values()]
        loss = sum(each * count for each, count in losses) / sum(count for _, count in losses)
        return evaluate(forward, test).scores["accuracy"], loss

    accuracy_before, loss_before = measure()
    replay(forward.weights, settings.folder / SERVER)
    accuracy_after, loss_after = measure()
    digest = forward.weights.digest().hex()
    return _Evidence(accuracy_before, accuracy_after, loss_before, loss_after, digest)


def _mean_loss(forward: Forward[Replica], store: DataStore) -> float:
    """On a device's examples; of feedback, minus the estimated reward."""
    return evaluate(forward, store).loss if store.feedback is None else -estimate_reward(forward, store).reward


def _with_labels(settings: Settings, bundle: Bundle, meant: dict[str, Path], test: DataStore) -> dict[int, float]:
    """Round → held-out accuracy, where the same devices have labels and take part in the same rounds."""
    job = Job(
        rounds=settings.rounds, cohort=min(settings.cohort, settings.devices), seeds=settings.seeds, seed=settings.seed
    )
    folder = settings.folder / "labelled"
    folder.mkdir()
    for path in meant.values():
        shutil.copy(path, folder)
    found = simulate(
        bundle, folder, job, held_out=test, evaluate_every=EVALUATE_EVERY, engine=settings.engine, threads=2
    )
    return {round: evaluation.scores["accuracy"] for round, evaluation in found.evaluations.items()}


def _describe_feedback(
    stores: dict[str, DataStore], evidence: _Evidence, ceiling: Ceiling, labelled: dict[int, float]
) -> dict[str, Any]:
    """What the summary says in addition; the ceiling is REINFORCE on the same feedback."""
    return {
        "reward_before": -evidence.loss_before,
        "reward_after": -evidence.loss_after,
        "labels_read": sum(
            len(store) if store.feedback is None else int((store.feedback.shown < 0).sum()) for store in stores.values()
        ),
        "reinforce_accuracy": ceiling.accuracy,
        "reinforce_reward": -ceiling.loss,
        "labelled_accuracy": labelled[max(labelled)],
    }


def _summarise(settings: Settings, progress: Progress, evidence: _Evidence, ceiling: Ceiling) -> dict[str, Any]:
    devices = progress.finish["devices"]
    rounds = len(progress.losses)
    return {
        "rounds": rounds,
        "devices": settings.devices,
        "cohort": settings.cohort,
        "method": "fedspzo",
        "seeds": settings.seeds,
        "engine": settings.engine,
        "accuracy_before": evidence.accuracy_before,
        "accuracy_after": evidence.accuracy_after,
        "loss_before": evidence.loss_before,
        "loss_after": evidence.loss_after,
        "ceiling_accuracy": ceiling.accuracy,
        "ceiling_loss": ceiling.loss,
        "ceiling_rounds": ceiling.rounds,
        "bytes_up_per_device_round": sum(d["bytes_up"] for d in devices.values())
        / sum(d["results"] for d in devices.values()),
        "bytes_down_per_device_round": sum(d["bytes_down"] for d in devices.values()) / len(devices) / rounds,
        "seconds_per_device_step": sum(progress.step_seconds) / rounds,
        "device_peak_rss_mb": max(d["rss_mb"] for d in devices.values()),
        "server_digest": progress.finish["server_digest"],
        "replay_digest": evidence.replay_digest,
        "device_digests": {name: d["digest"] for name, d in devices.items()},
        "results": progress.finish["counts"],
        "best": progress.finish["best"],
    }


def _replicas_equal(summary: dict[str, Any]) -> bool:
    return {summary["server_digest"], *summary["device_digests"].values()} == {summary["replay_digest"]}


def _print_summary(console: Console, settings: Settings, summary: dict[str, Any]) -> None:
    other = "REINFORCE by backpropagation" if settings.feedback else "backpropagation"
    table = Table("", "before", "after", f"{other}, first {summary['ceiling_rounds']} rounds' batches")
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row(
        "held-out accuracy", f"{summary['accuracy_before']:.1%}", f"{summary['accuracy_after']:.1%}",
        f"{summary['ceiling_accuracy']:.1%}",
    )  # fmt: skip
    sign, name = (-1, "estimated reward, -1 to 1") if settings.feedback else (1, "mean training loss")
    table.add_row(
        name, f"{sign * summary['loss_before']:.3f}", f"{sign * summary['loss_after']:.3f}",
        f"{sign * summary['ceiling_loss']:.3f}",
    )  # fmt: skip
    console.print(table)
    if settings.feedback:
        console.print(
            f"no device had a label ({summary['labels_read']} read); the same rounds with labels reach"
            f" {summary['labelled_accuracy']:.1%}",
            highlight=False,
        )
    console.print(
        f"replicas: server, {len(summary['device_digests'])} devices and a replay of the journal"
        f" {'are bit-identical' if _replicas_equal(summary) else 'DIFFER'} ({summary['server_digest']})\n"
        f"a device: {summary['bytes_up_per_device_round']:.0f} bytes up and"
        f" {summary['bytes_down_per_device_round']:.0f} down a round,"
        f" {summary['seconds_per_device_step']:.2f} s a step, {summary['device_peak_rss_mb']:.0f} MB at most\n"
        f"the best on the held-out examples was {describe_evaluation(summary['best'])}; --round best takes it\n"
        f"{summary['seconds']:.0f} s in all; {settings.folder}/summary.json, {settings.folder}/"
        f"{'feedback' if settings.feedback else 'accuracy'}.png\n\n"
        f'next: fedspzo predict {settings.folder} "phone my sister"\n'
        f"      fedspzo materialize {settings.folder} --out checkpoint",
        highlight=False,
    )


def _count_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())
