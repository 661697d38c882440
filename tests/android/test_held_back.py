"""What the phone holds back of its examples, and how it tells whether the model gets better on them."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice, product
from pathlib import Path

import numpy as np
import pytest
from android_process import Listener
from fedspzo_app.held_back import SplitExamples, hold_back, keys
from fedspzo_app.improvement import FEWEST, MOST, Improvement, smooth, verdict_of
from fedspzo_app.private_files import PrivateFiles
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE_S
from test_android_app import Federation, open_app
from tiny import BATCH, LENGTH, TASK, WORDS

from fedspzo.broker.mqtt.mosquitto_program import installed
from fedspzo.broker.server.state_folder import pin_bundle
from fedspzo.device_runtime.data.feedback import Feedback
from fedspzo.device_runtime.data.sources import Example, parse_example
from fedspzo.device_runtime.data.store import DataStore, subset, tokenise
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.link.invitation import Invitation
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.metrics import REGRESSION
from fedspzo.device_runtime.model.task import Label, Task
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.protocol.signing import PIN
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.scores import evaluate
from fedspzo.export.network.target import Target
from fedspzo.export.pipeline import export_bundle


def texts(count: int) -> list[str]:
    return [" ".join(words) for words in islice(product(WORDS, repeat=4), 0, 17 * count, 17)]


@pytest.fixture(scope="module")
def examples(bundle: Bundle) -> DataStore:
    """A thousand different texts."""
    found = texts(1000)
    return tokenise(bundle, [Example({"text": text}, number % 3) for number, text in enumerate(found)])


@given(order=st.permutations(range(40)), repeated=st.lists(st.integers(0, 39), max_size=20))
def test_what_is_held_back_stays_so_whatever_is_added(
    examples: DataStore, order: list[int], repeated: list[int]
) -> None:
    rows = np.array([0, *order, *repeated])
    store = subset(examples, rows)
    held = hold_back(store, TASK)
    assert not held[0], "one alone is trained on"
    for length in range(1, len(rows) + 1):
        assert (hold_back(subset(store, np.arange(length)), TASK) == held[:length]).all()
    sides = set(zip(keys(store, TASK), held.tolist(), strict=True))
    assert len(sides) == len({key for key, _ in sides}), "the same text is on one side"


def test_one_in_five_is_held_back_and_never_trained_on(examples: DataStore) -> None:
    asked = [examples]
    parts = SplitExamples(lambda: asked[0], TASK)
    training, held_back = parts.training(), parts.held_back()
    assert 150 < len(held_back) < 250
    assert len(training) + len(held_back) == len(examples)
    assert not set(keys(training, TASK)) & set(keys(held_back, TASK))
    assert parts.training() is training, "made once"
    asked[0] = subset(examples, np.arange(10))
    assert len(parts.training()) + len(parts.held_back()) == 10


def test_reactions_are_trained_on_unless_their_text_is_held_back(examples: DataStore) -> None:
    held = np.flatnonzero(hold_back(examples, TASK))[:1]
    trained = np.flatnonzero(~hold_back(examples, TASK))
    fresh = held[0]
    rows = np.array([0, fresh, fresh, trained[1], fresh + 0])  # first, held back, a reaction to it, another, again
    store = subset(examples, rows)
    shown = np.array([-1, -1, 2, 1, -1], np.int32)
    store = replace(store, feedback=Feedback(shown, np.ones(5, np.float32), np.ones(5, np.float32)))
    parts = SplitExamples(lambda: store, TASK)
    assert hold_back(store, TASK).tolist() == [False, True, True, False, True]
    assert len(parts.held_back()) == 2
    assert parts.held_back().feedback is None
    assert parts.training().feedback is not None
    alone = replace(subset(store, np.array([0, 2])), feedback=Feedback(*(np.ones(2, np.int32) for _ in range(3))))
    assert not hold_back(alone, TASK).any(), "a text that is known by a reaction alone"


@pytest.fixture
def replica(bundle: Bundle) -> Replica:
    return Replica(bundle)


def test_the_model_is_measured_on_the_same_examples_and_judged(
    bundle: Bundle,
    examples: DataStore,
    replica: Replica,
    make_plan: Callable[..., Plan],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forward = Forward(create_engine("litert", 1), replica)
    file = tmp_path / "improvement.json"
    improvement = Improvement(file)
    improvement.measure(forward, 0, subset(examples, np.arange(FEWEST - 1)))
    told = improvement.describe(bundle)
    assert (told["examples"], told["fewest"], told["verdict"]) == (FEWEST - 1, FEWEST, "")
    assert {name: course["points"] for name, course in told["courses"].items()} == {"right": (), "loss": ()}

    held = subset(examples, np.arange(60))
    improvement.measure(forward, 0, held)
    told = improvement.describe(bundle)
    assert (told["examples"], told["verdict"]) == (60, "")
    measured = evaluate(forward, held)
    assert told["courses"]["right"]["points"] == ((0, measured.scores["accuracy"]),)
    assert told["courses"]["loss"]["points"] == ((0, pytest.approx(measured.loss)),)

    monkeypatch.setattr(time, "monotonic", lambda: 1e9)
    improvement.measure(forward, 1, held)
    assert improvement.describe(bundle)["verdict"] == "same"

    replica.apply(Entry(make_plan(), (Contribution("", 1.0, (900.0, 900.0, -700.0, 400.0)),)))
    grown = examples  # all that were measured are still there
    improvement.measure(forward, 2, grown)
    told = improvement.describe(bundle)
    assert told["examples"] == 60
    values, losses = ([value for _, value in told["courses"][name]["points"]] for name in ("right", "loss"))
    assert values[2] != values[0]
    assert losses[2] != losses[0]
    assert told["verdict"] in ("same", "better" if values[2] > values[0] else "worse")
    assert Improvement(file).describe(bundle) == told
    file.with_name("another").write_text(file.read_text().replace(bundle.identity.hex(), "00" * 32))
    assert not Improvement(file.with_name("another")).describe(bundle)["courses"]["loss"]["points"], "of another model"

    improvement.measure(forward, 3, subset(examples, np.arange(100, 900)))  # others: from the start
    told = improvement.describe(bundle)
    assert (told["examples"], told["verdict"]) == (MOST, "")
    assert [len(told["courses"][name]["points"]) for name in ("right", "loss")] == [1, 1]


def test_a_task_of_numbers_has_its_loss_alone(checkpoint: Path, tmp_path: Path) -> None:
    labels = (Label("0", "wake me"), Label("5", "play some music"))
    task = Task("loudness", "similarity", "please {text}", labels, target="level", kind=REGRESSION)
    target = Target(["litert"], [BATCH], [LENGTH])
    export_bundle(str(checkpoint), {task.form: task}, target, tmp_path / "bundle")
    bundle = Bundle(tmp_path / "bundle")
    found = [parse_example({"text": text, "level": number % 6}, task) for number, text in enumerate(texts(30))]
    forward, held = Forward(create_engine("litert", 1), Replica(bundle)), tokenise(bundle, found)
    improvement = Improvement(tmp_path / "improvement.json")
    improvement.measure(forward, 0, held)
    (course,) = improvement.describe(bundle)["courses"].items()
    assert (course[0], course[1]["points"]) == ("loss", ((0, pytest.approx(evaluate(forward, held).loss)),))
    assert Improvement(tmp_path / "improvement.json").describe(bundle) == improvement.describe(bundle)


def test_measuring_takes_a_twentieth_of_the_time(
    examples: DataStore, replica: Replica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    improvement, clock = Improvement(tmp_path / "improvement.json"), iter([100.0, 103.0])
    assert improvement.due(0)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    improvement.measure(Forward(create_engine("litert", 1), replica), 0, subset(examples, np.arange(30)))
    for now, due in ((104.0, False), (162.0, False), (164.0, True)):
        monkeypatch.setattr(time, "monotonic", lambda now=now: now)
        assert improvement.due(1) == due
        assert improvement.due(1, last=True)
        assert not improvement.due(0, last=True), "that round was measured"


@pytest.mark.parametrize(
    ("gains", "expected"),
    [([0.0] * 40, "same"), ([1.0] * 9 + [0.0] * 31, "better"), ([1.0, -1.0] * 20, "same"), ([1.0] * 40, "better"),
     ([1.0] * 3 + [0.0] * 37, "same"), ([-1.0] * 9 + [0.0] * 31, "worse")],
)  # fmt: skip
def test_clear_differences_alone_are_called_better_or_worse(gains: list[float], expected: str) -> None:
    first = np.linspace(0, 1, 40)
    assert verdict_of(first, first + gains, more_is_better=True) == expected
    assert verdict_of(first, first - gains, more_is_better=False) == expected, "a loss"


def test_what_cannot_be_read_is_measured_again(bundle: Bundle, tmp_path: Path) -> None:
    for content in ("", "{}", '{"bundle": 3}', "[1]"):
        (tmp_path / "file").write_text(content)
        assert Improvement(tmp_path / "file").describe(bundle)["courses"]["loss"]["points"] == ()


@given(st.lists(st.floats(-1e3, 1e3), max_size=30))
def test_smoothing_keeps_rounds_ends_and_straight_lines(values: list[float]) -> None:
    points = list(enumerate(values))
    found = smooth(points)
    assert [round for round, _ in found] == [round for round, _ in points]
    assert (found[:1], found[-1:]) == (points[:1], points[-1:])
    assert all(min(values) - 1e-6 <= value <= max(values) + 1e-6 for _, value in found)
    line = [(round, 3.0 * round) for round, _ in points]
    assert np.allclose(np.reshape(smooth(line), (-1, 2)), np.reshape(line, (-1, 2)))


@pytest.mark.slow
@pytest.mark.skipif(not installed(), reason="mosquitto is not installed")
def test_a_job_is_measured_from_its_start_to_its_end(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bool] = []
    write = PrivateFiles.write

    def watched(files: PrivateFiles, file: Path, content: bytes) -> None:
        if file == files.finished:
            written.append(json.loads(app.status())["running"])
        write(files, file, content)

    monkeypatch.setattr(PrivateFiles, "write", watched)
    bundle = shutil.copytree(bundle_folder, tmp_path / "chosen", ignore=shutil.ignore_patterns(PIN))
    pin_bundle(bundle, tmp_path / "server")
    with Federation(bundle, tmp_path) as federation:
        login = federation.broker.add_user("phone-1")
        federation.start(
            "server", "server", federation.broker.server_access(), "--devices", "1", "--cohort", "1",
            "--rounds", "6", "--fanouts", "1,4", "--serve-after", "0",
        )  # fmt: skip
        app = open_app(tmp_path)
        app.enrol(Invitation(login).text())
        app.import_bundle(str(shutil.copytree(bundle, tmp_path / "unpacked")))
        (tmp_path / "mine.jsonl").write_text("".join(f'{{"text": "{text}", "label": "call"}}\n' for text in texts(200)))
        app.import_examples(str(tmp_path / "mine.jsonl"))
        assert app.start(Listener()) == "{}"
        end = time.monotonic() + PATIENCE_S
        while not (status := json.loads(app.status()))["finished"]:
            assert time.monotonic() < end, status
            time.sleep(0.05)
    assert written[0], "it runs until the job's end is on the disk: what has stopped and not finished is begun again"
    told = json.loads(open_app(tmp_path).status())
    assert told["finished"], "the app knows it when it is opened again"
    assert not told["running"]
    assert told["round"] == 6
    points = told["improvement"]["courses"]["right"]["points"]
    assert (points[0][0], points[-1][0]) == (0, 6)
    assert told["improvement"]["examples"] >= FEWEST
    assert json.loads(app.leave()) == {}
    assert not json.loads(app.status())["improvement"]["courses"]["right"]["points"]
