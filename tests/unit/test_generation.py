"""Generation: keys and values kept against whole texts and transformers' own search, sampling, and what is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fedspzo_app.model import ask
from models import make_checkpoint
from refusals import raises
from transformers import AutoModelForCausalLM, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

import fedspzo
from fedspzo.device_runtime.data.encoder import Encoder
from fedspzo.device_runtime.data.sources import Example
from fedspzo.device_runtime.data.store import DataStore, tokenise
from fedspzo.device_runtime.directions.format import Direction, derive_seed
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.objective import Objective
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.answers import queries, query_answers
from fedspzo.device_runtime.step.generation import Reader, WholeTexts, _certain, generate, stream
from fedspzo.device_runtime.step.key_values import KeyValues
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.sampling import Sampling
from fedspzo.export.network.target import Target
from fedspzo.export.pipeline import export_bundle
from fedspzo.export.tasks import load_task

ANSWER = 12
CONTEXTS = ("Rome is a city.", "one two three four five six seven", "the end")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose layers see all tokens or a window, and its bundle in ``bundle`` beside it."""
    folder = tmp_path_factory.mktemp("generation")
    make_checkpoint(folder / "model", "qwen3")
    target = Target(["torch"], [2], [48], answer_tokens=ANSWER)
    export_bundle(str(folder / "model"), load_task("squad"), target, folder / "bundle")
    return folder


@pytest.fixture
def bundle(folder: Path) -> Bundle:
    return Bundle(folder / "bundle")


def questions(bundle: Bundle) -> DataStore:
    fields = ({"title": "Rome", "question": "what is Rome?", "context": context} for context in CONTEXTS)
    return tokenise(bundle, [Example(field, 0) for field in fields])


def with_references(store: DataStore) -> DataStore:
    return replace(store, references=(("a city",),) * len(store))


def forward_of(bundle: Bundle, cached: bool = True) -> Forward[Replica]:
    if not cached:
        bundle = Bundle(bundle.folder)
        bundle.manifest = replace(bundle.manifest, continuations=())
    return Forward(create_engine("torch"), Replica(bundle))


def test_scores_are_those_of_whole_texts(bundle: Bundle) -> None:
    """At every position, for texts of different lengths that any tokens are added to."""
    forward, random = forward_of(bundle), np.random.default_rng(0)
    store, indices = questions(bundle), np.array([0, 1])
    texts = DataStore(store.ids, store.lengths, store.starts, store.labels)
    readers: list[Reader] = [KeyValues(forward, 2), WholeTexts(forward)]
    found, expected = (reader.read(texts, indices) for reader in readers)
    for _ in range(ANSWER):
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
        texts.ids[indices, texts.lengths[indices]] = random.integers(0, found.shape[1], 2)
        texts.lengths[indices] += 1
        found, expected = (reader.add(texts, indices) for reader in readers)


def test_answers_are_transformers(folder: Path, bundle: Bundle) -> None:
    store = questions(bundle)
    answers = generate(forward_of(bundle), store)
    assert answers == generate(forward_of(bundle, cached=False), store)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    encoder = Encoder(bundle)
    for index, answer in enumerate(answers):
        prompt = torch.from_numpy(store.ids[index : index + 1, : store.starts[index] + 1]).long()
        options = {"max_new_tokens": ANSWER, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[0]
        assert answer == encoder.decode(ids[prompt.shape[1] :].tolist()).partition("\n")[0].strip()


def test_a_text_finds_nothing_of_the_one_before(bundle: Bundle) -> None:
    forward, store = forward_of(bundle), questions(bundle)
    assert generate(forward, store) == generate(forward, store)


def test_draws_are_from_what_transformers_draws_from() -> None:
    scores = np.random.default_rng(1).normal(size=40).astype(np.float32) * 3
    sampling = Sampling(temperature=0.8, top_k=12, top_p=0.9, seed=3)
    kept = torch.from_numpy(scores)[None]
    for warp in (TemperatureLogitsWarper(0.8), TopKLogitsWarper(12), TopPLogitsWarper(0.9)):
        kept = warp(None, kept)
    expected = torch.softmax(kept, dim=-1)[0].numpy()
    drawn = [sampling.choose(scores, 0, position) for position in range(4000)]
    found = np.bincount(drawn, minlength=40) / len(drawn)
    assert set(np.flatnonzero(found)) <= set(np.flatnonzero(expected))
    # The draws are fixed by the seed; of 4000 a share is off by less than 4 standard deviations.
    assert np.all(np.abs(found - expected) <= 4 * np.sqrt(expected * (1 - expected) / len(drawn)))


def test_the_same_seed_draws_the_same() -> None:
    scores = np.zeros(1000, np.float32)

    def draw(seed: int, text: int) -> list[int]:
        return [Sampling(1.0, seed=seed).choose(scores, text, position) for position in range(8)]

    assert draw(1, 0) == draw(1, 0)
    assert len({tuple(draw(seed, text)) for seed in (1, 2) for text in (0, 1)}) == 4


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(2.0, top_k=1), Sampling(2.0, top_p=1e-9)])
def test_the_likeliest_token(sampling: Sampling) -> None:
    assert sampling.choose(np.array([1.0, 5.0, 5.0, 2.0], np.float32), 0, 0) == 1


@pytest.mark.parametrize(
    "settings", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}]
)
def test_sampling_out_of_range(settings: dict[str, float]) -> None:
    with raises("option.sampling", "at most 1"):
        Sampling(**settings)  # type: ignore[arg-type]


def test_a_seed_out_of_range() -> None:
    with raises("option.sampling-seed", "-1"):
        Sampling(seed=-1)


def test_models_that_differ_little_draw_the_same() -> None:
    """Each token has noise of its own: scores that change by at most δ change few draws, whatever their order."""
    random = np.random.default_rng(4)
    one = random.normal(size=200).astype(np.float32)
    other = one + random.uniform(-0.01, 0.01, 200).astype(np.float32)
    assert list(np.argsort(one)) != list(np.argsort(other))
    sampling = Sampling(1.0, seed=5)
    same = [sampling.choose(one, 0, at) == sampling.choose(other, 0, at) for at in range(1000)]
    assert np.mean(same) >= 0.97  # a draw changes with a chance of 2δ at most, 20 of 1000


@pytest.mark.parametrize("sides", [1, 2])
def test_queries_are_answered_by_moved_models(bundle: Bundle, sides: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As models would answer whose weights had been moved; the replica itself stays as it is."""
    store, forward = with_references(questions(bundle)), forward_of(bundle)
    few = DataStore(store.ids[:2], store.lengths[:2], store.starts[:2], store.labels[:2])
    blocks = (Block(2, 1, 0.5, 1.0), Block(len(bundle.manifest.stages), 2, 1.0, 1.0))
    objective = Objective("metric:exact_match", 1.0, 1.0, temperature=0.7)
    plan = Plan(1, 9, True, "gaussian", 1, 2, 0.3, blocks, 60.0, False, sides=sides, objective=(objective,))
    offsets = [[Direction(11, 0.1)], []]
    digest, seen = forward.weights.digest(), list[str]()
    sampling = Sampling(0.7, seed=derive_seed(9, "answers", 0, 0, ()))

    def judge(answer: str, right: Sequence[str]) -> float:
        seen.append(answer)
        return float(len(seen))

    monkeypatch.setattr("fedspzo.device_runtime.step.answers.find_judge", lambda *_: judge)
    losses = query_answers(forward, forward.batch(store, np.arange(2)), plan, "", 0, offsets)
    assert np.array_equal(np.concatenate(losses), np.arange(1.0, len(seen) + 1))
    assert len(losses) == 4
    assert forward.weights.digest() == digest
    expected = []
    for own in queries(plan, "", 0):
        moved = Replica(bundle)
        for block, stages in enumerate(plan.stages()):
            added = [*offsets[block], *filter(None, [own.get(block)])]
            tensors = {index: moved.trainable[index] for index in moved.trainable_in(stages)}
            moved.kernel(plan.distribution).shift(tensors, added, tensors)
        expected += generate(Forward(create_engine("torch"), moved), few, sampling)
    assert seen == expected
    assert len(set(seen)) > len(few)  # perturbations change answers


@pytest.mark.parametrize("sides", [1, 2])
def test_queries_come_in_the_order_of_the_scalars(sides: int) -> None:
    """Losses that are linear in the weights' moves give scalars that are the sums of their directions' derivatives."""
    blocks = (Block(1, 2, 0.5, 1.0), Block(2, 3, 2.0, 1.0))
    plan = Plan(1, 9, True, "rademacher", 1, 2, 0.25, blocks, 60.0, False, sides=sides)
    seeds = [plan.seed("", 0, path) for block in range(2) for path in plan.paths(block)]
    size = {seed: float(number) for number, seed in enumerate(seeds, start=1)}  # of the derivative along it
    losses = [sum(size[d.seed] * d.coefficient for d in own.values()) for own in queries(plan, "", 0)]
    if sides == 1:
        scalars = [(loss - losses[0]) / plan.epsilon for loss in losses[1:]]
        expected = [size[plan.seed("", 0, path)] * blocks[n].scale for n in range(2) for path in plan.paths(n)]
    else:
        scalars = [(a - b) / (2 * plan.epsilon) for a, b in zip(losses[::2], losses[1::2], strict=True)]
        expected = [
            size[plan.seed("", 0, path[:1])] * 0.5 + size[plan.seed("", 0, path)] * 2.0 for path in plan.paths(1)
        ]
    np.testing.assert_allclose(scalars, expected)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a city", "a city"),
        ("a city\ufffd\ufffd", "a city"),
        ("a city #", "a city "),
        ("a city ##", "a city "),
        ("a #1", "a #1"),
    ],
)
def test_what_may_be_an_end_is_held_back(text: str, shown: str) -> None:
    assert _certain(text, ["###", "</s>"]) == shown


def test_pieces_are_the_answer(bundle: Bundle) -> None:
    store = questions(bundle)
    so_far: dict[int, list[str]] = {index: [] for index in range(len(store))}
    for index, answer in stream(forward_of(bundle), store, Sampling(1.0, seed=2)):
        so_far[index].append(answer)
    assert [answers[-1] if answers else "" for answers in so_far.values()] == generate(
        forward_of(bundle), store, Sampling(1.0, seed=2)
    )
    assert max(map(len, so_far.values())) > 2
    texts = ("Rome", CONTEXTS[0], "what is Rome?")
    pieces = list(fedspzo.stream_answer(bundle, *texts, engine="torch", sampling=Sampling(1.0, seed=2)))
    assert len(pieces) > 1
    assert "".join(pieces) == fedspzo.predict(bundle, *texts, engine="torch", sampling=Sampling(1.0, seed=2)).answer


def test_the_app_is_told_of_an_answer_as_it_grows(bundle: Bundle) -> None:
    told: list[str] = []
    fields = {"title": "Rome", "context": CONTEXTS[0], "question": "what is Rome?"}
    found, suggestion = ask(Replica(bundle), create_engine("torch"), fields, told.append)
    assert found == {"answer": told[-1]}
    assert suggestion is not None
    assert suggestion.shown == told[-1]
    assert len(told) > 1
    assert found["answer"] == fedspzo.predict(bundle, *fields.values(), engine="torch").answer
