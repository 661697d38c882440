"""Tasks whose answer is a set of labels, or a number: read, trained and measured as a single label is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import make_checkpoint
from refusals import raises
from tiny import BATCH, LENGTH

import fedspzo
from fedspzo.broker.rounds.best import rank
from fedspzo.cli import main
from fedspzo.device_runtime.data.sources import parse_example
from fedspzo.device_runtime.data.store import load_data
from fedspzo.device_runtime.errors import DataError
from fedspzo.device_runtime.model.manifest_reader import parse_manifest
from fedspzo.device_runtime.model.metrics import MULTI, REGRESSION
from fedspzo.device_runtime.model.targets import read_target, write_target
from fedspzo.device_runtime.model.task import KINDS, Label, Task
from fedspzo.device_runtime.step.scores import Evaluation, read_answer
from fedspzo.export import classify
from fedspzo.export.modules.operators import squared_error, threshold_loss
from fedspzo.export.tasks import load_task

TOPICS = Task(
    "topics", "similarity", "{text}",
    (Label("wake", "wake me at six"), Label("song", "play a song"), Label("call", "call mum"), Label("none", "please")),
    target="topics", kind=MULTI, metrics=("accuracy", "macro_f1"),
)  # fmt: skip
LOUDNESS = Task(
    "loudness", "similarity", "{text}", (Label("0", "stop the music"), Label("2.5", "play"), Label("5", "loud song")),
    target="level", kind=REGRESSION, metrics=("pearson", "spearman", "mse"),
)  # fmt: skip
NUMBERS = st.floats(-8, 8, width=32)
#: Values of JSON that a data file may have for a label, right or wrong.
_NAMES = st.sampled_from(["1", "2", "5", "0", "2.5", "alarm", "music", "a, b", "true", "false", "none", "1.0", "[x]"])
_ONE = st.one_of(
    _NAMES, st.integers(-1, 6), st.sampled_from([0.0, 1.0, 2.5, 1e300, float("nan"), 10**400]), st.booleans(),
    st.none(), st.sampled_from(["+1.0", " 2. ", "01", "1.5", "nan", "²", "", " alarm "]),
)  # fmt: skip
_VALUES = st.one_of(
    _ONE,
    st.lists(_ONE, max_size=3),
    st.lists(_ONE, max_size=3).map(json.dumps),
    st.lists(_ONE, max_size=3).map(lambda names: ", ".join(map(str, names))),
    st.dictionaries(_NAMES, _ONE, max_size=1),
    st.just("[" * 100_000),
)


@settings(max_examples=1000)
@given(st.lists(_NAMES, min_size=2, max_size=5, unique=True), st.sampled_from(KINDS), _VALUES)
def test_a_materialised_models_script_reads_targets_as_devices_do(names: list[str], kind: str, value: object) -> None:
    if kind == MULTI:
        names = [*(name for name in names if name != "none"), "none"]
    if kind == REGRESSION:
        names = ["0", "2.5", "5"]
    task = Task("t", "similarity", "{text}", tuple(Label(name, name) for name in names), kind=kind)
    said = {"kind": kind, "labels": names}
    try:
        label, fed = read_target(task, value)
    except DataError:
        with pytest.raises((ValueError, OverflowError)):
            classify.wanted(said, value)
        return
    expected = write_target(task, label, fed)
    found = classify.wanted(said, value)
    assert found == (pytest.approx(expected) if kind == REGRESSION else expected)


@pytest.mark.parametrize(
    ("kind", "labels", "wrong", "known"),
    [
        ("single", ["alarm", "music"], '"radio"', "one of alarm, music"),
        ("single", ["1", "5"], "0", "one of 1, 5"),
        ("multi", ["alarm", "music", "none"], '["alarm", "alarm"]', "a list of alarm, music, none, each once"),
        ("regression", ["0", "2.5"], '"loud"', "a number from 0 to 2.5"),
    ],
)
def test_a_materialised_models_script_names_the_line_of_a_wrong_target(
    tmp_path: Path, kind: str, labels: list[str], wrong: str, known: str
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(f'\n{{"text": "hey", "label": {wrong}}}\n')
    task = {"kind": kind, "labels": labels, "template": "{text}", "target": "label"}
    with pytest.raises(SystemExit, match=f"{re.escape(str(data))}, line 2 has the label .* {known}; correct it"):
        classify.read(data, task)


@pytest.mark.parametrize("line", [b"\xff\xfe", b'{"text": "hey", "label": "caf\xe9"}', b"[" * 100_000])
def test_a_materialised_models_script_names_a_line_that_is_none(tmp_path: Path, line: bytes) -> None:
    data = tmp_path / "data.jsonl"
    data.write_bytes(b'\xef\xbb\xbf{"text": "hey", "label": "music"}\n' + line)
    task = {"kind": "single", "labels": ["alarm", "music"], "template": "{text}", "target": "label"}
    with pytest.raises(SystemExit, match=f"{re.escape(str(data))}, line 2 is no JSON"):
        classify.read(data, task)


@given(st.lists(st.tuples(NUMBERS, st.booleans()), min_size=2, max_size=6))
def test_a_sets_loss_is_binary_cross_entropy_above_none(labels: list[tuple[float, bool]]) -> None:
    logits, truth = torch.tensor([[x for x, _ in labels]]), torch.tensor([[float(y) for _, y in labels]])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, :-1] - logits[:, -1:], truth[:, :-1])
    truth[:, -1] = 0
    torch.testing.assert_close(threshold_loss(logits, truth), expected[None], atol=1e-5, rtol=1e-5)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=6), NUMBERS)
def test_a_numbers_loss_is_its_squared_error(labels: list[tuple[float, float]], number: float) -> None:
    logits, values = torch.tensor([[x for x, _ in labels]]), torch.tensor([v for _, v in labels])
    expected = (torch.softmax(logits, dim=1) @ values - number) ** 2
    torch.testing.assert_close(squared_error(logits, (values - number)[None]), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("value", "label", "fed"),
    [
        (["song", "call"], 1, (0, 1, 1, 0)),
        ("call, wake", 0, (1, 0, 1, 0)),
        ('["song"]', 1, (0, 1, 0, 0)),
        ("wake", 0, (1, 0, 0, 0)),
        ([2, 0], 0, (1, 0, 1, 0)),
        ([], 3, (0, 0, 0, 0)),
        ("", 3, (0, 0, 0, 0)),
        (["none"], 3, (0, 0, 0, 0)),
    ],
)
def test_sets_of_labels_are_read(value: object, label: int, fed: tuple[float, ...]) -> None:
    example = parse_example({"text": "hey", "topics": value}, TOPICS)
    assert (example.label, example.targets) == (label, fed)
    assert read_target(TOPICS, write_target(TOPICS, label, fed)) == (label, fed)


@pytest.mark.parametrize(("value", "label", "number"), [(4, 2, 4.0), ("2.75", 1, 2.75), (0.0, 0, 0.0)])
def test_numbers_are_read(value: object, label: int, number: float) -> None:
    example = parse_example({"text": "hey", "level": value}, LOUDNESS)
    assert (example.label, example.targets) == (label, (0 - number, 2.5 - number, 5 - number))
    assert write_target(LOUDNESS, example.label, example.targets) == number


def test_what_is_no_set_and_no_number_is_refused() -> None:
    for value in (["song", "song"], {"song": 1}, 3.5, [0, 1, 0, 0]):
        with raises("data.missing-label" if isinstance(value, dict) else "data.not-a-set", "topics"):
            parse_example({"text": "hey", "topics": value}, TOPICS)
    with raises("data.unknown-label", "'dance'", "wake, song, call, none"):
        parse_example({"text": "hey", "topics": ["dance"]}, TOPICS)
    for number in ("loud", True, 5.5, "nan"):
        with raises("data.not-a-number", str(number), "from 0 to 5", "loudness"):
            parse_example({"text": "hey", "level": number}, LOUDNESS)
    with raises("data.missing-label", "'level'"):
        parse_example({"text": "hey", "level": [1]}, LOUDNESS)


@pytest.mark.parametrize(
    ("text", "kind", "named"),
    [
        ('kind = "many"\n[causal]\ntemplate = "{text}"\nlabels = {a = "b", c = "d"}', "task.unknown-kind", "many"),
        ('kind = "multi"\n[causal]\ntemplate = "{text}"\nlabels = {a = "b", c = "d"}', "task.no-none", "none"),
        (
            'kind = "regression"\n[causal]\ntemplate = "{text}"\nlabels = {a = "b", 1 = "d"}',
            "task.labels-not-numbers",
            "0 =",
        ),
        (
            'kind = "multi"\n[generation]\ntemplate = "{text}"\nanswer = "{label}."\nanswer_tokens = 2',
            "task.unknown-kind",
            "single",
        ),
        (
            'metrics = ["mse"]\n[causal]\ntemplate = "{text}"\nlabels = {a = "b", c = "d"}',
            "task.unknown-metric",
            "macro_f1",
        ),
        (
            'metrics = "f1"\n[causal]\ntemplate = "{text}"\nlabels = {a = "b", c = "d"}',
            "task.not-a-task",
            "list of names",
        ),
    ],
)
def test_tasks_that_contradict_themselves(tmp_path: Path, text: str, kind: str, named: str) -> None:
    (tmp_path / "own.toml").write_text(text)
    with raises(kind, "own", named):
        load_task(str(tmp_path / "own.toml"))


def test_a_number_with_a_dot_is_put_in_quotes(tmp_path: Path) -> None:
    """To TOML it is a table's name and a key."""
    (tmp_path / "own.toml").write_text('[similarity]\ntemplate = "{text}"\nlabels = {0.5 = "b", 1 = "d"}')
    with raises("task.not-a-task", "label '0'", "in quotes"):
        load_task(str(tmp_path / "own.toml"))


def test_kinds_and_metrics_stand_above_the_forms_or_in_them(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(
        'kind = "regression"\nmetrics = ["spearman"]\n[causal]\ntemplate = "{text}"\nlabels = {0 = "b", 1 = "d"}\n'
        '[generation]\nkind = "single"\nmetrics = ["rouge_l", "f1"]\ntemplate = "{text}"\nanswer = "{label}."\n'
        "answer_tokens = 2"
    )
    tasks = load_task(str(tmp_path / "own.toml"))
    assert (tasks["causal"].kind, tasks["causal"].scores, tasks["causal"].values) == (
        "regression",
        ("spearman",),
        (0, 1),
    )
    assert tasks["generation"].scores == ("rouge_l", "f1")


def test_less_error_is_better() -> None:
    assert rank(Evaluation(9.0, {"mse": 0.5}, 1)) > rank(Evaluation(1.0, {"mse": 0.6}, 1))


def test_answers_for_people() -> None:
    logits = np.array([1.0, -3.0, 2.0, 0.0], np.float32)
    answer, shares = read_answer(TOPICS, logits)
    assert answer == "call, wake"
    assert list(shares) == ["call", "wake", "song"]
    assert shares["wake"] == pytest.approx(1 / (1 + np.exp(-1)))
    assert read_answer(TOPICS, np.array([-1, -1, -1, 0], np.float32))[0] == "none"
    assert read_answer(LOUDNESS, np.array([0, 0, 0], np.float32)) == ("2.5", {})


def test_bundles_of_before_have_the_identity_of_before(bundle: fedspzo.Bundle) -> None:
    """A task without a kind and metrics of its own writes none."""
    record = json.loads((bundle.folder / "manifest.json").read_text())
    assert not {"kind", "metrics"} & record["task"].keys()
    measured = parse_manifest(
        bundle.folder, json.dumps({**record, "task": {**record["task"], "metrics": ["macro_f1"]}})
    )
    assert measured.task.scores == ("macro_f1",)
    assert measured.identity() == bundle.identity
    assert parse_manifest(
        bundle.folder, json.dumps({**record, "task": {**record["task"], "kind": "single"}})
    ).identity() == (bundle.identity)


def write(path: Path, count: int = 48) -> Path:
    """Texts of one, two or no topics, and how loud each is."""
    texts = [
        ("wake me at six", ["wake"], 1),
        ("play a song", ["song"], 4),
        ("call mum", ["call"], 2),
        ("please", [], 0),
    ]
    records = []
    for number in range(count):
        one, other = texts[number % 4], texts[number // 4 % 4]
        records.append(
            {"text": f"{one[0]} {other[0]}", "topics": sorted({*one[1], *other[1]}), "level": (one[2] + other[2]) / 2}
        )
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("task", [TOPICS, pytest.param(LOUDNESS, marks=pytest.mark.slow)], ids=lambda task: task.kind)
def test_such_a_task_is_learnt(checkpoint: Path, task: Task, tmp_path: Path) -> None:
    """Exported, evaluated, trained by seeds and scalars and, on the same graphs, by backpropagation."""
    target = fedspzo.Target(("litert", "torch"), (BATCH,), (LENGTH,))
    bundle = fedspzo.export_model(checkpoint, task, tmp_path / "bundle", target)
    data = write(tmp_path / "data.jsonl")
    store = load_data(data, bundle, tmp_path / "cache.npz")
    again = load_data(data, bundle, tmp_path / "cache.npz")
    assert store.targets is not None
    np.testing.assert_array_equal(store.targets, again.targets)
    before = fedspzo.evaluate(bundle, store)
    assert fedspzo.evaluate(bundle, store, engine="torch").loss == pytest.approx(before.loss, rel=1e-4)
    assert tuple(before.scores) == task.metrics
    job = fedspzo.Job(rounds=25, cohort=4, seed=3, learning_rates=(5e-4, 5e-3))
    run = fedspzo.simulate(bundle, data, job, devices=4, held_out=store)
    assert run.evaluation.loss < 0.7 * before.loss
    assert rank(run.result.best.evaluation) > rank(before)  # type: ignore[union-attr]
    answer = fedspzo.predict(run.model, "play a song").answer
    assert set(answer.split(", ")) <= {"wake", "song", "call", "none"} if task is TOPICS else 0 <= float(answer) <= 5
    ceiling = fedspzo.published_job("fedsgd", rounds=5, cohort=4, learning_rates=(0.003,))
    trained = fedspzo.simulate(bundle, data, ceiling, devices=4, held_out=store, first_order="fedsgd")
    assert trained.evaluation.loss < before.loss


def test_a_score_that_is_not_defined_is_null(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One example has no correlation."""
    bundle, data = tmp_path / "bundle", tmp_path / "data.jsonl"
    fedspzo.export_model(checkpoint, LOUDNESS, bundle, fedspzo.Target(("torch",), (BATCH,), (LENGTH,)))
    data.write_text('{"text": "louder", "level": 4}')
    assert main(["evaluate", str(bundle), "--data", str(data), "--engine", "torch", "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found["before"]["pearson"] is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param("roberta", MULTI, marks=pytest.mark.slow),
        *(
            pytest.param(*case, marks=pytest.mark.matrix)
            for case in (("roberta", REGRESSION), ("gpt2", MULTI), ("gpt2", REGRESSION))
        ),
    ],
)
def test_label_words_and_both_engines(name: str, kind: str, tmp_path: Path) -> None:
    form, template = ("masked", "{text}{mask}") if name == "roberta" else ("causal", "{text}")
    words = {"wake": " good", "song": " bad", "none": " dull"} if kind == MULTI else {"0": " good", "5": " bad"}
    task = Task("own", form, template, tuple(Label(*item) for item in words.items()), kind=kind)
    at = make_checkpoint(tmp_path / "model", name)
    target = fedspzo.Target(("litert", "executorch", "torch"), (2,), (24,))
    bundle = fedspzo.export_model(at, task, tmp_path / "bundle", target)
    labels = [["wake", "song"], [], ["song"]] if kind == MULTI else [0, 2.5, 4]
    lines = [json.dumps({"text": "the film was good", "label": label}) for label in labels]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    losses = [fedspzo.evaluate(bundle, tmp_path / "data.jsonl", engine=engine).loss for engine in target.formats]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-3)
