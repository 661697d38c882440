"""The best round, and the model of any round: chosen by held-out examples, bit for bit that of the journal."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from refusals import raises, refused

import fedspzo
from fedspzo.broker.rounds.best import best_round, rank, stalled
from fedspzo.broker.server.held_out import HeldOut
from fedspzo.broker.server.state_folder import SNAPSHOTS, newest_snapshot, read_journal, snapshot_rounds
from fedspzo.broker.server.store import ServerStore
from fedspzo.cli import main
from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.tensor_file import TensorFile
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.scores import Evaluation

Write = Callable[[Path, int], Path]
ROUNDS = 6


def scored(*pairs: tuple[float, float]) -> dict[int, Evaluation]:
    """Evaluations with an accuracy and a loss, ten rounds apart."""
    return {10 * n: Evaluation(loss, {"accuracy": accuracy}, 9) for n, (accuracy, loss) in enumerate(pairs)}


def test_the_first_score_decides_then_the_loss_then_who_was_first() -> None:
    assert best_round({}) is None
    assert best_round(scored((0.5, 1.0), (0.7, 2.0), (0.6, 0.1))) == 10
    assert best_round(scored((0.5, 1.0), (0.7, 2.0), (0.7, 1.9))) == 20
    assert best_round(scored((0.7, 1.0), (0.7, 1.0))) == 0
    assert best_round(scored((0.7, math.nan), (0.7, 9.0), (math.nan, 0.0))) == 10
    losses = {n: Evaluation(loss, {}, 9) for n, loss in enumerate((1.0, 0.8, 0.9))}
    assert best_round(losses) == 1
    assert rank(losses[1]) > rank(losses[2])


def test_patience_ends_with_evaluations_in_a_row_that_are_no_better() -> None:
    falling = scored((0.5, 1.0), (0.7, 1.0), (0.6, 1.0), (0.7, 1.0))
    assert [stalled(falling, patience) for patience in (1, 2, 3)] == [True, True, False]
    again = {**falling, 40: Evaluation(1.0, {"accuracy": 0.9}, 9)}
    assert stalled(again, 2), "what a job that has stopped measures at its end does not continue it"
    assert not stalled(again, 3)
    assert not stalled(scored((0.5, 1.0), (0.5, 0.9), (0.5, 0.8)), 1), "a lower loss is better where scores are equal"


def test_evaluations_on_other_examples_do_not_count(tmp_path: Path, store: DataStore) -> None:
    with ServerStore(tmp_path, bytes(32)) as server:
        held_out = HeldOut(server, store, patience=1)
        found = scored((0.5, 1.0), (0.6, 1.0), (0.4, 1.0))
        assert [held_out.add(fedspzo.Evaluated(*item)) for item in found.items()] == [True, True, False]
        again = HeldOut(server, store, patience=1)
        assert again.evaluations == held_out.evaluations
        assert again.best is not None
        assert again.best.round == 10
        assert again.stalled
        other = HeldOut(server, replace(store, labels=(store.labels + 1) % 3), patience=1)
        assert (other.evaluations, other.best, other.stalled) == ({}, None, False)


def test_evaluations_on_other_right_answers_do_not_count(tmp_path: Path, store: DataStore) -> None:
    """Of generation, where labels say nothing: a second answer that is right as well may be all that is new."""
    answered = replace(store, references=(("five",),) * len(store))
    with ServerStore(tmp_path, bytes(32)) as server:
        for round, found in scored((0.5, 1.0)).items():
            HeldOut(server, answered).add(fedspzo.Evaluated(round, found))
        assert HeldOut(server, answered).evaluations
        assert not HeldOut(server, replace(answered, references=(("five", "5"),) * len(store))).evaluations


@pytest.fixture(scope="module")
def run(
    bundle: Bundle, tmp_path_factory: pytest.TempPathFactory, write_examples: Write
) -> tuple[Path, fedspzo.Simulation]:
    """A simulated run that is evaluated after each round, and its folder. Its last rounds climb the loss again."""
    folder = tmp_path_factory.mktemp("best")
    data = write_examples(folder / "data.jsonl", 60)
    for sign, rounds in ((1, ROUNDS - 2), (-1, ROUNDS)):
        job = fedspzo.Job(rounds=rounds, cohort=2, seed=5, final_rate=1.0, learning_rates=(sign * 1e-3, sign * 1e-2))
        done = fedspzo.simulate(bundle, data, job, devices=6, held_out=data, evaluate_every=1, state=folder / "run")
    return folder / "run", done


def digests(folder: Path, bundle: Bundle) -> list[bytes]:
    """Of each round, the journal's entries applied one by one from θ₀."""
    replica = Replica(bundle)
    found = [replica.digest()]
    for entry in read_journal(folder):
        replica.apply(entry)
        found.append(replica.digest())
    return found


def test_any_round_is_rebuilt_bit_for_bit(run: tuple[Path, fedspzo.Simulation], bundle: Bundle, tmp_path: Path) -> None:
    folder, done = run
    expected = digests(folder, bundle)
    assert len(set(expected)) == ROUNDS + 1
    assert done.result.best is not None
    best = done.result.best.round
    assert 0 < best <= ROUNDS - 2
    assert (done.best_model.round, done.best_model.digest()) == (best, expected[best])
    kept = TensorFile(folder / SNAPSHOTS / f"{best:08d}.safetensors").metadata["digest"]
    assert kept == expected[best].hex()
    bare = tmp_path / "bare"  # the journal alone
    shutil.copytree(folder, bare, symlinks=True, ignore=shutil.ignore_patterns("*.safetensors"))
    assert newest_snapshot(bare) is None
    for where in (folder, bare):
        for number in range(ROUNDS + 1):
            found = fedspzo.open_model(where, number)
            assert (found.round, found.digest()) == (number, expected[number])
        assert fedspzo.open_model(where, "best").digest() == expected[best]
        assert fedspzo.open_model(where).digest() == fedspzo.open_model(where, "last").digest() == expected[-1]
    for number in (-1, ROUNDS + 1):
        with raises(
            "state.no-such-round", f"round {number}", f"to round {ROUNDS if number > 0 else 0}", "Give another"
        ):
            fedspzo.open_model(bare, number)
    with raises("state.round-of-a-bundle", str(bundle.folder), "leave the round out"):
        fedspzo.open_model(bundle.folder, 3)


def test_commands_take_a_round_and_say_which_is_the_best(
    run: tuple[Path, fedspzo.Simulation], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, done = run
    assert done.result.best is not None
    best, evaluation = done.result.best.round, done.result.best.evaluation
    data = folder.parent / "data.jsonl"

    def said(*arguments: object) -> str:
        assert main(list(map(str, arguments))) == 0
        return capsys.readouterr().out

    evaluated = json.loads(said("evaluate", folder, "--data", data, "--json", "--round", "best"))
    assert evaluated[f"after {best} rounds"]["accuracy"] == evaluation.scores["accuracy"]
    assert said("predict", folder, "wake me", "--round", 0) == said("predict", folder / "bundle", "wake me")
    sentence = f"round {best} (loss {evaluation.loss:.4f}, accuracy {evaluation.scores['accuracy']:.1%})"
    assert f"best in {sentence}, last in round {ROUNDS} " in said("status", folder)
    status = json.loads(said("status", folder, "--json"))["evaluated"]
    assert (status["best"]["round"], status["last"]["round"]) == (best, ROUNDS)
    assert f"{sentence}; --round best gives it" in said("materialize", folder, "--out", tmp_path / "last")
    assert said("materialize", folder, "--out", tmp_path / "best", "--round", "best").startswith(
        f"checkpoint of round {best} "
    )
    last, best_of_all = (TensorFile(tmp_path / name / "model.safetensors") for name in ("last", "best"))
    assert any((last.view(name) != best_of_all.view(name)).any() for name in last.names)
    assert "[state.no-such-round]" in refused(capsys, "predict", folder, "wake me", "--round", 99)


def test_a_run_without_evaluations_has_no_best_round(bundle: Bundle, tmp_path: Path, write_examples: Write) -> None:
    data = write_examples(tmp_path / "data.jsonl", 12)
    done = fedspzo.simulate(bundle, data, fedspzo.Job(rounds=1, cohort=1), devices=2, state=tmp_path / "run")
    assert done.result.best is None
    assert done.best_model is done.model
    with raises("state.no-evaluation", "--held-out", "give a round's number"):
        fedspzo.open_model(tmp_path / "run", "best")
    with raises("option.patience", "held-out"):
        fedspzo.simulate(bundle, data, patience=1)
    with raises("option.patience", "at least 1"):
        fedspzo.simulate(bundle, data, held_out=data, patience=0)


def test_a_simulation_that_gets_no_better_stops_and_stays_so(
    bundle: Bundle, tmp_path: Path, write_examples: Write
) -> None:
    data = write_examples(tmp_path / "data.jsonl", 12)

    def go_on(patience: int | None) -> fedspzo.Simulation:
        job = fedspzo.Job(rounds=5, cohort=1, learning_rates=(0.0, 0.0))
        return fedspzo.simulate(
            bundle, data, job, devices=2, held_out=data, evaluate_every=1, state=tmp_path / "run", patience=patience
        )  # fmt: skip

    assert [closed.round for closed in go_on(2).rounds] == [1, 2]
    assert newest_snapshot(tmp_path / "run", 2) is not None
    assert go_on(2).rounds == ()
    assert [closed.round for closed in go_on(3).rounds] == [3]
    last = go_on(None)
    assert [closed.round for closed in last.rounds] == [4, 5]
    assert last.result.best is not None
    assert (last.result.best.round, last.best_model.round, last.model.round) == (0, 0, 5)


@pytest.mark.parametrize("killed", [2, 3, 4])
def test_a_simulation_that_was_killed_evaluates_what_it_had_not(
    bundle: Bundle, tmp_path: Path, write_examples: Write, killed: int
) -> None:
    data = write_examples(tmp_path / "data.jsonl", 12)

    def simulate(folder: str, until: int = 0) -> fedspzo.Simulation:
        def kill(event: object) -> None:
            if isinstance(event, fedspzo.SimulatedRound) and event.round == until:
                raise KeyboardInterrupt

        return fedspzo.simulate(
            bundle, data, fedspzo.Job(rounds=4, cohort=1), devices=2, held_out=data, evaluate_every=2,
            state=tmp_path / folder, observe=kill,
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        simulate("killed", killed)
    whole, resumed, again = simulate("whole"), simulate("killed"), simulate("killed")
    assert list(whole.evaluations) == [0, 2, 4]
    assert whole.evaluations == resumed.evaluations == again.evaluations
    assert whole.evaluation == again.evaluation
    assert whole.result.best == resumed.result.best
    assert snapshot_rounds(tmp_path / "whole") == snapshot_rounds(tmp_path / "killed")


def test_backpropagation_has_the_rounds_of_its_snapshots(bundle: Bundle, tmp_path: Path, write_examples: Write) -> None:
    """A device with right labels is asked twice, and then one with wrong labels."""
    (tmp_path / "data").mkdir()
    right = write_examples(tmp_path / "data" / "right.jsonl", 30)
    lines = map(json.loads, right.read_text().splitlines())
    other = {"alarm": "music", "music": "call", "call": "alarm"}
    wrong = [json.dumps({**line, "label": other[line["label"]]}) + "\n" for line in lines]
    (tmp_path / "data" / "wrong.jsonl").write_text("".join(wrong))
    done = fedspzo.simulate(
        bundle, tmp_path / "data", fedspzo.published_job("fedavg", rounds=5, cohort=1, learning_rates=(0.01,)),
        held_out=right, evaluate_every=1, state=tmp_path / "run", first_order="fedavg",
        sample=lambda job, round, candidates, wanted: ("right" if round < 3 else "wrong",),
    )  # fmt: skip
    best = done.result.best
    assert best is not None
    assert best.round in (1, 2)
    assert fedspzo.open_model(tmp_path / "run", "best").digest() == done.best_model.digest()
    assert fedspzo.open_model(tmp_path / "run").digest() == done.model.digest() != done.best_model.digest()
    with raises("state.no-such-round", "round 3", "no journal", f"0, {best.round}, ", "5"):
        fedspzo.open_model(tmp_path / "run", 3)
