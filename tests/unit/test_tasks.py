"""Tasks: the files, what they become with a tokenizer, and that no cut ever reaches a label, a mask or an answer."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import TEXTS, byte_pairs, make_checkpoint, save_tokenizer
from refusals import raises

from fedspzo.device_runtime.data.encoder import Encoder
from fedspzo.device_runtime.model.targets import label_index
from fedspzo.device_runtime.model.task import Label, Task
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.network.target import Target
from fedspzo.export.network.tokens import label_tokens, with_special_tokens
from fedspzo.export.pipeline import export_bundle
from fedspzo.export.tasks import choose_form, load_task

OURS = ("sst2", "rte", "boolq", "wic", "cb", "mnli", "stsb", "squad", "intents")


@pytest.mark.parametrize("name", OURS)
def test_our_tasks_are_whole(name: str) -> None:
    for form, task in load_task(name).items():
        assert (task.name, task.form) == (name, form)
        fields = {field: f"some {field}." for field in task.fields}
        assert all(field in task.render(fields) for field in fields)


def test_templates_are_mezos() -> None:
    """As Malladi et al. publish them (arXiv 2305.17333, appendix E.2)."""

    def rendered(name: str, form: str, **fields: str) -> str:
        return load_task(name)[form].render(fields)

    pair = {"premise": "It rains.", "hypothesis": "The street is wet."}
    assert rendered("sst2", "causal", sentence="a fine film .") == "a fine film . It was"
    assert (
        rendered("rte", "causal", **pair) == 'It rains.\nDoes this mean that "The street is wet." is true? Yes or No?\n'
    )
    assert rendered("mnli", "masked", **pair) == "It rains?, the street is wet."
    assert (
        rendered("cb", "causal", **pair)
        == 'Suppose It rains. Can we infer that "The street is wet."? Yes, No, or Maybe?\n'
    )
    assert rendered("boolq", "causal", passage="Ice floats.", question="does ice float") == (
        "Ice floats. Does ice float?\n"
    )
    squad = load_task("squad")["generation"]
    assert squad.render({"title": "T", "context": "C", "question": "Q"}) == "Title: T\nContext: C\nQuestion: Q\nAnswer:"
    assert squad.render_answer("yes") == " yes\n"


def test_a_task_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('target = "kind"\n[causal]\ntemplate = "{a} {b} is"\nlabels = { yes = " so", no = " not" }\n')
    task = load_task(str(path))["causal"]
    assert (task.name, task.fields, task.labels[1], task.target) == ("mine", ("a", "b"), Label("no", " not"), "kind")


@pytest.mark.parametrize(
    ("text", "kind", "named"),
    [
        ("template = 3", "task.not-a-task", "'template' is neither kind, metrics, target nor a table"),
        ("[causal", "task.not-a-task", "mine.toml"),
        ("", "task.no-form", "write a table"),
        ("[causal]\nlabels = 3", "task.not-a-task", "mine.toml"),
        ('[causal]\ntemplate = "{a}"\nlabels = 3', "task.not-a-task", "labels is not a table"),
        ('[causal]\ntemplate = "{a}"\nwords = 3', "task.not-a-task", "has the unknown key 'words'"),
        ('[causal]\ntemplate = "{a}"\nlabels = { a = "x" }', "task.labels", "'mine'"),
        ('[poem]\ntemplate = "{a}"', "task.not-a-task", "'poem' is neither"),
        ('[masked]\ntemplate = "{a}"\nlabels = { a = "x", b = "y" }', "task.mask-count", "{mask}"),
        ('[generation]\ntemplate = "{a}"\nanswer = "{b}"', "task.answer-template", 'such as " {'),
        (
            'target="b"\n[generation]\ntemplate = "{a}"\nanswer = " {b}"\nanswer_tokens = 3',
            "task.answer-template",
            "text that ends it",
        ),
        ('target="b"\n[generation]\ntemplate = "{a}"\nanswer = " {b}."', "task.answer-tokens", "answer_tokens"),
        *(
            (f'[generation]\ntemplate = "{{a}}"\n{key} = {value}', "task.not-a-task", f"{key} is")
            for key, value in (
                ("answer_tokens", "inf"),
                ("answer_tokens", "3.9"),
                ("answer_tokens", "true"),
                ("answer", "[]"),
                ("chat", '"false"'),
                ("chat", "0"),
                ("target", "3"),
                ("kind", "1979-05-27"),
                ("kind", "{}"),
            )
        ),
        ("[causal]\ntemplate = 3", "task.not-a-task", "template is 3, and not a text in quotes"),
        ('[causal]\ntemplate = "{a}"\nlabels = { a = true, b = "y" }', "task.not-a-task", "label 'a' has no text"),
        *(
            (
                f'[causal]\ntemplate = "{{a}}"\nlabels = {{ a = {value}, b = "y" }}',
                "task.not-a-task",
                "label 'a' has no text",
            )
            for value in ("1", "3.10", "[]", "{}", "1979-05-27")
        ),
        ('[causal]\nlabels = { a = "x", b = "y" }', "task.not-a-task", "[causal] has no template"),
        ("target = 3", "task.not-a-task", "target is 3, and not a text in quotes"),
        ('metrics = "f1"', "task.not-a-task", "metrics is not a list of names"),
        (f"a = {'[' * 3000}{']' * 3000}", "task.not-a-task", "recursion"),
    ],
)
def test_files_that_are_no_task(tmp_path: Path, text: str, kind: str, named: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with raises(kind, named):
        load_task(str(path))


def test_a_task_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path / "folder.toml"):
        (tmp_path / "folder.toml").mkdir(exist_ok=True)
        with raises("task.unreadable", path.name, "cannot be read"):
            load_task(str(path))
    (tmp_path / "latin.toml").write_bytes("[causal] # é".encode("latin-1"))
    with raises("task.unreadable", "latin.toml is no text in UTF-8"):
        load_task(str(tmp_path / "latin.toml"))


@pytest.mark.parametrize("name", ["none", "../none.csv", "../tasks/sst2", ""])
def test_no_such_task(name: str) -> None:
    with raises("task.unknown", f"'{name}'", "boolq, cb, chat, completion, intents, ", ".toml"):
        load_task(name)


def test_a_model_chooses_the_form() -> None:
    tasks = load_task("sst2")
    assert choose_form(tasks, ("masked", "similarity"), "m").form == "masked"
    with raises("task.form-unsuitable", "similarity", "'sst2' has only masked, cau", "[similarity]"):
        choose_form(tasks, ("similarity",), "m")


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tasks") / "roberta", "roberta")


@pytest.fixture(scope="module")
def opt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tasks") / "opt", "opt")


def two_words(form: str, template: str, *words: str) -> Task:
    return Task("t", form, template, tuple(Label(str(i), word) for i, word in enumerate(words)))


def test_descriptions_that_cannot_be_used(checkpoint: Path, tmp_path: Path) -> None:
    for kind, words in (("task.no-description", ("wake me", " ")), ("task.descriptions-collide", ("call", "call "))):
        with raises(kind, "'1'", "'t'"):
            task = two_words("similarity", "{text}", *words)
            export_bundle(str(checkpoint), {task.form: task}, Target(["torch"], [2], [8]), tmp_path / "bundle")


def test_label_words_are_the_tokens_that_stand_there(roberta: Path, opt: Path) -> None:
    masked, causal = Checkpoint(str(roberta)), Checkpoint(str(opt))
    task = with_special_tokens(masked, load_task("sst2")["masked"])
    expected = [masked.tokenizer.token_to_id(word) for word in ("Ġterrible", "Ġgreat")]
    assert label_tokens(masked, task) == expected
    assert label_tokens(causal, load_task("rte")["causal"]) == [causal.tokenizer.token_to_id(w) for w in ("Yes", "No")]


def test_label_words_that_cannot_be_used(roberta: Path, opt: Path) -> None:
    masked, causal = Checkpoint(str(roberta)), Checkpoint(str(opt))
    with raises("task.word-splits", "' splendid'", "'t'", "choose a word"):
        label_tokens(causal, two_words("causal", "{x} It was", " splendid", " great"))
    with raises("task.word-splits", "' splendid'"):
        label_tokens(
            masked, with_special_tokens(masked, two_words("masked", "{x} It was{mask}.", " splendid", " great"))
        )
    with raises("task.words-collide", "' great' and ' great'", "choose words that differ"):
        label_tokens(causal, two_words("causal", "{x} It was", " great", " great"))


def test_a_label_word_that_the_tokenizer_does_not_know() -> None:
    checkpoint = Checkpoint("minilm")
    task = with_special_tokens(checkpoint, two_words("masked", "{x} It was{mask}.", " ☃", " great"))
    with raises("task.unknown-label-word", "' ☃'", "'t'", "choose a word that it knows"):
        label_tokens(checkpoint, task)


def test_a_tokenizer_without_a_mask_token(roberta: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(roberta, tmp_path / "copy"))
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    settings.pop("mask_token")
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    with raises("model.no-mask-token", "'sst2'", "tokenizer_config.json"):
        export_bundle(str(copy), load_task("sst2"), Target(["torch"], [1], [16]), tmp_path / "b")


def test_an_answer_longer_than_the_shape(opt: Path, tmp_path: Path) -> None:
    with raises("export.no-room-for-prompt", "24 tokens", "raise --max-length"):
        export_bundle(str(opt), load_task("squad"), Target(["torch"], [1], [16]), tmp_path / "b")


def encoder(folder: Path, task: Task, length: int) -> Encoder:
    """An encoder of a tokenizer folder: what it needs of a bundle is the folder, the task and the length."""
    bundle: Any = SimpleNamespace(folder=folder, manifest=SimpleNamespace(task=task, length=length, files={}))
    return Encoder(bundle)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for form, mask in (("masked", True), ("causal", False), ("generation", False)):
        folders[form] = tmp_path_factory.mktemp(form)
        save_tokenizer(byte_pairs(TEXTS, mask=mask), folders[form], "<mask>" if mask else None)
    return folders


WORDS = ["the", "film", "was", "good", "<mask>", "</s>", "naïve", "映画", "🎬", "\n", "It was", "Yes", ""]
texts = st.lists(st.sampled_from(WORDS), max_size=60).map(" ".join) | st.text(max_size=80)


@given(premise=texts, hypothesis=texts, length=st.integers(20, 60))
def test_no_cut_reaches_the_mask(tokenizers: dict[str, Path], premise: str, hypothesis: str, length: int) -> None:
    task = Task("t", "masked", "{a:trim}?{mask}, {b:lower}.", (Label("x", " Yes"), Label("y", " No")), mask="<mask>")
    here = encoder(tokenizers["masked"], task, length)
    encoded = here.encode({"a": premise, "b": hypothesis})
    mask = here._tokenizer.token_to_id("<mask>")
    assert len(encoded.ids) <= length
    assert [i for i, token in enumerate(encoded.ids) if token == mask] == [encoded.start]
    assert encoded.ids[0] == 0
    assert encoded.ids[-1] == 2
    assert encoded.cut == (
        len(encoder(tokenizers["masked"], task, 4000).encode({"a": premise, "b": hypothesis}).ids) > length
    )


@given(sentence=texts, length=st.integers(12, 60))
def test_no_cut_reaches_the_end_of_a_prompt(tokenizers: dict[str, Path], sentence: str, length: int) -> None:
    task = load_task("sst2")["causal"]
    here = encoder(tokenizers["causal"], task, length)
    encoded = here.encode({"sentence": sentence})
    assert len(encoded.ids) <= length
    assert encoded.start == len(encoded.ids) - 1
    assert here.decode(encoded.ids).endswith(" It was")


@given(context=texts, answer=st.sampled_from(["a city", "Rome", "good film", "映画"]), length=st.integers(70, 120))
def test_no_cut_reaches_an_answer(tokenizers: dict[str, Path], context: str, answer: str, length: int) -> None:
    task = load_task("squad")["generation"]
    here = encoder(tokenizers["generation"], task, length)
    fields = {"title": "Rome", "context": context, "question": "what is Rome?"}
    encoded, asked = here.encode(fields, answer), here.encode(fields)
    assert len(encoded.ids) <= length
    assert here.decode(encoded.ids[encoded.start + 1 :]) == f" {answer}\n"
    assert encoded.ids[: encoded.start + 1] == asked.ids, "training and asking see the same prompt"
    assert here.decode(asked.ids).endswith("Answer:")


def test_what_cannot_be_encoded(tokenizers: dict[str, Path]) -> None:
    squad = load_task("squad")["generation"]
    here = encoder(tokenizers["generation"], squad, 80)
    fields = {"title": "Rome", "context": "Rome", "question": "what?"}
    with raises("data.answer-too-long", "24", "leave the example out", "--answer-tokens"):
        here.encode(fields, "zyxw vuts " * 8)
    with raises("task.template-too-long", "'squad'", "30 tokens"):
        encoder(tokenizers["generation"], squad, 30).encode(fields)


def test_tokenizers_that_mark_spaces(tmp_path: Path) -> None:
    """XLM-R's and LLaMA 2's kind: a unigram model whose pieces carry the space before them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["It", "was", "great", "terrible", "Yes", "No", ".", ",", "?", "film"]
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("<mask>", 0.0)]
    pieces += [(piece, -2.0) for word in words for piece in (f"▁{word}", word)] + [("▁", -3.0), ("\n", -3.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    save_tokenizer(tokenizer, tmp_path, "<mask>")
    fake: Any = SimpleNamespace(tokenizer=tokenizer, name="m", mask_token="<mask>", end_token="</s>", unknown_token="")
    for name, found in (("sst2", ["▁terrible", "▁great"]), ("rte", ["▁Yes", "▁No"])):
        task = with_special_tokens(fake, load_task(name)["masked"])
        assert [tokenizer.id_to_token(i) for i in label_tokens(fake, task)] == found
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    found = [tokenizer.id_to_token(i) for i in label_tokens(fake, load_task("sst2")["causal"])]
    assert found == ["▁terrible", "▁great"]


def test_a_tokenizer_that_transformers_converts(opt: Path, tmp_path: Path) -> None:
    """facebook/opt-* come with vocab.json and merges.txt only."""
    import shutil

    from tokenizers import Tokenizer

    copy = Path(shutil.copytree(opt, tmp_path / "copy"))
    whole = Tokenizer.from_file(str(copy / "tokenizer.json"))
    whole.model.save(str(copy))
    (copy / "tokenizer.json").unlink()
    settings = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "add_bos_token": True, "unk_token": "<unk>"}
    settings = {**settings, "eos_token": "</s>", "pad_token": "<pad>"}
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    bundle = export_bundle(str(copy), load_task("sst2"), Target(["torch"], [1], [24]), tmp_path / "b")
    fields = {"sentence": "the film was good"}
    assert Encoder(bundle).encode(fields).ids[-6:] == encoder(opt, bundle.manifest.task, 24).encode(fields).ids[-6:]


def test_labels_are_what_they_say() -> None:
    """A name comes before an index, whatever the type of the value."""

    def index(names: str, value: object) -> int:
        return label_index(two_words_named(names.split()), value)

    def two_words_named(names: list[str]) -> Task:
        return Task("t", "causal", "{x} is", tuple(Label(name, f" {name}") for name in names))

    assert [index("true false", value) for value in (True, False, "true", "false")] == [0, 1, 0, 1]
    assert [index("1 0", value) for value in (1, 0, "1", "0", 1.0)] == [0, 1, 0, 1, 0]
    assert [index("1 2 3", value) for value in (1, 3, "2")] == [0, 2, 1]
    assert [index("no yes", value) for value in (True, False, 1, 0.0, "1")] == [1, 0, 1, 0, 1]
    for value in (0, "0", 4, 1.5, -1):
        with raises("data.unknown-label"):
            index("1 2 3", value)


def test_tokenizers_that_close_a_text(tmp_path: Path) -> None:
    """A decoder's prompt and answer are continued: what the tokenizer puts at an end has no place in between."""
    tokenizer = byte_pairs(TEXTS, mask=True)  # its texts end in </s>
    save_tokenizer(tokenizer, tmp_path, None)
    fake: Any = SimpleNamespace(tokenizer=tokenizer, name="m", end_token="</s>", unknown_token="")
    assert label_tokens(fake, load_task("sst2")["causal"]) == [
        tokenizer.token_to_id(w) for w in ("Ġterrible", "Ġgreat")
    ]
    here = encoder(tmp_path, load_task("squad")["generation"], 80)
    encoded = here.encode({"title": "Rome", "context": "a city", "question": "what?"}, "a city")
    assert here.decode(encoded.ids).endswith("Answer: a city\n")
    assert "</s>" not in here.decode(encoded.ids)


def test_a_filter_on_an_answer() -> None:
    task = Task("t", "generation", "{x}:", target="y", answer=" {y:lower}\n", answer_tokens=4)
    assert task.render_answer("Rome") == " rome\n"


def test_requests_that_would_make_another_model(opt: Path, roberta: Path, tmp_path: Path) -> None:
    def refused(kind: str, named: str, task: str = "sst2", model: Path = opt, **settings: Any) -> None:
        target = Target(["torch"], [1], [32], **settings)
        with raises(kind, named):
            export_bundle(str(model), load_task(task), target, tmp_path / "b")

    refused("export.answer-tokens", "--answer-tokens is 3", answer_tokens=3)
    refused("export.answer-tokens", "give at least 1", task="squad", answer_tokens=0)
    refused("export.pattern-unmatched", "'layrs'", freeze=["layrs"])
    short = tmp_path / "short.toml"
    short.write_text('[causal]\ntemplate = "' + "one two " * 40 + '{x}"\nlabels = { a = "Yes", b = "No" }\n')
    refused("task.template-too-long", "'short'", task=str(short))
    import shutil

    other = Path(shutil.copytree(opt, tmp_path / "other"))
    more = byte_pairs(TEXTS, mask=False)
    more.add_tokens([f"extra{i}" for i in range(40)])
    more.save(str(other / "tokenizer.json"))
    refused("model.tokenizer-mismatch", "'extra39'", model=other)
    shutil.rmtree(other)
    shutil.copytree(roberta, other)
    settings = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps({**settings, "mask_token": "<hole>"}))
    refused("model.no-mask-token", "'sst2'", model=other)
