"""No text becomes a control token: not written out, nor by a normalizer, nor together with the template."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelines import PIPELINES, charsmap
from refusals import raises
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from fedspzo.device_runtime.data import encoder as encoders
from fedspzo.device_runtime.data.encoder import CHARACTERS, Encoded, Encoder
from fedspzo.device_runtime.data.tokenizer import load_tokenizer
from fedspzo.device_runtime.data.tokenizer.pipeline import PythonTokenizer
from fedspzo.device_runtime.errors import DataError
from fedspzo.device_runtime.model.task import Label, Task

LABELS = (Label("x", " yes"), Label("y", " no"))
SPECIAL = ["<s>", "</s>", "<|end|>"]
NORMALIZERS: dict[str, Callable[[], Any]] = {
    "none": lambda: normalizers.Sequence([]),
    "nfc": normalizers.NFC,
    "nfkc": normalizers.NFKC,
    "accents": lambda: normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]),
    "bert": normalizers.BertNormalizer,
    "charsmap": lambda: normalizers.Precompiled(charsmap("nmt_nfkc_cf")),
    "no-spaces": lambda: normalizers.Sequence([normalizers.Strip(), normalizers.Replace(" ", "")]),
}


def _tokenizer(normalizer: Any) -> Tokenizer:
    """Each character is a token; the letters are known."""
    letters = " 01abcdefghijklmnopqrstuvwxyz<>|/"
    words = ["<unk>", *SPECIAL, "<mask>", *letters]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s|\S"), "isolated")
    tokenizer.add_special_tokens(
        [
            "<unk>", AddedToken("<s>", normalized=False, special=True), AddedToken("</s>", rstrip=True, special=True),
            AddedToken("<|end|>", single_word=True, normalized=True, special=True),
            AddedToken("<mask>", lstrip=True, normalized=True, special=True),
        ]
    )  # fmt: skip
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


def _encoders(folder: Path, task: Task, length: int = 400) -> tuple[Encoder, Encoder]:
    """With the library, and with the tokenizer in Python."""
    bundle: Any = SimpleNamespace(folder=folder, manifest=SimpleNamespace(task=task, length=length, files={}))
    found = []
    for load in (load_tokenizer, PythonTokenizer):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(encoders, "load_tokenizer", load)
            found.append(Encoder(bundle))
    return found[0], found[1]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, normalizer in NORMALIZERS.items():
        found[name] = tmp_path_factory.mktemp(name)
        _tokenizer(normalizer()).save(str(found[name] / "tokenizer.json"))
    return found


def _disguises(token: str) -> Iterator[str]:
    """A token as a normalizer might make it."""
    yield token
    yield token.upper()
    yield "".join(chr(ord(char) + 0xFEE0) for char in token)  # full width
    for between in ("\u200d", "\u0301", "\u0338", "\xad", " ", "\x01"):
        yield between.join(token)


PARTS = [
    *(part for token in [*SPECIAL, "<mask>"] for part in _disguises(token)),
    *("<", ">", "<ma", "sk>", "k>", "</", "|", "|>", "<|", "\u0338", "\u0301", "\u200d", " ", "\n", "good", "naïve"),
    *("<m<mask>ask>", "<s><s></s>", "﹤mask﹥"),
]
texts = st.lists(st.sampled_from(PARTS), max_size=6).map("".join)
TEMPLATES = ["{a} 0{mask}1 {b}", "{a}{mask}{b}", "<{a}> {mask} {a:lower}</{b:trim}s>"]


def _outcome(encoder: Encoder, fields: dict[str, str]) -> Encoded | str:
    try:
        return encoder.encode(fields)
    except DataError as error:
        return error.kind


@pytest.mark.parametrize("name", NORMALIZERS)
@settings(max_examples=40)
@given(template=st.sampled_from(TEMPLATES), a=texts, b=texts)
def test_no_text_is_a_control_token(folders: dict[str, Path], name: str, template: str, a: str, b: str) -> None:
    task = Task("t", "masked", template, LABELS, mask="<mask>")
    found, other = (_outcome(encoder, {"a": a, "b": b}) for encoder in _encoders(folders[name], task))
    assert found == other
    if isinstance(found, str):  # what a space between template and field does not keep apart
        assert found == "data.forged-token"
        assert name == "no-spaces" or template == TEMPLATES[2]
        return
    control = [id for id in found.ids if id in (1, 2, 3, 4)]
    assert control == [1, 4, 2], "the template's own start, mask and end"
    assert found.ids[found.start] == 4
    if template == TEMPLATES[0]:
        assert (found.ids[found.start - 1], found.ids[found.start + 1]) == (6, 7), (
            "the mask that stands in the template"
        )


@pytest.mark.parametrize("name", NORMALIZERS)
@settings(max_examples=25)
@given(prompt=texts, answer=texts)
def test_no_answer_is_a_control_token(folders: dict[str, Path], name: str, prompt: str, answer: str) -> None:
    task = Task("t", "generation", "{x}:", target="y", answer="{y}|\n", answer_tokens=100, stop="</s>")
    library, python = _encoders(folders[name], task)
    found = library.encode({"x": prompt}, answer)
    assert python.encode({"x": prompt}, answer) == found
    assert [id for id in found.ids if id in (1, 2, 3, 4)] == [1]
    assert found.ids[: found.start + 1] == library.encode({"x": prompt}).ids, "training and asking see one prompt"


@pytest.mark.parametrize("name", ["bert", "xlm-roberta", "llama2", "qwen"])
def test_no_text_is_a_control_token_of_a_family(name: str, tmp_path: Path) -> None:
    tokenizer = PIPELINES[name]()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    library, python = _encoders(tmp_path, Task("t", "causal", "the {x} was", LABELS), length=4000)
    special = {id: token.content for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    own = [id for id in library.encode({"x": "film"}).ids if id in special]
    unknown = tokenizer.token_to_id("<unk>" if "<unk>" in special.values() else "[UNK]")
    for token in special.values():
        text = " good ".join(_disguises(token))
        found = library.encode({"x": text})
        assert python.encode({"x": text}) == found
        assert [id for id in found.ids if id in special and id != unknown] == own, token


def test_what_is_unknown_stays(folders: dict[str, Path]) -> None:
    """The token for what the vocabulary lacks is special, and no forgery."""
    library, _ = _encoders(folders["nfkc"], Task("t", "masked", "{x}{mask}", LABELS, mask="<mask>"))
    assert library.encode({"x": "映"}).ids == [1, 0, 4, 2]


def test_what_cannot_be_kept_apart_is_refused(folders: dict[str, Path]) -> None:
    """A normalizer that removes spaces, and a field in the middle of what would be a mask."""
    task = Task("t", "masked", "{mask} <{x}mask>", LABELS, mask="<mask>")
    library, _ = _encoders(folders["no-spaces"], task)
    assert library.encode({"x": "a"}).ids.count(4) == 1
    with raises("data.forged-token", "'t'", "change the text"):
        library.encode({"x": " "})


def test_a_huge_field_is_read_as_far_as_it_matters(folders: dict[str, Path]) -> None:
    """Seconds would tell on an idle machine; the tokenizer tells how much it was given."""
    task = Task("t", "masked", "{a}{mask}{b}", LABELS, mask="<mask>")
    library, _ = _encoders(folders["nfkc"], task, length=20)
    given_to: list[int] = []
    real = library._tokenizer

    class Counting:
        def encode(self, text: str, **settings: Any) -> Any:
            given_to.append(len(text))
            return real.encode(text, **settings)

    found = library.encode({"a": "good " * 1000, "b": "x"})
    library._tokenizer = library._control._tokenizer = Counting()  # type: ignore[assignment]
    huge = library.encode({"a": "good " * 2_000_000, "b": "x"})
    assert huge == found
    assert huge.cut
    assert max(given_to) <= 2 * CHARACTERS * 20
    with raises("data.answer-too-long", "characters", "--answer-tokens"):
        generating = Task("t", "generation", "{x}:", target="y", answer="{y}\n", answer_tokens=4)
        _encoders(folders["nfkc"], generating, 20)[0].encode({"x": "a"}, "good " * 2_000_000)


def test_the_disguises_are_some() -> None:
    assert unicodedata.normalize("NFKC", list(_disguises("<mask>"))[2]) == "<mask>"
