"""What a job does that says nothing of its steps: it suits the bundle, whatever the size of its weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from models import make_checkpoint
from refusals import raises
from tiny import TASK

from fedspzo.api.simulation import simulate
from fedspzo.broker.planner.segments import cut
from fedspzo.broker.rounds.adaptive import Moment, adapt_blocks, follow
from fedspzo.broker.rounds.job import PAPERS, Job, check_job, plan_round
from fedspzo.broker.rounds.recommend import DERIVATIVE, MOST, step_share, step_size
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.export.network.target import Target
from fedspzo.export.pipeline import export_bundle
from fedspzo.export.tasks import load_task


def share_moved(bundle: Bundle, job: Job, derivative: float, moments: tuple[Moment, ...] = ()) -> float:
    """How far a round moves weights, as a share of their root mean square, if it measures a derivative everywhere."""
    plan = plan_round(dataclasses.replace(job, final_rate=1.0), 1, adapt_blocks(job, moments))
    found = (derivative * plan.blocks[-1].scale,) * plan.scalars
    count = job.cohort if job.seeds == "device" else 1
    rows = tuple(Contribution(str(number), 1 / count, found) for number in range(count))
    moved = [direction.coefficient for direction in Entry(plan, rows).updates()[-1]]
    return math.hypot(*moved) / step_size(bundle, range(plan.blocks[0].stop, plan.blocks[-1].stop))


@pytest.mark.parametrize("seeds", ["shared", "device"])
def test_a_round_moves_weights_by_a_share_of_their_size(bundle: Bundle, seeds: str) -> None:
    job = check_job(Job(seeds=seeds), bundle)
    count = MOST if seeds == "shared" else MOST // job.cohort
    assert (job.fanouts, job.sides, job.split) == ((0, count), 1, (len(bundle.manifest.stages) - 1,))
    step = step_share(MOST // job.cohort * job.cohort)
    assert step == pytest.approx(0.1, rel=0.01)
    assert share_moved(bundle, job, DERIVATIVE) == pytest.approx(step, rel=0.01)
    for derivative in (0.1, 1.0, 200.0):
        measured = (Moment(), Moment(4, derivative**2, derivative**2))
        assert share_moved(bundle, job, derivative, measured) == pytest.approx(step, rel=0.01)
    assert share_moved(bundle, job, 1e-6, (Moment(), Moment(4, 1e-12, 1e-12))) < step, "almost nothing is not blown up"


def test_the_journal_says_how_long_steps_are(bundle: Bundle) -> None:
    """A restarted server and a simulation have the same plans."""
    job = check_job(Job(), bundle)
    plan = plan_round(job, 1)
    entries = [Entry(plan, (Contribution("", 1.0, (30.0,) * plan.scalars),))] * 3
    whole = adapt_blocks(job, follow((), entries))
    assert whole == adapt_blocks(job, follow(follow((), entries[:1]), entries[1:]))
    assert 0 < whole[-1].learning_rate < job.learning_rates[-1]


def test_the_size_is_that_of_the_trained_matrices(bundle: Bundle) -> None:
    last = len(bundle.manifest.stages) - 2
    specs = bundle.manifest.tensors
    own = [i for i in bundle.manifest.stages[last].tensors if specs[i].trainable and len(specs[i].shape) > 1]
    flat = np.concatenate([np.asarray(bundle.tensor(index)).ravel() for index in own])
    assert step_size(bundle, [last]) == pytest.approx(float(np.sqrt(np.mean(flat.astype(np.float64) ** 2))))


@pytest.mark.parametrize(("trained", "split"), [("*layer.0.*", (1,)), ("*bias", (3,)), ("*LayerNorm*", (3,))])
def test_a_job_takes_the_last_that_is_trained(
    checkpoint: Path, tmp_path: Path, write_examples: Callable[[Path, int], Path], trained: str, split: tuple[int, ...]
) -> None:
    """A matrix, or else vectors; a fresh model's biases are all zero, and move as far as its weights do. It learns."""
    bundle = export_bundle(
        str(checkpoint), {TASK.form: TASK}, Target(["litert"], [4], [12], train=(trained,)), tmp_path / "bundle"
    )
    job = check_job(Job(), bundle)
    assert (job.split, job.fanouts[0]) == (split, 0)
    data = write_examples(tmp_path / "data.jsonl", 30)
    found = simulate(bundle, data, Job(rounds=10), devices=4, held_out=data, evaluate_every=10)
    assert found.evaluations[10].loss < found.evaluations[0].loss


def test_what_the_first_stage_alone_trains_is_one_block(tmp_path: Path) -> None:
    """A decoder's first layer and its table are one stage."""
    model = make_checkpoint(tmp_path / "model", "llama-3.2", num_hidden_layers=2)
    target = Target(["litert"], [2], [24], train=("*layers.0.*",))
    bundle = export_bundle(str(model), load_task("sst2"), target, tmp_path / "bundle")
    assert cut(bundle.manifest) == [(0, len(bundle.manifest.stages))]
    job = check_job(Job(), bundle)
    assert (job.split, len(job.blocks), job.scales[0] > 0, job.learning_rates[0] > 0) == ((), 1, True, True)
    assert check_job(job, bundle) == job
    with raises("plan.nothing-to-train", "have one block"):
        check_job(Job(fanouts=(1, 16)), bundle)


@pytest.mark.parametrize("said", [{"fanouts": (1, 16)}, {"sides": 2}, {"first_every": 2}, {"scales": (0.25, 1.0)}])
def test_who_says_some_settings_has_the_papers_others(bundle: Bundle, said: dict[str, object]) -> None:
    job = check_job(Job(**said), bundle)  # type: ignore[arg-type]
    assert {name: getattr(job, name) for name in PAPERS} == PAPERS
    assert job.adapt == ()


def test_noise_and_rates_that_follow_derivatives_do_not_mix(bundle: Bundle) -> None:
    assert check_job(Job(privacy="example"), bundle).adapt == ()
