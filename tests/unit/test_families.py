"""Every family on every engine against transformers' own model, unmodified: losses, gradient scalars, the way back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from models import ENCODERS, ENGINES, MODELS, MOST_DIFFERENT, TEXTS, byte_pairs, cases, make_checkpoint, save_tokenizer
from peft import PeftModel
from references import read_labels, scoring_table, trained
from refusals import raises
from safetensors.torch import load_file, save_file
from sweep import save_random
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from fedspzo.device_runtime.data.sources import Example
from fedspzo.device_runtime.data.store import DataStore, tokenise
from fedspzo.device_runtime.directions.format import Direction, NumpyKernel
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.stored import widened
from fedspzo.device_runtime.model.task import GENERATION
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.estimator import draw_examples, measure
from fedspzo.device_runtime.step.generation import generate
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.sampling import Sampling
from fedspzo.device_runtime.step.scores import predict
from fedspzo.export.answering import counted_labels
from fedspzo.export.families import find_family
from fedspzo.export.materialize import write_adapter, write_checkpoint
from fedspzo.export.network.adapters import LowRank
from fedspzo.export.network.target import Target
from fedspzo.export.network.tokens import label_tokens
from fedspzo.export.pipeline import export_bundle
from fedspzo.export.tasks import load_task

SENTENCES = ("the film was good", "a dull end", "one two three four five six seven", "bad music play", "good")
QUESTIONS = (("Rome is a city.", "a city"), ("the end was good", "good"), ("one two three", "one two"))


@dataclass(frozen=True)
class Case:
    """A model, its bundle for one task, examples, and transformers' model."""

    checkpoint: Path
    bundle: Bundle
    store: DataStore
    reference: PreTrainedModel


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, Sequence[str]], Case]:
    folder = tmp_path_factory.mktemp("families")

    @cache
    def make(name: str, task: str, engines: Sequence[str]) -> Case:
        checkpoint = folder / name
        if not checkpoint.exists():
            make_checkpoint(checkpoint, name)
        length = 48 if task == "squad" else 24
        target = Target(engines, [3], [length], answer_tokens=8 if task == "squad" else None)
        bundle = export_bundle(str(checkpoint), load_task(task), target, folder / f"{name}-{task}-{engines[-1]}")
        if task == "squad":
            fields = ({"title": "Rome", "question": "what is Rome?", "context": context} for context, _ in QUESTIONS)
            examples = [Example(f, 0, (answer,)) for f, (_, answer) in zip(fields, QUESTIONS, strict=True)]
        else:
            examples = [Example({"sentence": text}, i % 2) for i, text in enumerate(SENTENCES)]
        return Case(checkpoint, bundle, tokenise(bundle, examples), load_reference(checkpoint, name))

    return make


def load_reference(checkpoint: Path, name: str) -> PreTrainedModel:
    factory = AutoModelForMaskedLM if name in ENCODERS else AutoModelForCausalLM
    model: PreTrainedModel = factory.from_pretrained(checkpoint, dtype=torch.float32).eval()
    return model


@torch.inference_mode()
def reference_losses(case: Case, model: PreTrainedModel, indices: np.ndarray) -> np.ndarray:
    """Losses by transformers' own forward: cross-entropy over the label words, or over the answer's tokens."""
    store, task = case.store, case.bundle.manifest.task
    ids = torch.from_numpy(store.ids[indices]).long()
    mask = torch.from_numpy((np.arange(ids.shape[1]) < store.lengths[indices, None]).astype(np.int64))
    logits = model(input_ids=ids, attention_mask=mask).logits
    losses = []
    for row, index in enumerate(indices):
        start, length = int(store.starts[index]), int(store.lengths[index])
        if task.form == GENERATION:
            scores, wanted = logits[row, start : length - 1], ids[row, start + 1 : length]
        else:
            words = label_tokens(_checkpoint(case.checkpoint), task)
            scores, wanted = logits[row, start][words][None], torch.tensor([int(store.labels[index])])
        losses.append(float(torch.nn.functional.cross_entropy(scores, wanted)))
    return np.array(losses)


@cache
def _checkpoint(folder: Path):  # type: ignore[no-untyped-def]
    from fedspzo.export.checkpoint import Checkpoint

    return Checkpoint(str(folder))


def reference_scalars(case: Case, plan: Plan, indices: np.ndarray) -> list[float]:
    """(l₊ − l₋)/2ε of each branch, with the directions added to the parameters of transformers' model."""
    manifest, kernel = case.bundle.manifest, NumpyKernel(plan.distribution)
    table = scoring_table(case.reference)
    parameters = dict(case.reference.named_parameters(remove_duplicate=False))
    blocks, start = [], 0
    for block in plan.blocks:
        stages = manifest.stages[start : block.stop]
        blocks.append({i for stage in stages for i in stage.tensors if manifest.tensors[i].trainable})
        start = block.stop
    found = []
    for path in plan.paths(len(plan.blocks) - 1):
        losses = []
        for sign in (1, -1):
            saved = {name: p.detach().clone() for name, p in parameters.items()}
            for depth, (block, members) in enumerate(zip(plan.blocks, blocks, strict=True)):
                direction = Direction(plan.seed("", 0, path[: depth + 1]), sign * plan.epsilon * block.scale)
                for index in members:
                    spec = manifest.tensors[index]
                    shift = np.zeros(spec.shape, np.float32)
                    kernel.shift({index: shift}, [direction], {index: shift})
                    if spec.name == "labels":
                        words = label_tokens(_checkpoint(case.checkpoint), manifest.task)
                        start = widened(case.bundle.tensor(index))[0]
                        shift = counted_labels(case.bundle, start + shift[0]) - start
                        table.data[words] += torch.from_numpy(np.ascontiguousarray(shift.T))
                        continue
                    shift = shift[0].T if spec.transposed else shift.reshape(parameters[spec.source].shape)
                    parameters[spec.source].data += torch.from_numpy(np.ascontiguousarray(shift))
            losses.append(float(reference_losses(case, case.reference, indices).mean()))
            for name, value in saved.items():
                parameters[name].data.copy_(value)
        found.append((losses[0] - losses[1]) / (2 * plan.epsilon))
    return found


#: What the quick suite covers: every kind of layer once. The rest are variants, which test_sweep.py has in PyTorch.
QUICK = {
    ("bert", "sst2"): ENGINES,
    ("llama-3.2", "squad"): ENGINES,
    **dict.fromkeys(((name, "sst2") for name in ("opt", "qwen3", "gpt2")), ENGINES[:1]),
}
SLOW = {
    **dict.fromkeys((*MOST_DIFFERENT, "opt-350m", "mistral", "gemma2", "gemma3"), ENGINES[:1]),
    "deberta-v3": ENGINES,
}
CASES = cases({name: ("sst2",) if name in ENCODERS else ("sst2", "squad") for name in MODELS}, QUICK, SLOW)


@pytest.mark.parametrize(("name", "task", "engines"), CASES)
def test_a_family_is_transformers_model(
    name: str,
    task: str,
    engines: Sequence[str],
    case: Callable[[str, str, Sequence[str]], Case],
    make_plan: Callable[..., Plan],
    record_property: Callable[[str, object], None],
) -> None:
    found = case(name, task, engines)
    everything = np.arange(len(found.store))
    expected = reference_losses(found, found.reference, everything)
    stages = len(found.bundle.manifest.stages)
    blocks = (Block(stages - 2, 1, 0.5, 1.0), Block(stages, 3, 1.0, 1.0))
    plan = make_plan(batch=3, epsilon=1e-2, blocks=blocks)
    scalars = np.array(reference_scalars(found, plan, draw_examples(plan, found.store, "a", 0)))
    answers = []
    for engine in engines:
        forward = Forward(create_engine(engine), Replica(found.bundle))
        losses = predict(forward, found.store)[0]
        np.testing.assert_allclose(losses, expected, atol=1e-4)
        record_property(f"{name} float32 {engine}", float(np.abs(losses - expected).max()))
        measured = np.array(measure(forward, found.store, plan, "a").scalars)
        np.testing.assert_allclose(measured, scalars, atol=0.01 * np.abs(scalars).max())
        if task == "squad":
            whole = Bundle(found.bundle.folder)
            whole.manifest = replace(whole.manifest, continuations=())
            forwards = forward, Forward(create_engine(engine), Replica(whole))
            answers += [generate(each, found.store) for each in forwards]
    assert all(share == 1.0 for check in found.bundle.manifest.checks for share in check.delegated.values())
    assert all(answer == answers[0] for answer in answers)


def test_greedy_answers_are_transformers(case: Callable[[str, str, Sequence[str]], Case]) -> None:
    """What the device generates token by token is what transformers' greedy search does."""
    found = case("llama-3.2", "squad", ENGINES)
    answers = generate(Forward(create_engine("litert"), Replica(found.bundle)), found.store)
    tokenizer = _checkpoint(found.checkpoint).tokenizer
    for index, answer in enumerate(answers):
        prompt = torch.from_numpy(found.store.ids[index : index + 1, : found.store.starts[index] + 1]).long()
        options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        ids = found.reference.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[0]
        text = tokenizer.decode(ids[prompt.shape[1] :].tolist(), skip_special_tokens=False)
        assert answer == text.partition("\n")[0].strip()


@pytest.mark.parametrize(
    ("name", "task"),
    [
        *(("roberta", "sst2"), ("gpt2", "sst2"), ("llama-3.2", "squad"), ("gemma2", "sst2")),
        pytest.param("gemma3", "squad", marks=pytest.mark.slow),
        *(pytest.param(name, "sst2", marks=pytest.mark.slow) for name in ("phi3", "olmo2", "gpt-neox")),
    ],
)
def test_the_way_back(
    name: str,
    task: str,
    case: Callable[[str, str, Sequence[str]], Case],
    make_plan: Callable[..., Plan],
    tmp_path: Path,
) -> None:
    """Rounds change the replica; the checkpoint written from it gives transformers the replica's own answers."""
    found = case(name, task, ("torch",))
    replica = Replica(found.bundle)
    stages = len(found.bundle.manifest.stages)
    plan = make_plan(batch=3, blocks=(Block(stages - 1, 1, 1.0, 2e-2), Block(stages, 2, 1.0, 2e-2)))
    forward = Forward(create_engine("torch"), replica)
    before = predict(forward, found.store)[0]
    replica.apply(Entry(plan, (Contribution("", 1.0, (1.5, -2.5)),)))
    after = predict(forward, found.store)[0]
    assert np.abs(after - before).max() > 1e-2
    write_checkpoint(replica, tmp_path / "out")
    model = load_reference(tmp_path / "out", name)
    assert model.dtype == torch.float32
    if found.bundle.manifest.task.labels:
        read_labels(model, tmp_path / "out", label_tokens(_checkpoint(found.checkpoint), found.bundle.manifest.task))
    np.testing.assert_allclose(reference_losses(found, model, np.arange(len(found.store))), after, atol=1e-4)


def test_a_new_family_is_one_short_file() -> None:
    """GPT-2 is in a file of its own and is named nowhere else in the packages."""
    root = Path(__file__).parents[2]
    file = Path(find_family(_Named("gpt2")).__file__).resolve()  # type: ignore[attr-defined, arg-type]
    assert file == root / "export" / "families" / "gpt2.py"
    assert len(file.read_text().splitlines()) <= 120
    others = [
        p for package in ("export", "device_runtime", "broker", "fedspzo") for p in (root / package).rglob("*.py")
    ]
    assert [p for p in others if p != file and "gpt2" in p.read_text().lower()] == []


class _Named:
    """Enough of a checkpoint to look its family up."""

    def __init__(self, kind: str) -> None:
        self.config = type("Config", (), {"model_type": kind})


def test_the_head_grows_with_the_label_words(tmp_path: Path) -> None:
    """The vocabulary is never scored in full: four times as many tokens cost nothing, twice as many words twice."""
    flops = {}
    for name, vocabulary in (("small", 600), ("large", 2400)):
        checkpoint = make_checkpoint(tmp_path / name, "llama-3.2", vocab_size=vocabulary)
        for labels in ("two", "four"):
            words = [" good", " great", " bad", " terrible"][: 2 if labels == "two" else 4]
            table = ", ".join(f'"{i}" = "{word}"' for i, word in enumerate(words))
            path = tmp_path / f"{labels}.toml"
            path.write_text(f'[causal]\ntemplate = "{{sentence}} It was"\nlabels = {{ {table} }}\n')
            out = tmp_path / f"{name}-{labels}"
            bundle = export_bundle(str(checkpoint), load_task(str(path)), Target(["torch"], [2], [16]), out)
            flops[name, labels] = bundle.manifest.shapes[0].graphs["head"].flops
    assert flops["small", "two"] == flops["large", "two"]
    assert flops["small", "four"] == flops["large", "four"]
    # One more product of [2 examples, 32 wide] with two words' rows.
    assert flops["small", "four"] - flops["small", "two"] == 2 * 2 * 32 * 2


def test_variants_that_configs_have(tmp_path: Path) -> None:
    """Where transformers looks at a setting we do, and where it does not we do not: losses by its own forward."""
    variants = {
        "bert": {"tie_word_embeddings": False},
        "roberta": {"tie_word_embeddings": False},
        "llama-untied": {"sliding_window": 5},
        "llama-3.2": {"num_key_value_heads": 1},
        "qwen2": {"num_attention_heads": 1, "num_key_value_heads": 1},
        "opt": {"num_attention_heads": 1},
        "gpt2": {"vocab_size": 701},
    }
    for name, changes in variants.items():
        checkpoint = make_checkpoint(tmp_path / name, name, **changes)
        reference = load_reference(checkpoint, name)
        target = Target(["torch"], [1], [24])
        bundle = export_bundle(str(checkpoint), load_task("sst2"), target, tmp_path / f"{name}-bundle")
        store = tokenise(bundle, [Example({"sentence": text}, i % 2) for i, text in enumerate(SENTENCES)])
        found = Case(checkpoint, bundle, store, reference)
        losses, _ = predict(Forward(create_engine("torch"), Replica(bundle)), store)
        expected = reference_losses(found, reference, np.arange(len(store)))
        np.testing.assert_allclose(losses, expected, atol=1e-4, err_msg=name)


def test_a_window_in_shapes_around_it(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "m", "qwen3")
    target = Target(["torch"], [1], [24, 6])
    assert len(export_bundle(str(checkpoint), load_task("sst2"), target, tmp_path / "b").manifest.shapes) == 2


def test_the_text_part_of_a_model_that_sees(tmp_path: Path) -> None:
    """Gemma 3 with images: the bundle scores texts as the whole model does, and goes back into the whole model."""
    kind, text = MODELS["gemma3"]
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "image_size": 28, "patch_size": 14, "vision_use_head": False,
    }  # fmt: skip
    tokenizer = byte_pairs(TEXTS, mask=False)
    rows = tokenizer.get_vocab_size()
    config = AutoConfig.for_model(
        "gemma3", text_config={**text, "vocab_size": rows + 3, "model_type": kind}, vision_config=vision,
        mm_tokens_per_image=4, image_token_index=rows, boi_token_index=rows + 1, eoi_token_index=rows + 2,
        pad_token_id=None, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    save_random(tmp_path / "model", config)
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    own_head = torch.randn(tensors["language_model.model.embed_tokens.weight"].shape)  # though the config ties the two
    save_file({**tensors, "language_model.lm_head.weight": own_head}, file, metadata={"format": "pt"})
    save_tokenizer(tokenizer, tmp_path / "model", mask=None)
    target = Target(["torch"], [2], [24], adapters=LowRank(2))
    bundle = export_bundle(str(tmp_path / "model"), load_task("sst2"), target, tmp_path / "bundle")
    replica = Replica(bundle)
    adapted = trained(replica)
    store = tokenise(bundle, [Example({"sentence": text}, i % 2) for i, text in enumerate(SENTENCES)])
    losses, _ = predict(Forward(create_engine("torch"), replica), store)
    write_checkpoint(replica, tmp_path / "merged")
    write_adapter(replica, tmp_path / "adapter")
    everything = np.arange(len(store))
    words = label_tokens(_checkpoint(tmp_path / "model"), bundle.manifest.task)
    for model, folder in (
        (load_reference(tmp_path / "merged", "gemma3"), "merged"),
        (
            PeftModel.from_pretrained(load_reference(tmp_path / "model", "gemma3"), tmp_path / "adapter").eval(),
            "adapter",
        ),
    ):
        read_labels(model, tmp_path / folder, words)
        found = Case(tmp_path / "model", bundle, store, model)
        np.testing.assert_allclose(reference_losses(found, model, everything), losses, atol=1e-4)
    assert len(adapted) == 2 * 7 * text["num_hidden_layers"] + 1  # the labels' vectors


def test_angles_that_depend_on_the_text(tmp_path: Path) -> None:
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 16,
        "long_factor": [2.0] * 4, "short_factor": [1.0] * 4, "factor": 4.0,
    }  # fmt: skip
    checkpoint = make_checkpoint(tmp_path / "m", "llama-3.2", rope_parameters=rope)
    with raises("export.longrope", "16 tokens", "--max-length of at most 16"):
        export_bundle(str(checkpoint), load_task("sst2"), Target(["torch"], [1], [24]), tmp_path / "b")
    opened = _checkpoint(checkpoint)
    assert find_family(opened).describe(opened, 4).limit == 16  # calibration texts are no longer than this


def test_an_answer_ends_at_the_end_of_text(
    case: Callable[[str, str, Sequence[str]], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = case("llama-3.2", "squad", ENGINES)
    assert found.bundle.manifest.task.stop == ""
    stopping = Bundle(found.bundle.folder)
    task = replace(stopping.manifest.task, stop="</s>")
    stopping.manifest = replace(stopping.manifest, task=task)
    after = found.store.starts + 1  # a letter, then </s>
    monkeypatch.setattr(Sampling, "choose", lambda _, scores, text, at: 2 if at > after[text] else 11)
    answers = generate(Forward(create_engine("litert"), Replica(stopping)), found.store)
    letter = _checkpoint(found.checkpoint).tokenizer.decode([11])
    assert answers == [letter] * len(found.store)
