"""Folders of sentence-transformers: a bundle's vectors are SentenceTransformer's, unmodified, or the export refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import raises
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentences import NORMALIZE, dense, layer_norm, make_sentence_model

from fedspzo.device_runtime.data.sources import Example
from fedspzo.device_runtime.data.store import tokenise
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.errors import ExportError
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.task import Label, Task
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.scores import predict
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import find_family
from fedspzo.export.materialize import write_checkpoint
from fedspzo.export.modules.heads import TEMPERATURE
from fedspzo.export.network.target import Target
from fedspzo.export.network.vectors import embed_descriptions, with_pooling, with_prompt
from fedspzo.export.pipeline import export_bundle

TEXTS = ("the film was good", "a dull end", "one two three four five six seven", "Bad music play", "good")
TASK = Task("moods", "similarity", "{text}", (Label("bad", "a bad play"), Label("good", "the music was fine")))
LABELS = [label.text for label in TASK.labels]
ALL = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
PROMPT = {"prompts": {"q": "the city {is}: ", "d": ""}, "default_prompt_name": "q"}
GELU = "torch.nn.modules.activation.GELU"
IDENTITY = "torch.nn.modules.linear.Identity"

#: What folders can say, each as arguments of ``make_sentence_model``.
VARIANTS: dict[str, dict[str, Any]] = {
    **{mode: {"pooling": {"pooling_mode": mode}} for mode in ALL},
    "older keys": {"pooling": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}},
    "older keys of two": {"pooling": {"pooling_mode_max_tokens": True, "pooling_mode_lasttoken": True}},
    "no mode": {"pooling": {"pooling_mode_mean_tokens": False}},
    "all side by side": {"pooling": {"pooling_mode": ALL}},
    "order": {"pooling": {"pooling_mode": ["mean", "cls"]}},
    "dense": {"steps": [dense(32, 16)]},
    "dense, PyTorch's file": {"steps": [dense(32, 16)], "torch_files": True},
    "dense without bias": {"steps": [dense(32, 48, bias=False, activation_function=IDENTITY), NORMALIZE]},
    "two dense": {"steps": [dense(32, 48, activation_function=GELU), dense(48, 8, activation_function=IDENTITY)]},
    "residuals": {"steps": [dense(32, 32, use_residual=True), dense(32, 20, use_residual=True)]},
    "square root and dense": {"pooling": {"pooling_mode": "mean_sqrt_len_tokens"}, "steps": [dense(32, 32)]},
    "normalised before": {"steps": [NORMALIZE, dense(32, 16), NORMALIZE]},
    "norm": {"steps": [{"type": "Dropout", "config": {"dropout": 0.3}}, layer_norm(32)]},
    "truncated": {"settings": {"truncate_dim": 12}, "steps": [NORMALIZE]},
    "prompt": {"settings": PROMPT},
    "prompt not chosen": {"settings": {**PROMPT, "default_prompt_name": None}},
    **{f"{mode} without prompt": {"settings": PROMPT, "pooling": {"pooling_mode": mode, "include_prompt": False}}
       for mode in ALL},
    "lower case": {"name": "roberta", "transformer": {"do_lower_case": True}},
    "older layout": {"within": "0_Transformer", "steps": [dense(32, 16)]},
    "classes of today": {"steps": [{"type": "sentence_transformers.base.modules.normalize.Normalize"}]},
    "decoder": {"name": "qwen3", "pooling": {"pooling_mode": "lasttoken"}, "steps": [NORMALIZE]},
    "decoder, weighted": {"name": "gpt2", "pooling": {"pooling_mode": "weightedmean"}},
}  # fmt: skip

#: What the export refuses, and what its sentence names.
REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "WordWeights": ({"steps": [{"type": "WordWeights", "config": {}}]}, ("'2_WordWeights' (WordWeights)",)),
    "CNN": ({"steps": [{"type": "CNN", "config": {}}]}, ("'2_CNN' (CNN)", "Pooling, Dense")),
    "own class": ({"steps": [{"type": "mine.Head", "config": {}}]}, ("'2_Head' (mine.Head)",)),
    "tokens": ({"steps": [dense(32, 8, module_input_name="token_embeddings")]}, ("'2_Dense'", "token_embeddings")),
    "activation": ({"steps": [dense(32, 8, activation_function="mine.Act")]}, ("'2_Dense'", "mine.Act")),
    "sizes": ({"steps": [dense(16, 8)]}, ("do not fit together",)),
    "mode": ({"pooling": {"pooling_mode": "median"}}, ("the pooling median",)),
    "two poolings": ({"steps": [{"type": "Pooling", "config": {}}]}, ("Transformer, Pooling, Pooling",)),
    "sparse": ({"settings": {"model_type": "SparseEncoder"}}, ("SparseEncoder",)),
    "task": ({"transformer": {"transformer_task": "fill-mask"}}, ("fill-mask",)),
    "chat": ({"transformer": {"modality_config": {"message": {}}}}, ("chat template",)),
    "arguments": ({"transformer": {"config_args": {"num_hidden_layers": 1}}}, ("config_args.num_hidden_layers",)),
    "no prompt": ({"settings": {**PROMPT, "default_prompt_name": "x"}}, ("default prompt 'x'",)),
}

#: The files of a folder that say what is done beside the transformer.
_FILES = (
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
    "2_Dense/config.json",
)


@pytest.mark.parametrize("variant", VARIANTS)
def test_texts_have_the_vectors_of_sentence_transformers(variant: str, tmp_path: Path) -> None:
    root = make_sentence_model(tmp_path / "m", **VARIANTS[variant])
    checkpoint = Checkpoint(str(root))
    task = with_prompt(checkpoint, Task("texts", "similarity", "{text}", tuple(Label(text, text) for text in TEXTS)))
    architecture = with_pooling(checkpoint, find_family(checkpoint).describe(checkpoint, 24))
    found = embed_descriptions(checkpoint, architecture, task)
    np.testing.assert_allclose(found, _vectors(root, TEXTS), atol=1e-5)


@pytest.mark.parametrize("variant", REFUSED)
def test_what_it_does_not_do_is_refused(variant: str, tmp_path: Path) -> None:
    folder, named = REFUSED[variant]
    root = make_sentence_model(tmp_path / "m", **folder)
    with raises("model.sentence-module", *named):
        export_bundle(str(root), {"similarity": TASK}, Target(["torch"], [1], [24]), tmp_path / "b")


def _describe(root: Path) -> None:
    checkpoint = Checkpoint(str(root))
    with_prompt(checkpoint, TASK)
    with_pooling(checkpoint, find_family(checkpoint).describe(checkpoint, 24))


#: What an odd value may give: nothing, or what it says is not there, not supported, or not of its type.
_KINDS = ("", "model.no-config", "model.no-weights", "model.sentence-module", "model.config-damaged")


def _outcome(root: Path, file: Path, key: str) -> str:
    """The kind of the error that a folder gives, "" for none; of a damaged config it names the file and the key."""
    try:
        _describe(root)
    except ExportError as error:
        named = error.kind != "model.config-damaged" or (str(file) in str(error) and key in str(error))
        return error.kind if named else repr(error)
    return ""


@pytest.mark.parametrize("value", [None, -1, 0, 1e30, 1.5, float("nan"), "x", [], [[]], [{}], {}, {"a": 1}, True])
def test_an_odd_value_in_a_file_is_read_or_named(tmp_path: Path, value: object) -> None:
    root = make_sentence_model(
        tmp_path / "m",
        steps=[dense(32, 32, use_residual=True)],
        settings={**PROMPT, "truncate_dim": 12, "model_type": "SentenceTransformer"},
        pooling={"include_prompt": True},
        transformer={
            "max_seq_length": 20, "do_lower_case": False, "transformer_task": "feature-extraction",
            "modality_config": None, "module_output_name": "token_embeddings", "processor_kwargs": {},
            "model_args": {}, "tokenizer_args": {},
        },
    )  # fmt: skip
    more = {"pooling_mode": "mean", "module_input_name": "sentence_embedding", "model_max_length": 9}
    for file in (root / name for name in _FILES):
        content = json.loads(file.read_text())
        entries = content if isinstance(content, list) else [content]
        changed = [
            (key, [*entries[:place], {**entry, key: value}, *entries[place + 1 :]])
            for place, entry in enumerate(entries)
            for key in {**entry, **(more if entries is not content else {})}
        ]
        if entries is content:
            changed += [("", [*entries, value])]
        for key, found in changed:
            file.write_text(json.dumps(found if entries is content else found[0]))
            assert _outcome(root, file, key) in _KINDS
        file.write_text(json.dumps(content))
        _describe(root)
    settings = {**PROMPT, "prompts": {"q": value}}
    (root / _FILES[1]).write_text(json.dumps(settings))
    if value is None or isinstance(value, str):
        _describe(root)
        return
    with raises("model.config-damaged", root / _FILES[1], "its q is"):
        _describe(root)


@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1\n", b"", b"\x80\x02]q", b"PK\x03\x04"]
)
@pytest.mark.parametrize("torch_files", [True, False])
def test_weights_of_a_module_that_are_none(tmp_path: Path, content: bytes, torch_files: bool) -> None:
    root = make_sentence_model(tmp_path / "m", steps=[dense(32, 16)], torch_files=torch_files)
    (root / "2_Dense" / ("pytorch_model.bin" if torch_files else "model.safetensors")).write_bytes(content)
    with raises("model.no-weights", root / "2_Dense", "no readable weights", "get the model again"):
        _describe(root)


@pytest.mark.parametrize(("key", "value"), [("intermediate_size", 0), ("hidden_dropout_prob", 2), ("vocab_size", 0)])
def test_a_config_that_transformers_does_not_load(tmp_path: Path, key: str, value: int) -> None:
    root = make_sentence_model(tmp_path / "m")
    config = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps({**config, key: value}))
    checkpoint = Checkpoint(str(root))
    architecture = find_family(checkpoint).describe(checkpoint, 24)
    with raises("export.transformers-fails", root, "config.json"):
        embed_descriptions(checkpoint, architecture, TASK)


def test_no_more_tokens_than_the_folder_says(tmp_path: Path) -> None:
    root = make_sentence_model(tmp_path / "m", transformer={"max_seq_length": 16})
    with raises("export.too-long", "at most 16 tokens"):
        export_bundle(str(root), {"similarity": TASK}, Target(["torch"], [1], [17]), tmp_path / "b")
    (root / "sentence_bert_config.json").unlink()
    config = json.loads((root / "tokenizer_config.json").read_text())
    (root / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 12}))
    with raises("export.too-long", "at most 12 tokens"):
        export_bundle(str(root), {"similarity": TASK}, Target(["torch"], [1], [17]), tmp_path / "b")


def _everything(at: Path, engine: str) -> Bundle:
    """A folder that says as much as can be, in its older layout."""
    steps = [dense(192, 40, use_residual=True), layer_norm(40), NORMALIZE, dense(40, 24, activation_function=GELU)]
    root = make_sentence_model(
        at / "m", "bert", {"pooling_mode": ALL, "include_prompt": False}, steps, settings=PROMPT, within="0_Transformer"
    )
    return export_bundle(str(root), {"similarity": TASK}, Target((engine,), [3], [24]), at / "b")


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return _everything(tmp_path_factory.mktemp("sentence"), "litert")


def _losses(root: Path, trained: Path | None = None) -> np.ndarray:
    """By SentenceTransformer's vectors of texts; those of labels are of the original model, or were trained, too."""
    texts = _vectors(trained or root, TEXTS)
    labels = load_file(trained / "labels.safetensors")["labels"].numpy() if trained else _vectors(root, LABELS)
    scores = TEMPERATURE * texts @ labels.T
    return np.array([np.log(np.exp(s).sum()) - s[i % 2] for i, s in enumerate(scores)])


def _vectors(root: Path, texts: Sequence[str]) -> np.ndarray:
    model = SentenceTransformer(str(root), device="cpu")
    return np.asarray(model.encode(list(texts), normalize_embeddings=True))


def _bundle_losses(replica: Replica, engine: str) -> np.ndarray:
    examples = [Example({"text": text}, i % 2) for i, text in enumerate(TEXTS)]
    return predict(Forward(create_engine(engine), replica), tokenise(replica.bundle, examples))[0]


def test_the_graphs_pool_as_the_folder_says(everything: Bundle) -> None:
    _check_graphs(everything, "litert")


@pytest.mark.slow
def test_the_graphs_pool_as_the_folder_says_on_the_other_engine(tmp_path: Path) -> None:
    _check_graphs(_everything(tmp_path, "executorch"), "executorch")


def _check_graphs(bundle: Bundle, engine: str) -> None:
    expected = _losses(Path(bundle.source))
    np.testing.assert_allclose(_bundle_losses(Replica(bundle), engine), expected, atol=1e-3)
    assert all(share == 1.0 for check in bundle.manifest.checks for share in check.delegated.values())


def test_what_is_written_back_is_a_folder_of_sentence_transformers(
    everything: Bundle, make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    replica, source = Replica(everything), Path(everything.source)
    stages = len(everything.manifest.stages)
    plan = make_plan(batch=3, blocks=(Block(stages - 2, 1, 1.0, 2e-2), Block(stages, 2, 1.0, 2e-2)))
    before = _bundle_losses(replica, "litert")
    replica.apply(Entry(plan, (Contribution("", 1.0, (1.5, -2.5)),)))
    after = _bundle_losses(replica, "litert")
    assert np.abs(after - before).max() > 1e-2
    write_checkpoint(replica, tmp_path / "out")
    np.testing.assert_allclose(after, _losses(source, tmp_path / "out"), atol=1e-3)


def test_other_modules_than_at_the_export_are_not_written_back(everything: Bundle, tmp_path: Path) -> None:
    source = Path(everything.source)
    file = source / "1_Pooling" / "config.json"
    kept = file.read_text()
    file.write_text(kept.replace('"include_prompt": false', '"include_prompt": true'))
    try:
        with raises("export.other-source", source):
            write_checkpoint(Replica(everything), tmp_path / "out")
    finally:
        file.write_text(kept)


def test_an_embedder_that_is_a_decoder(tmp_path: Path) -> None:
    """Its last norm is part of the head; texts may come in any of the bundle's lengths."""
    root = make_sentence_model(tmp_path / "m", "qwen3", {"pooling_mode": "lasttoken"})
    tasks = {"causal": Task("c", "causal", "{text}", (Label("a", "a"), Label("b", "b"))), "similarity": TASK}
    bundle = export_bundle(str(root), tasks, Target(["torch"], [3], [24]), tmp_path / "b")
    assert bundle.manifest.task.form == "similarity"
    np.testing.assert_allclose(_bundle_losses(Replica(bundle), "torch"), _losses(root), atol=1e-4)
