"""Cores: the bases that public examples give, and a matrix between two of them as a trainable part."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import five_examples, make_checkpoint, wide
from peft import PeftModel
from references import Case, reference_losses, trained
from refusals import raises, refused
from sentences import make_sentence_model
from tokenizers import Tokenizer
from tokenizers.normalizers import BertNormalizer
from transformers import AutoModel, AutoModelForCausalLM

from fedspzo.broker.rounds.job import Job, check_job
from fedspzo.broker.rounds.recommend import DERIVATIVE, STEP, last_layer
from fedspzo.cli import main
from fedspzo.device_runtime.directions.format import Direction, NumpyKernel, Step
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.stored import widened
from fedspzo.device_runtime.model.task import Label, Task
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.estimator import measure
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.scores import predict
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import Architecture, find_family
from fedspzo.export.materialize import write_adapter, write_checkpoint
from fedspzo.export.network.adapters import Cores
from fedspzo.export.network.target import NEAREST, Target
from fedspzo.export.network.tokens import label_tokens
from fedspzo.export.network.vectors import with_pooling
from fedspzo.export.pipeline import INTEGER_TOLERANCE, export_bundle
from fedspzo.export.prior.examples import read_prior, same_meaning, shared_words, words_of
from fedspzo.export.prior.informed import informed
from fedspzo.export.tasks import load_task

RANK = 4
#: Words that the tiny models know, in classes that no task of the tests has.
PRIOR = {"stop_six": "stop six now", "newList": "new list please", "mum": "mum mum now", "film": "the film was dull"}
TEXTS = ("the film was good and one two", "a bad play with a dull end", "one two three", "Rome is a city and what is")


def write_prior(file: Path, field: str) -> Path:
    """Labelled examples, two of each label, and one of a label that has no other."""
    records = [
        {field: f"{text} {extra}", "label": label} for label, text in PRIOR.items() for extra in ("now", "please")
    ]
    records += [{field: "one", "label": "alone"}, *[{field: "wake me", "label": "alarm_set"}] * 2]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def write_labelled(file: Path, field: str, labels: Sequence[object], texts: Sequence[str] = TEXTS) -> Path:
    """Two examples of each label, the texts in turn."""
    records = [{field: texts[n % len(texts)], "label": label} for n, label in enumerate([*labels] * 2)]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def learn(model: Path, task: Task, prior: Path, length: int = 24, **settings: int) -> tuple[Cores, list[list[float]]]:
    """What the export makes of a prior, and each task's loss before and after."""
    checkpoint, said = Checkpoint(str(model)), list[str]()
    family, cores = find_family(checkpoint), Cores(**{"rank": RANK, "tasks": 2, **settings}, prior=[prior])

    def describe(length: int) -> Architecture:
        return with_pooling(checkpoint, family.describe(checkpoint, length))

    found = informed(cores, checkpoint, describe, length, task, said.append)
    return found, [[float(x) for x in line.split("loss ")[1].split(" → ")] for line in said if "loss " in line]


class Alone(Forward[Replica]):
    """Runs branches one by one."""

    def groups(self, batch: object) -> list[int]:
        return [1]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A decoder with cores in its last layer, with graphs for stacks of branches."""
    folder = tmp_path_factory.mktemp("cores")
    model = make_checkpoint(folder / "model", "llama-3.2", num_hidden_layers=2)
    cores = Cores(rank=RANK, prior=[write_prior(folder / "prior.jsonl", "text")], tasks=2, labels=3)
    target = Target(["litert"], [2], [24], adapters=cores, groups=[4])
    return export_bundle(str(model), load_task("sst2"), target, folder / "bundle")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder's checkpoint, which scores tokens."""
    return make_checkpoint(tmp_path_factory.mktemp("model") / "model", "qwen2")


def test_only_cores_are_trained(decoder: Bundle) -> None:
    manifest = decoder.manifest
    trained_names = [spec.name for spec in manifest.tensors if spec.trainable]
    assert len(trained_names) == 7
    assert all(name.endswith(".core_C") for name in trained_names)
    assert all(spec.shape == (1, RANK, RANK) for spec in manifest.tensors if spec.trainable)
    assert manifest.stages[last_layer(manifest)].name == "layer 1"
    assert manifest.adapters is not None
    assert (manifest.adapters.kind, manifest.adapters.rank) == ("cores", RANK)
    name, origin = manifest.model["prior"].split(" ", 1)
    assert name == "prior.jsonl"
    assert origin.endswith("seed 0")
    replica = Replica(decoder)
    for index, spec in ((index, spec) for index, spec in enumerate(manifest.tensors) if ".core_" in spec.name):
        array = replica.tensor(index)
        assert isinstance(array, np.ndarray)
        if spec.trainable:
            assert not array.any()
        else:  # bases are orthonormal, whatever the sizes of what they were made of
            base = array[0] if spec.name.endswith("_R") else array[0].T
            np.testing.assert_allclose(base.T @ base, np.eye(RANK), atol=1e-5)


def test_a_round_of_defaults_moves_matrices_by_a_share_of_their_size(decoder: Bundle) -> None:
    """Not the labels, which stay: cores are what such a bundle is for."""
    job, last = check_job(Job(), decoder), last_layer(decoder.manifest)
    assert job.split == (last,)
    manifest, found = decoder.manifest, []
    for index in (i for i in manifest.stages[last].tensors if manifest.tensors[i].trainable):
        spec = manifest.tensors[index]
        weight = next(i for i, s in enumerate(manifest.tensors) if s.name == spec.name.replace("core_C", "weight"))
        whole = float(np.linalg.norm(widened(decoder.tensor(weight))))
        moved = job.learning_rates[-1] / math.sqrt(job.fanouts[-1]) * DERIVATIVE * math.sqrt(math.prod(spec.shape))
        found.append(moved / whole)
    assert float(np.median(found)) == pytest.approx(STEP, rel=0.3)


def test_a_plan_says_that_the_prior_decides(
    decoder: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.jsonl"
    records = [{"sentence": f"{word} film", "label": n % 2} for n, word in enumerate(["dull", "new"] * 12)]
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    options = ["--devices", 3, "--cohort", 2, "--directions", 2, "--batches", 6, "--trial", 0]
    assert main(list(map(str, ["plan", decoder.folder, "--data", data, *options]))) == 0
    assert "no sooner where it does not" in capsys.readouterr().out


def test_merged_weights_and_the_adapter_have_the_losses_of_the_graphs(decoder: Bundle, tmp_path: Path) -> None:
    """Those of transformers' model of the merged checkpoint, and of peft's over the original."""
    store, words = five_examples(decoder), label_tokens(Checkpoint(decoder.source), decoder.manifest.task)
    replica = Replica(decoder)
    before, _ = predict(Forward(create_engine("litert"), replica), store)
    trained(replica)
    found, _ = predict(Forward(create_engine("litert"), replica), store)
    assert np.abs(found - before).max() > 0.01
    write_checkpoint(replica, tmp_path / "merged")
    write_adapter(replica, tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(decoder.source, dtype=torch.float32)
    over = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    for model in (AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval(), over):
        expected = reference_losses(Case(decoder, store, words, model), {}, np.arange(len(store)))
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("sides", [1, 2])
def test_branches_share_the_base_and_the_bases(decoder: Bundle, make_plan: Callable[..., Plan], sides: int) -> None:
    """A stack of branches measures what they measure one by one."""
    store, stages = five_examples(decoder), len(decoder.manifest.stages)
    last = last_layer(decoder.manifest)
    blocks = (Block(last, 0, 1.0, 1.0), Block(stages, 4, 1.0, 1.0))
    plan = make_plan(batch=2, epsilon=1e-2, blocks=blocks, sides=sides)

    scalars, flops = [], []
    for kind in (Forward, Alone):
        forward = kind(create_engine("litert"), Replica(decoder))
        trained(forward.weights)
        scalars.append(measure(forward, store, plan, "a").scalars)
        flops.append(forward.flops)
    np.testing.assert_allclose(scalars[0], scalars[1], rtol=1e-2, atol=1e-3)
    assert np.abs(scalars[0]).max() > 0.01
    assert flops[0] < flops[1], "queries, keys and values come of what all branches start from"


def test_every_kernel_gives_replicas_the_same_bits(decoder: Bundle) -> None:
    replicas = Replica(decoder), Replica(decoder)
    steps = [Step([Direction(5, 0.03), Direction(9, -0.01)], 1), Step([Direction(7, 0.02)], 2)]
    kernels = NumpyKernel("rademacher"), replicas[1].kernel("rademacher")
    for replica, kernel in zip(replicas, kernels, strict=True):
        kernel.step(dict(replica.trainable), steps)
    assert type(kernels[1]) is not NumpyKernel
    assert replicas[0].digest() == replicas[1].digest() != Replica(decoder).digest()


def test_bases_are_of_what_the_prior_teaches(checkpoint: Path, task: Task, tmp_path: Path) -> None:
    """The same for the same seed, others for another; a change along them lowers the loss of a task of the prior."""
    source = write_prior(tmp_path / "prior.jsonl", "utterance")
    model = Checkpoint(str(checkpoint))
    family = find_family(model)
    said: list[str] = []

    def find(seed: int) -> Cores:
        cores = Cores(rank=RANK, prior=[source], tasks=2, labels=2, seed=seed)
        return informed(cores, model, lambda length: family.describe(model, length), 12, task, said.append)

    first, again, other = find(0), find(0), find(1)
    assert first.bases.keys() == again.bases.keys()
    assert len(first.bases) == 6
    assert all(name.startswith("encoder.layer.2.") for name in first.bases)  # the last
    for name, bases in first.bases.items():
        assert all(np.array_equal(a, b) for a, b in zip(bases, again.bases[name], strict=True))
    assert any(not np.array_equal(bases.left, other.bases[name].left) for name, bases in first.bases.items())
    assert first.left_out == {"alarm set": "alarm"}
    losses = [line.split("loss ")[1].split(" → ") for line in said if "loss " in line]
    assert all(float(after) < float(before) for before, after in losses)


@pytest.mark.parametrize("name", ["qwen2", "roberta"])
def test_plain_text_teaches_models_that_score_tokens(name: str, tmp_path: Path) -> None:
    """The next token of decoders, and a masked one of masked models; such a prior has no labels to leave out."""
    (tmp_path / "text.txt").write_text("the film was good and the music was fine\n\nRome is a city.\n a\n" * 2)
    model = Checkpoint(str(make_checkpoint(tmp_path / "model", name)))
    family, forms = find_family(model), load_task("sst2")
    asked = forms["causal" if name == "qwen2" else "masked"]
    if name == "roberta":
        asked = replace(asked, mask="<mask>")
    cores = Cores(rank=RANK, prior=[tmp_path / "text.txt"], tasks=1)
    said: list[str] = []
    found = informed(cores, model, lambda length: family.describe(model, length), 24, asked, said.append)
    assert all(bases.right.shape[1] == bases.left.shape[1] == RANK for bases in found.bases.values())
    before, after = said[-2].split("loss ")[1].split(" → ")
    assert float(after) < float(before)


def test_an_encoder_without_a_head_needs_labels(checkpoint: Path, task: Task, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("wake me at six\n" * 4)
    target = Target(["torch"], [2], [12], adapters=Cores(rank=RANK, prior=[tmp_path / "text.txt"]))
    with raises("prior.no-labels", "scores no tokens", "--prior"):
        export_bundle(str(checkpoint), {task.form: task}, target, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_labels_of_the_targets_meanings_are_left_out() -> None:
    target = Task("t", "similarity", "{text}", (Label("alarm", "wake me"), Label("play_music", "play a song")))
    labels = ["alarms remove", "music query", "playlist", "what is it", "transfer"]
    assert shared_words(labels, target) == {"alarms remove": "alarm", "music query": "play_music"}
    assert words_of("cardPayment_wrong-rate") == "card payment wrong rate"
    assert words_of("ATMSupport") == "atmsupport"
    assert words_of("überweisung_ändern") == "überweisung ändern"
    assert (words_of("-1"), words_of("0.5"), words_of("♥")) == ("-1", "0.5", "♥")
    films, questions = load_task("sst2")["causal"], load_task("boolq")["masked"]
    assert shared_words(["great", "terribly", "fine"], films) == {"great": "positive", "terribly": "negative"}
    assert shared_words(["no", "yes", "not now"], questions) == {"no": "no", "yes": "yes"}
    counts = replace(target, labels=(Label("0", "wake me"), Label("1", "play a song")))
    assert shared_words(["0", "1", "0.0"], counts) == {}, "numbers of another data set mean something else"
    # All have a third direction in common, and more of it than of their own.
    targets = np.array([[0.0, 1.0, 2.0], [1.0, 0.0, 2.0]])
    vectors = np.array([[3.0, 0.1, 6.0], [-2.0, -2.0, 2.0], [0.1, 1.0, 2.0]])
    found = same_meaning(["song", "far", "alert"], vectors, target, targets)
    assert found == {"song": "play_music", "alert": "alarm"}


def test_label_words_that_begin_alike_are_one_label(model: Path, tmp_path: Path) -> None:
    """Between them there is nothing to learn: every task has two that begin otherwise, or the export says so."""
    task = load_task("sst2")["causal"]
    names = ["music fine", "music play", "music end", "city"]
    _, losses = learn(model, task, write_labelled(tmp_path / "p.jsonl", "sentence", names), labels=2, tasks=4)
    assert all(before > after > 0 for before, after in losses)
    for n, labels in enumerate((["card lost", "card stolen", "card new"], [7, 8, 9], ["music fine", "music play"])):
        prior = write_labelled(tmp_path / f"{n}.jsonl", "sentence", labels)
        with raises("prior.one-answer", prior, model, "--prior"):
            learn(model, task, prior)
    (tmp_path / "one.txt").write_text("one two three four five\n")
    with raises("prior.one-answer", tmp_path / "one.txt", "--prior"):
        learn(model, task, tmp_path / "one.txt")


def test_names_that_a_model_cannot_tell_apart_are_one_label(checkpoint: Path, task: Task, tmp_path: Path) -> None:
    """Words that are not in its vocabulary have one vector."""
    prior = write_labelled(tmp_path / "p.jsonl", "text", ["qqq", "zzz", "song"])
    _, losses = learn(checkpoint, task, prior, 12, labels=2)
    assert all(before > after for before, after in losses)
    with raises("prior.one-answer", "u.jsonl"):
        learn(checkpoint, task, write_labelled(tmp_path / "u.jsonl", "text", ["qqq", "zzz"]), 12)


def test_names_without_a_token(tmp_path: Path) -> None:
    """A name of spaces is no label; what a tokenizer makes nothing of is refused."""
    model = make_checkpoint(tmp_path / "model", "bert")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.save(str(model / "tokenizer.json"))
    task, prior = replace(load_task("sst2")["masked"], mask="[MASK]"), tmp_path / "p.jsonl"
    _, losses = learn(model, task, write_labelled(prior, "sentence", ["  ", "music", "city"]))
    assert all(before > after > 0 for before, after in losses)
    with raises("prior.no-token", r"'\u200b'", model, "copy"):
        learn(model, task, write_labelled(prior, "sentence", ["\u200b", "music", "city"]))


def test_long_texts_and_names_are_cut_to_what_the_model_takes(tmp_path: Path) -> None:
    model = make_sentence_model(tmp_path / "m", transformer={"max_seq_length": 16})
    task = Task("moods", "similarity", "{text}", (Label("bad", "a bad play"), Label("good", "the music was fine")))
    texts, names = [f"{text} " * 5 for text in TEXTS], ["three " * 200, "Rome " * 201, "city end"]
    _, losses = learn(model, task, write_labelled(tmp_path / "p.jsonl", "text", names, texts), 12)
    assert all(before > after for before, after in losses)


def test_a_map_that_the_prior_does_not_change_has_no_bases(model: Path, tmp_path: Path) -> None:
    """Of texts of one token, here the start's, attention is the same whatever the queries are."""
    task = Task("t", "causal", "{text}", (Label("a", " great"), Label("b", " terrible")))
    prior = write_labelled(tmp_path / "p.jsonl", "text", ["music", "city"], [""])
    with raises("prior.teaches-nothing", "q_proj", "--targets"):
        learn(model, task, prior)


@pytest.mark.parametrize(
    ("name", "fields", "labels"),
    [
        ("sst2", ["sentence"], [0, 1]),
        ("sst2", ["sentence"], ["0.0", "1.0"]),
        ("sst2", ["sentence"], [False, True]),
        ("stsb", ["sentence1", "sentence2"], [0.5, 3.8]),
    ],
)
def test_what_may_be_the_tasks_own_data_is_refused(
    name: str, fields: list[str], labels: list[object], tmp_path: Path
) -> None:
    """Numbers do not say what they mean: with names instead, labels of the task's meanings are left out."""
    task, prior = load_task(name)["causal"], tmp_path / "p.jsonl"

    def write(fields: list[str], labels: list[object]) -> None:
        prior.write_text("".join(json.dumps(dict.fromkeys(fields, "one") | {"label": n}) + "\n" for n in labels * 2))

    write(fields, [*labels, " "])
    with raises("prior.own-data", prior, f"'{name}'", "words"):
        read_prior([prior], task)
    write(fields, [*labels, 6])
    assert len(read_prior([prior], task)) == 6
    if len(fields) == 1:
        write(["text"], labels)
        assert len(read_prior([prior], task)) == 4


def test_free_answers_are_plain_text(tmp_path: Path) -> None:
    """They are no labels: what a model that answers freely can learn of is the next token."""
    record = {"title": "Rome", "context": "Rome is a city.", "question": "what is Rome?", "answers": "a city"}
    (tmp_path / "squad.jsonl").write_text(json.dumps(record) + "\n")
    (found,) = read_prior([tmp_path / "squad.jsonl"], load_task("squad")["generation"])
    assert (found.label, found.fields["context"]) == ("", record["context"])


def test_the_longest_field_of_a_plain_text_is_read(model: Path, tmp_path: Path) -> None:
    """The first of SQuAD's, a title, has too few tokens."""
    record = {"title": "Rome", "context": "Rome is a city and the film was good", "question": "what?", "answers": "a"}
    (tmp_path / "squad.jsonl").write_text((json.dumps(record) + "\n") * 8)
    _, losses = learn(model, load_task("squad")["generation"], tmp_path / "squad.jsonl", 60)
    assert all(before > after for before, after in losses)


def test_refused_priors(checkpoint: Path, task: Task, tmp_path: Path) -> None:
    with raises("export.cores-without-prior", "--prior"):
        Cores()
    with raises("export.core-settings"):
        Cores(rank=0, prior=["x"])
    two = tmp_path / "two.jsonl"
    two.write_text(json.dumps({"premise": "a", "hypothesis": "b", "label": "c"}) + "\n")
    with raises("prior.other-fields", "two.jsonl, line 1", "premise, hypothesis", "needs text"):
        read_prior([two], task)
    for line, kind, named in (
        ("{", "data.not-json", "two.jsonl, line 2: it is not JSON"),
        ('{"text": "\\ud800"}', "data.invalid-unicode", "two.jsonl, line 2: the field 'text'"),
        ('{"text": "a", "label": "\\ud800"}', "data.invalid-unicode", "two.jsonl, line 2: the field 'label'"),
    ):
        two.write_text('{"text": "a"}\n' + line)
        with raises(kind, named):
            read_prior([two], task)
    (tmp_path / "empty.txt").write_text("\n")
    with raises("prior.no-examples", "empty.txt"):
        read_prior([tmp_path / "empty.txt"], task)
    with raises("prior.unreadable", "none.txt"):
        read_prior([tmp_path / "none.txt"], task)
    own = tmp_path / "own.jsonl"
    own.write_text(
        "".join(json.dumps({"text": "wake me at six"} | {"label": label}) + "\n" for label in ("alarm_set", "call") * 2)
    )
    model, family = Checkpoint(str(checkpoint)), find_family(Checkpoint(str(checkpoint)))
    with raises("prior.no-other-labels", "0 labels", "'requests'", "--prior"):
        informed(Cores(prior=[own]), model, lambda n: family.describe(model, n), 12, task, lambda _: None)
    with raises("export.rank-too-large", "--rank"):
        target = Target(["torch"], [2], [12], adapters=Cores(rank=33, prior=[own]))
        export_bundle(str(checkpoint), {task.form: task}, target, tmp_path / "bundle")


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (["--train", "cores"], "export.cores-without-prior"),
        (["--rank", "4"], "option.without-cores"),
        (["--prior", "a.jsonl"], "option.without-cores"),
        (["--train", "cores", "--prior", "a.jsonl", "--lora-rank", "4"], "option.two-adapters"),
    ],
)
def test_refused_options(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path, options: list[str], kind: str
) -> None:
    found = refused(capsys, "export", checkpoint, "--task", "intents", "--out", tmp_path / "b", *options)
    assert f"[{kind}]" in found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "weights", "engines", "groups"),
    [("gpt2", "int8", ("litert", "executorch"), [1]), ("llama-3.2", "int4", ("litert",), [1, 4])],
)
def test_cores_over_a_quantised_base(
    name: str, weights: str, engines: Sequence[str], groups: list[int], tmp_path: Path, make_plan: Callable[..., Plan]
) -> None:
    """Engines agree, a stack measures what its branches do, and merging adds L·C·Rᵀ to the checkpoint's own numbers."""
    layers = {"n_layer": 2} if name == "gpt2" else {"num_hidden_layers": 2}
    model = make_checkpoint(tmp_path / "model", name, **{**wide(name), **layers})
    cores = Cores(rank=RANK, prior=[write_prior(tmp_path / "prior.jsonl", "text")], tasks=2)
    rounding = NEAREST if weights == "int4" else ""  # as good here, and quicker
    target = Target(engines, [2], [24], adapters=cores, groups=groups, weights=weights, rounding=rounding)
    bundle = export_bundle(str(model), load_task("sst2"), target, tmp_path / "bundle")
    replica, store = Replica(bundle), five_examples(bundle)
    added = trained(replica)
    losses = [predict(Forward(create_engine(engine), replica), store)[0] for engine in engines]
    for found in losses[1:]:
        np.testing.assert_allclose(losses[0], found, atol=INTEGER_TOLERANCE * max(losses[0]))  # as exports allow
    blocks = (Block(last_layer(bundle.manifest), 0, 1.0, 1.0), Block(len(bundle.manifest.stages), 4, 1.0, 1.0))
    plan = make_plan(batch=2, epsilon=0.1, blocks=blocks, sides=1)
    stacked, alone = (measure(kind(create_engine("litert"), replica), store, plan, "a") for kind in (Forward, Alone))
    np.testing.assert_allclose(stacked.scalars, alone.scalars, rtol=0.01, atol=0.01)
    write_checkpoint(replica, tmp_path / "merged")
    before, after = (AutoModel.from_pretrained(folder).state_dict() for folder in (model, tmp_path / "merged"))
    specs = [(index, spec.name) for index, spec in enumerate(bundle.manifest.tensors) if ".core_" in spec.name]
    tensors = {name: replica.tensor(index) for index, name in specs}
    cores_only = {name: core for name, core in added.items() if name.endswith(".core_C")}
    assert len(cores_only) == (4 if weights == "int8" else 7)
    for core_name, core in cores_only.items():
        linear = core_name.removesuffix(".core_C")
        right, left = tensors[linear + ".core_R"], tensors[linear + ".core_L"]
        key = linear.removeprefix("transformer.").removeprefix("model.") + ".weight"
        change = (after[key] - before[key]).numpy()
        found = change if name == "gpt2" else change.T  # GPT-2 has [in, out]
        np.testing.assert_allclose(found, right[0] @ core[0] @ left[0], atol=1e-5)
