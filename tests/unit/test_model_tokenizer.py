"""A bundle's tokenizer gives AutoTokenizer's tokens, whatever stands beside tokenizer.json, in both readers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from models import make_checkpoint
from pipelines import PIPELINES
from refusals import raises
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer
from writing import texts

from fedspzo.device_runtime.data.encoder import Encoder
from fedspzo.device_runtime.data.tokenizer import load_tokenizer
from fedspzo.device_runtime.data.tokenizer.pipeline import PythonTokenizer
from fedspzo.device_runtime.errors import FedSPZOError
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import VOCABULARY
from fedspzo.export.network.target import Target
from fedspzo.export.pipeline import export_bundle
from fedspzo.export.tasks import load_task
from fedspzo.export.tokenizer import ModelTokenizer

TEXTS = ("The soup was warm", " Ünïcode  Über 映画は \n", "soup's <|user|> x", *texts(60, seed=8))


def _bert() -> Tokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [
        "the",
        "The",
        "soup",
        "was",
        "warm",
        "u",
        "U",
        "##ber",
        "##nicode",
        "ü",
        "Über",
        "映",
        "画",
        "映画は",
        "##s",
    ]
    vocabulary = {word: i for i, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(special)
    return tokenizer


@cache
def _pipeline(name: str) -> Tokenizer:
    return _bert() if name == "bert" else PIPELINES[name]()


def _folder(at: Path, kind: str, tokenizer: str, files: dict[str, Any]) -> Path:
    _pipeline(tokenizer).save(str(at / "tokenizer.json"))
    (at / "config.json").write_text(json.dumps({"model_type": kind}))
    for name, record in files.items():
        (at / name).write_text(json.dumps(record))
    return at


def _config(name: str, **settings: Any) -> dict[str, Any]:
    return {"tokenizer_config.json": {"tokenizer_class": name, **settings}}


FAST = "PreTrainedTokenizerFast"
ROBERTA = {"mask_token": "<mask>", "bos_token": "<s>", "eos_token": "</s>"}
#: What lies beside tokenizer.json and gives other tokens than it gives alone.
BESIDE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "roberta, prefix space": ("roberta", "roberta", _config("RobertaTokenizer", **ROBERTA, add_prefix_space=True)),
    "gpt2, prefix space": ("gpt2", "gpt2", _config("GPT2Tokenizer", add_prefix_space=True)),
    "qwen2, class": ("qwen2", "llama3", _config("Qwen2Tokenizer")),
    "bert, cased": ("bert", "bert", _config("BertTokenizer", do_lower_case=False)),
    "bert, accents": ("bert", "bert", _config("BertTokenizer", strip_accents=False)),
    "bert, scripts": ("bert", "bert", _config("BertTokenizer", tokenize_chinese_chars=False)),
    "llama, no start": (
        "llama", "llama2",
        _config("LlamaTokenizer", bos_token="<s>", eos_token="</s>", add_bos_token=False, legacy=False),
    ),
    "llama, start and end": (
        "llama", "llama2", _config("LlamaTokenizer", bos_token="<s>", eos_token="</s>", add_eos_token=True),
    ),
    "extra special tokens": ("llama", "llama3", _config(FAST, extra_special_tokens=["soup"])),
    "added tokens": ("llama", "llama3", {**_config(FAST), "added_tokens.json": {"soup": 5000}}),
    "added tokens with settings": (
        "llama", "llama3",
        _config(FAST, added_tokens_decoder={"3002": {"content": "soup", "lstrip": True, "special": False}}),
    ),
    "special tokens' file": (
        "llama", "llama3", {**_config(FAST), "special_tokens_map.json": {"additional_special_tokens": ["<|user|>"]}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BESIDE)
def test_what_lies_beside_a_tokenizer_counts(name: str, tmp_path: Path) -> None:
    folder = _folder(tmp_path, *BESIDE[name])
    ModelTokenizer(folder).write(tmp_path / "written.json")
    library, python = load_tokenizer(tmp_path / "written.json"), PythonTokenizer(tmp_path / "written.json")
    theirs = AutoTokenizer.from_pretrained(folder)
    wanted = [theirs(text)["input_ids"] for text in TEXTS]
    assert [library.encode(text).ids for text in TEXTS] == wanted
    assert [python.encode(text).ids for text in TEXTS] == wanted
    alone = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert [alone.encode(text).ids for text in TEXTS] != wanted, "what lies beside it changes nothing: no case"


def test_a_large_vocabulary_of_a_bundle_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedspzo.export.tokenizer.LARGE", 200)
    checkpoint = make_checkpoint(tmp_path / "opt", "opt")
    export_bundle(str(checkpoint), load_task("sst2"), Target(["torch"], [1], [24]), tmp_path / "bundle")
    bundle = Bundle(tmp_path / "bundle")
    fields = {"sentence": "the film was good"}
    found = Encoder(bundle).encode(fields)
    monkeypatch.setattr("fedspzo.device_runtime.data.encoder.VOCABULARY", "none")
    assert found == Encoder(bundle).encode(fields)
    (bundle.folder / VOCABULARY).write_bytes(b"")
    with raises("bundle.file-altered", VOCABULARY):
        Bundle(tmp_path / "bundle")


def test_padding_and_truncation_are_left_out(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "bert", "bert", _config("BertTokenizer"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(length=16)
    tokenizer.enable_truncation(3)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert len(ModelTokenizer(folder).backend.encode("the soup was").ids) == 5


def test_a_tokenizer_that_is_code(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    with raises("model.no-tokenizer", "ByT5Tokenizer", "choose a model"):
        ModelTokenizer(tmp_path)


def test_a_reader_that_differs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the reader in Python wrong about a tokenizer, an export would say so."""
    folder = _folder(tmp_path, "bert", "bert", _config("BertTokenizer"))
    real = PythonTokenizer.__init__

    def without_words(self: PythonTokenizer, path: Path) -> None:
        real(self, path)
        self._pre_tokenize = lambda text: [text]

    monkeypatch.setattr(PythonTokenizer, "__init__", without_words)
    with raises("model.tokenizer-differs", "the tokenizer in Python", "BertTokenizer"):
        ModelTokenizer(folder).write(tmp_path / "written.json")


def test_what_a_chat_template_writes_is_special(tmp_path: Path) -> None:
    """<think> is no special token of Qwen's; <turn:user> is put together; words and white space are none."""
    template = "{% for m in messages %}{{ '<turn:' + m.role + '>' }}\n{{ m.content }} end<think>{% endfor %}"
    tokenizer = PIPELINES["smollm"]()
    tokenizer.add_tokens(["<turn:user>", "<turn:tool>", "\n", "end", AddedToken("<think>", lstrip=True)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    record = {"tokenizer_class": FAST, "eos_token": "<|im_end|>", "chat_template": template}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(record))
    ModelTokenizer(tmp_path).write(tmp_path / "written.json")
    found = load_tokenizer(tmp_path / "written.json").get_added_tokens_decoder().values()
    special = {token.content for token in found if token.special}
    assert special == {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<turn:user>", "<think>"}
    assert all(token.lstrip == (token.content == "<think>") for token in found)


_ODD = (None, -1, 0, 1.5, 1e30, "x", [], ["x"], {}, {"a": 1}, True, float("nan"))


def _changed(content: Any, most: int = 12) -> Iterator[Any]:
    """A JSON value with each of its parts, down to the leaves, replaced by each odd one."""
    yield from _ODD
    if isinstance(content, dict | list):
        keys: list[Any] = list(content)[:most] if isinstance(content, dict) else list(range(len(content)))[:2]
        for key in keys:
            for part in _changed(content[key]):
                changed = copy(content)
                changed[key] = part
                yield changed


def _kinds(root: Path, file: Path) -> set[str]:
    """Kinds of the errors that a folder gives in the export and on a device, "" for none; they name the file."""
    found = set()
    for load in (lambda: ModelTokenizer(root).backend, lambda: load_tokenizer(root / "tokenizer.json")):
        try:
            load().encode("the soup, [x] 映 and \U0001f3ac")
            found.add("")
        except FedSPZOError as error:
            named = str(file) in str(error) or error.kind == "model.tokenizer-unloadable"
            found.add(error.kind if named else repr(error))
    return found


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_damaged_tokenizer_is_named(name: str, tmp_path: Path) -> None:
    root = make_checkpoint(tmp_path / "m", name)
    known = {"", "model.tokenizer-damaged", "model.tokenizer-unloadable", "tokenizer.unreadable"}
    for file, more in (
        (root / "tokenizer.json", {}),
        (root / "tokenizer_config.json", {"model_max_length": 9, "chat_template": "", "eos_token": "</s>"}),
    ):
        content = file.read_text()
        for changed in _changed({**json.loads(content), **more}):
            file.write_text(json.dumps(changed))
            assert _kinds(root, file) <= known | {"model.config-damaged"}
        file.write_text(content)
    assert _kinds(root, root) == {""}


def test_a_tokenizer_that_lacks_its_own_tokens(tmp_path: Path) -> None:
    root = make_checkpoint(tmp_path / "m", "gpt2")
    file = root / "tokenizer.json"
    content = json.loads(file.read_text())
    content["post_processor"]["special_tokens"] = {}
    file.write_text(json.dumps(content))
    with raises("model.tokenizer-damaged", file, "save_pretrained"):
        ModelTokenizer(root)
    with raises("tokenizer.unreadable", file, "export the bundle again"):
        load_tokenizer(file)


@pytest.mark.parametrize("limit", ["x", -1, [], True, float("nan"), float("inf")])
def test_a_limit_that_is_no_number_is_named(limit: object, tmp_path: Path) -> None:
    root = make_checkpoint(tmp_path / "m", "gpt2")
    (root / "tokenizer_config.json").write_text(json.dumps({"model_max_length": limit}))
    with raises("model.config-damaged", root / "tokenizer_config.json", "its model_max_length is"):
        ModelTokenizer(root)
