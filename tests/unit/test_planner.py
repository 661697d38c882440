"""The planner: what it measures against autograd, its formulas by brute force, and the command from end to end."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import five_examples, make_checkpoint
from refusals import raises
from tiny import TASK

from fedspzo.api.planning import plan_settings
from fedspzo.broker.planner.probe import Sample, evaluate_samples, find_costs, probe
from fedspzo.broker.planner.profile import Profile, Segment
from fedspzo.broker.planner.propose import (
    ALIKE,
    FANOUTS,
    FEWEST_ROUNDS,
    LONGEST,
    Proposal,
    Terms,
    best_step,
    candidates,
    make_job,
    propose,
    read_job,
    seen_before,
)
from fedspzo.broker.planner.segments import cut
from fedspzo.broker.planner.trial import MOST_RUNS, Tried, finalists
from fedspzo.broker.rounds.job import Job, check_job
from fedspzo.broker.simulation.curve import Curve
from fedspzo.broker.simulation.partition import Shares
from fedspzo.cli import main
from fedspzo.device_runtime.data.store import DataStore, subset
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.task import GENERATION, Task
from fedspzo.device_runtime.protocol.objective import Objective
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.objectives import Known, Outputs, find_measure
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.export.network.adapters import LowRank
from fedspzo.export.network.target import Target
from fedspzo.export.pipeline import export_bundle
from fedspzo.export.tasks import load_task

Write = Callable[[Path, int], Path]
EXPECTED, REWARD = Objective("expected-error", 10.0, 1.0), Objective("reward", 10.0, 1.0)


def profile_of(*segments: tuple[float, float], **changes: object) -> Profile:
    """Pieces of some magnitude and trace, all of one cost."""
    made = tuple(
        Segment(at, at + 1, 1000, 0.1, magnitude, trace, {4: 1.0, 8: 2.0}, {4: 0.5, 8: 1.0}, 0.1, 1e-3)
        for at, (magnitude, trace) in enumerate(segments)
    )
    found = Profile(made, len(made), {4: 0.0, 8: 0.0}, {4: 0.0, 8: 0.0}, 0.02, 0.06, 0.2, 10, 100.0, 1.0, 1.0)
    return replace(found, **changes)  # type: ignore[arg-type]


def test_the_step_is_the_best_of_a_quadratic() -> None:
    """The formula's expected decrease, and that of simulated steps on a quadratic loss with noise of batches."""
    rng = np.random.default_rng(0)
    size, fanout = 40, 4
    hessian, gradient, noise = np.linspace(0.2, 3.0, size), rng.normal(size=size) / 4, 0.3
    magnitude = float(gradient @ gradient + size * noise**2)  # of an example
    signal = float(gradient @ gradient) / magnitude
    profile = profile_of((magnitude, float(hessian.sum())), between=signal, within=signal)
    profile = replace(profile, sharpness=float((hessian**2).sum() / hessian.sum() ** 2))
    profile = replace(profile, segments=(replace(profile.segments[0], size=1e6),))  # the step may be long
    rate, promised = best_step(profile, Terms(4, True, 100.0), profile.segments, fanout, 4)
    trials = 6_000
    seen = gradient + noise / 4 * rng.normal(size=(trials, 1, size))  # of 16 examples
    signs = rng.choice([-1.0, 1.0], size=(trials, fanout, size))
    estimates = ((signs * seen).sum(axis=2, keepdims=True) * signs).mean(axis=1)

    def decrease(rate: float) -> float:
        return float((rate * estimates @ gradient - rate**2 / 2 * (estimates**2 @ hessian)).mean())

    assert decrease(rate) == pytest.approx(promised, rel=0.15)
    assert decrease(rate) > 0.9 * max(decrease(rate * 2.0**k) for k in range(-3, 4))


@settings(max_examples=4)
@given(st.lists(st.tuples(st.floats(0.1, 1e3), st.floats(0.1, 1e3)), min_size=2, max_size=3), st.integers(1, 8))
def test_proposals_are_the_best_of_all(segments: list[tuple[float, float]], cohort: int) -> None:
    profile, terms = profile_of(*segments), Terms(cohort, True, 50.0)
    found = propose(profile, terms)
    assert found == sorted(found, key=lambda proposal: -proposal.efficiency("flops"))
    assert sum(proposal.whole for proposal in found) == 1
    considered = [proposal for proposal in candidates(profile, terms) if proposal.rounds >= FEWEST_ROUNDS]
    best = max(proposal.efficiency("flops") for proposal in considered)
    assert found[0].efficiency("flops") >= (1 - ALIKE) * best * (1 - 1e-9)
    for proposal in found:
        assert all((cut.fanout == 0) == (cut.rate == 0) for cut in proposal.cuts)
        assert proposal.rounds * proposal.flops <= 50.0 * profile.forward("flops", 8) * 1.001
        assert proposal.rounds >= FEWEST_ROUNDS
    tight = propose(profile, Terms(cohort, True, 1.0))
    assert all(proposal.rounds < FEWEST_ROUNDS for proposal in tight), "where none has more, these are proposed"


def test_what_a_step_costs_and_may_be() -> None:
    profile, terms = profile_of((1.0, 1.0), (1.0, 1.0), (1.0, 1e-9)), Terms(4, True, 100.0)
    for proposal in candidates(profile, terms):
        if len(proposal.cuts) == 2 and proposal.cuts[1].start == 2 and proposal.batch == 4:
            first, last = proposal.cuts
            if first.fanout:
                assert proposal.flops == pytest.approx(3 + 3 * first.fanout / proposal.first_every + last.fanout)
            else:
                assert 1 + last.fanout < proposal.flops < 3 + last.fanout
            step = last.rate * math.sqrt(profile.moment(4, 4) / last.fanout)
            assert step <= LONGEST * 0.1 * (1 + 1e-9), "flat as the loss may be, a step stays near"
    assert seen_before(profile, terms, 4, 10_000) > 0.9 > 0.1 > seen_before(profile, terms, 4, 5)
    alone = Terms(4, False, 100.0)
    rates = [best_step(profile, given, profile.segments[:1], 4, 4)[0] for given in (terms, alone)]
    assert rates[1] > rates[0] / 4, "four devices' own directions are more of them, and noisier"


def test_every_proposal_makes_a_job() -> None:
    profile = profile_of((1.0, 1.0), (1.0, 1.0), (1.0, 1.0))
    most = max(candidates(profile, Terms(4, True, 100.0)), key=lambda found: sum(cut.fanout for cut in found.cuts))
    assert make_job(most, profile, Job()).fanouts == (FANOUTS[-1],) * 3


def test_the_defaults_are_a_proposal(bundle: Bundle, store: DataStore) -> None:
    job = check_job(Job(), bundle)
    profile = probe(
        Forward(create_engine("litert"), Replica(bundle)), Shares(["a", "b"], lambda device: store), 2, 4, 0
    )
    proposal = read_job(job, profile, 100.0)
    assert proposal is not None
    assert proposal.efficiency("flops") > 0
    made = make_job(proposal, profile, job)
    assert replace(made, epsilon=1.0, scales=()) == replace(job, epsilon=1.0, scales=())
    assert [made.epsilon * s for s in made.scales] == pytest.approx([job.epsilon * s for s in job.scales])
    assert read_job(check_job(Job(fanouts=(1, 4), split=(1,), sides=2), bundle), profile, 100.0) is None


def test_signal_is_told_from_noise() -> None:
    """Gradients of examples with a common part, a device's and their own; the shares come out."""
    rng = np.random.default_rng(1)
    size, directions, devices, each, examples = 60, 64, 12, 4, 8
    common = rng.normal(size=size)
    signs = rng.choice([-1.0, 1.0], size=(1, directions, size))
    samples, owns = [], []
    for device in range(devices):
        own = common + rng.normal(size=size)
        owns.append(own)
        for _ in range(each):
            gradients = own + 2 * rng.normal(size=(examples, size))
            first = signs @ gradients.T
            samples.append(Sample(str(device), first, np.full((1, directions), 5.0), np.ones(examples), [0.0]))
    found = evaluate_samples(samples)
    assert found.magnitude[0] == pytest.approx(6 * size, rel=0.2)
    products = np.array(owns) @ np.array(owns).T / (6 * size)
    assert found.within == pytest.approx(np.trace(products) / devices, rel=0.3)
    assert found.between == pytest.approx((products.sum() - np.trace(products)) / devices / (devices - 1), rel=0.3)
    assert found.trace[0] == pytest.approx(5)
    with raises("planner.too-few-examples", "two devices"):
        evaluate_samples(samples[:each])
    opposed = [replace(sample, device=str(n), first=(-1) ** n * sample.first) for n, sample in enumerate(samples[:2])]
    found = evaluate_samples(opposed)
    profile = replace(profile_of((1.0, 1.0)), between=found.between, within=found.within)
    assert best_step(profile, Terms(4, True, 100.0), profile.segments, 4, 4)[0] > 0, "noise turns no step around"


def test_a_loss_that_is_left_again_is_not_held() -> None:
    """Rates that are too high look good early."""

    def until(*losses: float) -> float:
        return Curve(tuple(map(float, range(len(losses)))), losses, 1).until(0.6)

    assert until(1.0, 0.8, 0.4, 0.3) == pytest.approx(1.5)
    assert until(1.0, 0.5, 0.61, 0.4) == pytest.approx(0.8), "a little above is no loss"
    assert until(1.0, 0.5, 0.9, 0.9) == until(1.0, 0.9, 0.8, 0.7) == math.inf


def test_a_loss_that_falls_fast_is_tried_to_the_end() -> None:
    """A first look has few points, and the worse of its last two is nearly the start for a loss that falls fast."""
    profile = profile_of((1.0, 1.0), (1.0, 1.0), (1.0, 1.0))
    fast, slow, slower, wild = propose(profile, Terms(4, False, 100.0))[:4]

    def looked(proposal: Proposal, *losses: float) -> dict[float, Tried]:
        return {1.0: Tried(proposal, 1.0, 0, Curve(tuple(map(float, range(len(losses)))), losses, 1))}

    looks = {
        slow: looked(slow, 1.0, 0.9, 0.9),
        slower: looked(slower, 1.0, 0.92, 0.91),
        wild: looked(wild, 1.0, 2.5, 0.1),
        fast: looked(fast, 1.0, 0.95, 0.7),
    }
    assert finalists(looks) == [fast, slow], "and one that diverged is none"


def test_pieces_begin_where_something_is_trained(bundle: Bundle) -> None:
    cuts = cut(bundle.manifest)
    assert cuts[-1][1] == len(bundle.manifest.stages)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(cuts))


def test_weights_that_start_at_zero_may_be_moved(tmp_path: Path) -> None:
    """A step is a share of the weights' size; that of a second factor, or of a core, is not its own."""
    model = make_checkpoint(tmp_path / "model", "llama-3.2", num_hidden_layers=2)
    target = Target(["litert"], [2], [24], adapters=LowRank(rank=2, train_down=False))
    adapted = export_bundle(str(model), load_task("sst2"), target, tmp_path / "bundle")
    few = five_examples(adapted)
    found = probe(Forward(create_engine("litert"), Replica(adapted)), Shares(["a", "b"], lambda device: few), 2, 4, 0)
    assert all(segment.size > 0 for segment in found.segments)
    for proposal in propose(found, Terms(2, False, 50.0)):
        assert all(cut.rate > 0 for cut in proposal.cuts if cut.fanout)


@pytest.mark.slow
@pytest.mark.parametrize("objective", [None, EXPECTED])
def test_a_probe_is_the_gradient_and_the_hessian(bundle: Bundle, store: DataStore, objective: Objective | None) -> None:
    """|g|² of examples and tr(H) of the last segment, against differences along each weight's own axis."""
    few = subset(store, np.arange(4))
    replica = Replica(bundle)
    forward = Forward(create_engine("litert", 1), replica)
    found = probe(forward, Shares(["a", "b"], lambda device: few), 64, 2, 3, objective)
    segment, size, centre = found.segments[-1], 1e-2, _costs(forward, few, objective)
    magnitude = trace = 0.0
    for index in replica.trainable_in(range(segment.start, segment.stop)):
        weights = replica.trainable[index].reshape(-1)
        for at in range(weights.size):
            kept, losses = weights[at], []
            for sign in (1, -1):
                weights[at] = kept + np.float32(sign * size)
                losses.append(_costs(forward, few, objective))
            weights[at] = kept
            magnitude += np.mean(((losses[0] - losses[1]) / (2 * size)) ** 2)
            trace += np.mean(losses[0] + losses[1] - 2 * centre) / size**2
    assert segment.magnitude == pytest.approx(magnitude, rel=0.35)
    floor = segment.magnitude / (1.0 if objective is None else centre.max())
    assert segment.trace == pytest.approx(max(trace, floor), rel=0.35)
    assert found.loss == pytest.approx(centre.mean(), rel=1e-4)


def _costs(forward: Forward[Replica], store: DataStore, objective: Objective | None) -> np.ndarray:
    from fedspzo.device_runtime.step.scores import predict

    measure = find_measure(objective, forward.manifest.task)
    return measure(Outputs(*predict(forward, store)), Known.of(store, np.arange(len(store))))


def test_the_command(
    bundle_folder: Path, tmp_path: Path, write_examples: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its options are those of a job, which runs; the trial says what it took."""
    data = write_examples(tmp_path / "data.jsonl", 60)
    common = [bundle_folder, "--data", data, "--devices", 5, "--cohort", 2]
    few = ["--directions", 2, "--batches", 5, "--budget", 12]
    assert main(list(map(str, ["plan", *common, *few, "--trial", 8, "--json"]))) == 0
    found = json.loads(capsys.readouterr().out)
    options = [word for option in found["options"].items() for word in option]
    assert found["options"]["--final-rate"] == "1"
    assert found["trial"]["flops"] > 0
    assert found["predicted_gain"] > 0
    assert {run["seed"] for run in found["trial"]["runs"]} == {0, 1}
    assert ["steps", "rates"] in [run["proposal"]["adapt"] for run in found["trial"]["runs"]], "the defaults are tried"
    given = ["simulate", *common, "--state", tmp_path / "state", *options, "--rounds", 2]
    assert main(list(map(str, given))) == 0
    capsys.readouterr()
    assert main(list(map(str, ["plan", *common, *few, "--trial", 0, "--cost", "seconds"]))) == 0
    out = capsys.readouterr().out
    assert "--sides 1" in out.splitlines()[-1]
    assert "--final-rate 0.1" in out.splitlines()[-1], "nothing was tried, so rates fall"
    assert "predicted:" in out


def test_a_trial_that_is_too_short_to_tell_leaves_the_defaults(
    bundle_folder: Path, tmp_path: Path, write_examples: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever learns most in a few steps may diverge in the next ones."""
    data = write_examples(tmp_path / "data.jsonl", 60)
    few = {"devices": 5, "cohort": 2, "directions": 2, "batches": 4}
    found = plan_settings(bundle_folder, data, trial=1.0, **few)  # type: ignore[arg-type]
    own = check_job(Job(cohort=2, rounds=found.job.rounds), Bundle(bundle_folder))
    assert found.trial is None
    assert (found.job.split, found.job.fanouts, found.job.seeds) == (own.split, own.fanouts, own.seeds)
    assert found.job.learning_rates == pytest.approx(own.learning_rates)
    assert found.job.final_rate == own.final_rate < 1, "what was not tried falls"
    words = [f"--{name}={value}" for name, value in few.items()]
    assert main(["plan", str(bundle_folder), "--data", str(data), *words, "--trial", "1"]) == 0
    assert f"give --trial {found.needed} or more" in capsys.readouterr().out
    assert plan_settings(bundle_folder, data, trial=float(found.needed), **few).trial  # type: ignore[arg-type]


def test_a_trial_of_one_segment(checkpoint: Path, tmp_path: Path, write_examples: Write) -> None:
    """Then the whole model is all that there is to try. A trial shorter than a round has no more runs than it says."""
    target, said = Target(["litert"], [4], [12], train=("labels",)), []
    labels = export_bundle(str(checkpoint), {TASK.form: TASK}, target, tmp_path / "bundle")
    data = write_examples(tmp_path / "data.jsonl", 60)
    few = {"devices": 4, "cohort": 2, "budget": 20.0, "batches": 4, "directions": 2}
    found = plan_settings(labels, data, trial=0.5, progress=said.append, **few)  # type: ignore[arg-type]
    assert found.trial is not None
    assert found.trial.proposal.whole
    assert found.trial.gain in (1.0, math.inf), "it is its own rival"
    counts = [float(step.split(": ")[1].split(" of ")[0]) for step in said if step.startswith("trying")]
    assert counts == sorted(counts)
    assert 1 < counts[-1] <= MOST_RUNS


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--cohort", "9"], "cohort is 9, and there are 5 devices"),
        (["--budget", "0"], "budget is above 0"),
        (["--trial", "nan"], "trial at least 0"),
        (["--directions", "1"], "directions and batches are at least 2"),
        (["--devices", "1", "--cohort", "1"], "the planner needs two devices with examples"),
    ],
)
def test_bad_input_gets_a_sentence(
    bundle_folder: Path,
    tmp_path: Path,
    write_examples: Write,
    options: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = write_examples(tmp_path / "data.jsonl", 60)
    given = ["plan", bundle_folder, "--data", data, "--devices", 5, "--batches", 2, "--directions", 2, *options]
    assert main(list(map(str, given))) == 1
    assert sentence in capsys.readouterr().err


def test_a_reward_of_labels_is_an_expected_error_from_another_origin(bundle: Bundle, store: DataStore) -> None:
    """-π and 1 - π have the same derivatives: what is measured does not depend on where a cost begins."""
    forward = Forward(create_engine("litert"), Replica(bundle))
    shares = Shares(["a", "b"], lambda device: subset(store, np.arange(8) + 8 * (device == "b")))
    loss, error, reward = (probe(forward, shares, 2, 4, 3, each) for each in (None, EXPECTED, REWARD))
    assert reward.loss == pytest.approx(error.loss - 1)
    assert reward.loss_uncertainty == pytest.approx(error.loss_uncertainty)
    for name in ("between", "within", "sharpness", "nonzero"):
        assert getattr(reward, name) == pytest.approx(getattr(error, name), rel=1e-6)
    for one, other, third in zip(reward.segments, error.segments, loss.segments, strict=True):
        assert one.magnitude == pytest.approx(other.magnitude, rel=1e-6)
        assert one.magnitude < third.magnitude, "a probability moves less than its logarithm"
    terms = Terms(2, False, 50.0)
    assert all(cut.size > 0 for proposal in propose(reward, terms) for cut in proposal.cuts)


def test_a_count_of_errors_is_perturbed_as_in_jobs(bundle: Bundle, store: DataStore) -> None:
    """It hardly changes under a small perturbation: the share of scalars that are not zero says how much it does."""
    forward = Forward(create_engine("litert"), Replica(bundle))
    shares = Shares(["a", "b"], lambda device: subset(store, np.arange(8) + 8 * (device == "b")))
    found = probe(forward, shares, 8, 4, 3, Objective("error", 10.0, 1.0))
    assert found.coarse
    assert 0 < found.nonzero < 1
    job, sizes = check_job(Job(objective="error"), bundle), [segment.probed for segment in found.segments]
    assert sizes[-1] == pytest.approx(job.epsilon * job.scales[-1], rel=1e-2)
    for proposal in propose(found, Terms(2, False, 50.0)):
        assert all(min(sizes) <= cut.size <= max(sizes) * (1 + 1e-9) for cut in proposal.cuts)


def test_what_cannot_be_planned_is_refused(
    bundle: Bundle, store: DataStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = Task("orders", GENERATION, "{text} It is", target="slots", answer=" {slots}</s>", answer_tokens=4)
    with raises("planner.metric", "generates no answers, as metric:f1 needs"):
        find_costs(Objective("metric:f1", 10.0, 1.0), task)
    with raises("plan.metric-of-labels"):
        find_costs(Objective("metric:f1", 10.0, 1.0), bundle.manifest.task)
    data = tmp_path / "reactions.jsonl"
    write_reactions(data, [0.0] * 20)
    given = ["plan", str(bundle.folder), "--data", str(data), "--devices", "4", "--cohort", "2", "--batches", "2"]
    assert main(given) == 1
    assert "choose a job with objective = reward [plan.feedback-has-no-labels]" in capsys.readouterr().err
    assert main([*given, "--objective", "reward"]) == 1
    assert "no perturbation changed reward on 2 batches" in capsys.readouterr().err


def write_reactions(path: Path, rewards: Sequence[float]) -> None:
    texts = ("wake me at six", "play a song", "call mum")
    lines = (
        {"text": texts[n % 3], "shown": ("alarm", "music")[n % 2], "reward": reward} for n, reward in enumerate(rewards)
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.slow
def test_the_command_plans_for_reactions(
    bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The options that it prints run a job on the same reactions; the trial follows the reward."""
    data = tmp_path / "reactions.jsonl"
    write_reactions(data, [(1.0, -1.0, 0.5)[n % 3] for n in range(48)])
    common = [bundle_folder, "--data", data, "--devices", 4, "--cohort", 2]
    objective = ["--objective", "reward", "--reward-cap", 2]
    asked = [*objective, "--directions", 2, "--batches", 4, "--budget", 12, "--trial", 16]
    assert main(list(map(str, ["plan", *common, *asked, "--json"]))) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["options"]["--objective"] == "reward"
    assert found["options"]["--reward-cap"] == "2"
    assert found["profile"]["nonzero"] > 0.9
    starts = {run["curve"]["losses"][0] for run in found["trial"]["runs"]}
    assert len(starts) == 1, "all runs begin alike"
    assert min(starts) > 0 > min(starts) - found["trial"]["added"] - 1
    options = [word for option in found["options"].items() for word in option]
    assert main(list(map(str, ["simulate", *common, "--state", tmp_path / "state", *options, "--rounds", 2]))) == 0
    capsys.readouterr()
    assert main(list(map(str, ["plan", *common, *asked[:-1], 0]))) == 0
    out = capsys.readouterr().out
    assert "cost by reward" in out
    assert "of the scalars are not zero" in out
    assert "--objective reward --reward-cap 2" in out.splitlines()[-1]
