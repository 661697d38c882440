"""What ``import fedspzo`` gives: names, types, what importing it does not load, and trackers of experiments."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import BATCH, LENGTH, TASK

import fedspzo
from fedspzo.broker.server.state_folder import read_journal

Write = Callable[[Path, int], Path]


@pytest.fixture
def data(tmp_path: Path, write_examples: Write) -> Path:
    return write_examples(tmp_path / "data.jsonl", 60)


def test_importing_it_loads_neither_numpy_nor_torch() -> None:
    script = """
import sys, fedspzo
assert not {"numpy", "torch", "argparse", "fedspzo.api"} & {*sys.modules}, sorted(sys.modules)
assert set(fedspzo.__all__) <= set(dir(fedspzo))
fedspzo.Access
assert not {"torch", "transformers", "rich", "starlette"} & {*sys.modules}
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_each_public_name_is_there_and_says_what_it_is() -> None:
    for name in fedspzo.__all__:
        value = getattr(fedspzo, name)
        assert (value.__doc__ or "").strip(), name
        assert value.__doc__ != object.__doc__, name
    with pytest.raises(AttributeError, match="module 'fedspzo' has no attribute 'federate'"):
        _ = fedspzo.federate


def test_no_public_name_is_that_of_a_sub_package() -> None:
    modules = {path.stem for path in Path(fedspzo.__path__[0]).iterdir()}
    assert not modules & {*fedspzo.__all__}


def test_type_checkers_see_the_same_names() -> None:
    source = Path(fedspzo.__file__).read_text(encoding="utf-8")
    block = source.split("if TYPE_CHECKING:\n")[1].split("\n\n")[0].splitlines()
    assert {line.split(" as ")[1] for line in block} == {*fedspzo.__all__}


def test_a_model_is_exported_asked_trained_and_written_back(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    bundle = fedspzo.export_model(
        checkpoint, TASK, tmp_path / "bundle", fedspzo.Target(("litert",), (BATCH,), (LENGTH,))
    )
    before = fedspzo.predict(bundle, "wake me at six")
    assert sum(before.probabilities.values()) == pytest.approx(1)
    assert before.answer == next(iter(before.probabilities)) == max(before.probabilities, key=before.probabilities.get)  # type: ignore[arg-type]
    run = fedspzo.simulate(
        tmp_path / "bundle", data, fedspzo.Job(rounds=5), devices=4, held_out=data, state=tmp_path / "state",
        evaluate_every=2,
    )  # fmt: skip
    assert [closed.round for closed in run.rounds] == [1, 2, 3, 4, 5]
    assert list(run.evaluations) == [0, 2, 4, 5]
    assert run.evaluations[0] == fedspzo.evaluate(bundle, data)
    assert run.evaluation == fedspzo.evaluate(run.model, data) == fedspzo.evaluate(tmp_path / "state", data)
    assert run.result.digest == run.model.digest() == fedspzo.open_model(tmp_path / "state").digest()
    written = fedspzo.materialize_model(run.model, tmp_path / "checkpoint")
    assert written.round == 5
    assert (tmp_path / "checkpoint" / "config.json").is_file()
    longer = fedspzo.simulate(bundle, data, fedspzo.Job(rounds=7), devices=4, state=tmp_path / "state")
    assert [closed.round for closed in longer.rounds] == [6, 7]
    with pytest.raises(fedspzo.PlanError) as raised:
        _ = longer.evaluation
    assert raised.value.kind == "simulation.no-held-out"


def test_published_methods(bundle: fedspzo.Bundle, data: Path) -> None:
    job = fedspzo.published_job("fedsgd", rounds=2, cohort=3, learning_rates=(0.01,))
    run = fedspzo.simulate(bundle, data, job, devices=3, first_order="fedsgd")
    assert run.rounds[-1].device_bytes > 0
    assert fedspzo.published_job("decomfl:3").fanouts == (3,)


def test_planned_settings_are_a_job_that_runs(bundle: fedspzo.Bundle, data: Path) -> None:
    planned = fedspzo.plan_settings(bundle, data, devices=5, cohort=2, trial=0, directions=2, batches=5, budget=12)
    assert planned.trial is None
    assert planned.predicted_gain > 0
    run = fedspzo.simulate(bundle, data, replace(planned.job, rounds=1), devices=5)
    assert len(run.rounds) == 1


class Halved:
    """Plans of one's own: the job's, at half its rates in every second round."""

    def __init__(self, job: fedspzo.Job, entries: Iterable[fedspzo.Entry], /) -> None:
        self._own = fedspzo.Pace(job, entries)

    def plan(self, round: int) -> fedspzo.Plan:
        plan = self._own.plan(round)
        rates = (replace(block, learning_rate=block.learning_rate / 2) for block in plan.blocks)
        return plan if round % 2 else replace(plan, blocks=tuple(rates))

    def follow(self, entry: fedspzo.Entry) -> None:
        self._own.follow(entry)


def test_a_method_of_ones_own(bundle: fedspzo.Bundle, data: Path, tmp_path: Path) -> None:
    """Its plans are in the journal; sampling and aggregation are told of the round's own."""
    asked: list[int] = []

    def first(
        job: fedspzo.Job, number: int, candidates: Mapping[str, fedspzo.Candidate], count: int
    ) -> tuple[str, ...]:
        asked.append(number)
        return tuple(sorted(candidates)[:count])

    def clipped(plan: fedspzo.Plan, results: Mapping[str, fedspzo.Result]) -> fedspzo.Entry:
        mean = fedspzo.close_round(plan, results).contributions[0]
        scalars = np.clip(np.array(mean.scalars, np.float32), -0.125, 0.125)
        return fedspzo.Entry(plan, (fedspzo.Contribution("", 1.0, tuple(scalars.tolist())),))

    job = fedspzo.Job(rounds=4, cohort=2, learning_rates=(1e-4, 1.6e-3), final_rate=1)
    run = fedspzo.simulate(
        bundle, data, job, devices=4, state=tmp_path / "state", sample=first, aggregate=clipped, plans=Halved
    )
    assert asked == [1, 2, 3, 4]
    assert {closed.devices for closed in run.rounds} == {("device-1", "device-2")}
    entries = read_journal(tmp_path / "state")
    assert [entry.plan.blocks[1].learning_rate for entry in entries] == [1.6e-3, 8e-4, 1.6e-3, 8e-4]
    assert max(abs(scalar) for entry in entries for scalar in entry.contributions[0].scalars) == 0.125


def test_tensorboard(bundle: fedspzo.Bundle, data: Path, tmp_path: Path) -> None:
    """Each figure is in the file of events."""
    told: list[object] = []
    observe = fedspzo.observe_all(fedspzo.TensorBoard(tmp_path / "logs"), told.append)
    run = fedspzo.simulate(bundle, data, fedspzo.Job(rounds=3, cohort=3), devices=3, held_out=data, observe=observe)
    assert told[-1] == run.result
    (file,) = (tmp_path / "logs").iterdir()
    content = file.read_bytes()
    for name in (b"loss", b"results", b"seconds", b"held_out/loss", b"held_out/accuracy"):
        assert name in content


@pytest.mark.slow
def test_mlflow(bundle: fedspzo.Bundle, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a store of files, which needs no server."""
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    tracker = fedspzo.MLflow(uri=str(tmp_path / "runs"))
    run = fedspzo.simulate(bundle, data, fedspzo.Job(rounds=3, cohort=3), devices=3, held_out=data, observe=tracker)
    client = tracking.MlflowClient(str(tmp_path / "runs"))
    history = client.get_metric_history(tracker.run_id, "loss")
    assert [(figure.step, figure.value) for figure in history] == [(made.round, made.loss) for made in run.rounds]
    finished = client.get_run(tracker.run_id)
    assert (finished.info.status, finished.data.tags["digest"]) == ("FINISHED", run.result.digest.hex())


@pytest.mark.slow
def test_weights_and_biases(
    bundle: fedspzo.Bundle, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder, which needs no account."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    tracker = fedspzo.WandB()
    run = fedspzo.simulate(bundle, data, fedspzo.Job(rounds=3, cohort=3), devices=3, held_out=data, observe=tracker)
    (file,) = tmp_path.rglob("*.wandb")
    content = file.read_bytes()
    for name in (b"loss", b"results", b"seconds", b"held_out/loss", run.result.digest.hex().encode()):
        assert name in content


@pytest.mark.parametrize(
    ("module", "make"), [("tensorboardX", "TensorBoard"), ("mlflow", "MLflow"), ("wandb", "WandB")]
)
def test_a_tracker_that_is_not_installed_is_named(
    module: str, make: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (module, *(name for name in sys.modules if name.startswith(f"{module}."))):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(fedspzo.FedSPZOError, match=f"pip install {module}") as raised:
        getattr(fedspzo, make)(str(tmp_path))
    assert raised.value.kind == "install.tracker"


@pytest.mark.slow
def test_mypy_finds_what_is_wrong_in_a_script(tmp_path: Path) -> None:
    """The package is typed for its users too; lint checks the examples."""
    root = Path(__file__).parents[2]
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import fedspzo\n\nrun = fedspzo.simulate('bundle', 'data', fedspzo.Job(rounds='many'))\nrun.lost\n"
    )
    options = ("--config-file", root / "pyproject.toml", "--cache-dir", root / ".mypy_cache")  # lint has filled it
    bad = subprocess.run([sys.executable, "-m", "mypy", *options, wrong], capture_output=True, text=True)
    assert 'Argument "rounds" to "Job" has incompatible type "str"' in bad.stdout
    assert '"Simulation" has no attribute "lost"' in bad.stdout
