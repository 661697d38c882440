"""Tokenizers with the parts that those of model families have, trained on generated texts in many scripts."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from writing import texts

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@cache
def _corpus() -> list[str]:
    return texts(3000, seed=1)


def _common() -> list[str]:
    """The corpus without rare characters: these stay unknown to what is trained on it."""
    counts = Counter("".join(_corpus()))
    rare = {ord(char): None for char, count in counts.items() if count < 8}
    return [text.translate(rare) for text in _corpus()]


def _trained(tokenizer: Tokenizer, trainer: Any, corpus: Iterable[str] | None = None) -> Tokenizer:
    tokenizer.train_from_iterator(_corpus() if corpus is None else corpus, trainer)
    return tokenizer


def _pairs(tokenizer: Tokenizer, special: Iterable[str | AddedToken], **settings: Any) -> Tokenizer:
    trainer = trainers.BpeTrainer(vocab_size=3000, special_tokens=list(special), show_progress=False, **settings)
    return _trained(tokenizer, trainer)


def _template(tokenizer: Tokenizer, single: str) -> Any:
    special = [(token, tokenizer.token_to_id(token)) for token in single.split() if token != "$A"]
    return processors.TemplateProcessing(single=single, special_tokens=special)


def bert(lowercase: bool = True, strip_accents: bool | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    _trained(tokenizer, trainers.WordPieceTrainer(vocab_size=4000, special_tokens=special, show_progress=False))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def _byte_level(split: Any, special: Iterable[str | AddedToken], normalizer: Any = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    return _pairs(tokenizer, special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def gpt2(trim_offsets: bool = False) -> Tokenizer:
    tokenizer = _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), ["<|endoftext|>"])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    return tokenizer


def roberta() -> Tokenizer:
    mask = AddedToken("<mask>", lstrip=True, normalized=False, special=True)
    special = ["<s>", "<pad>", "</s>", "<unk>", mask]
    tokenizer = _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), special)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


def opt() -> Tokenizer:
    tokenizer = _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True), ["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), _template(tokenizer, "</s> $A")])
    return tokenizer


def _split(expression: str) -> Any:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(expression), "isolated"), byte_level])


def llama3() -> Tokenizer:
    tokenizer = _byte_level(_split(LLAMA3), ["<|begin_of_text|>", "<|eot_id|>"])
    tokenizer.model.ignore_merges = True
    trims = processors.ByteLevel(trim_offsets=False)
    tokenizer.post_processor = processors.Sequence([trims, _template(tokenizer, "<|begin_of_text|> $A")])
    return tokenizer


def qwen() -> Tokenizer:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", AddedToken("<think>", normalized=False)]
    tokenizer = _byte_level(_split(QWEN), special, normalizers.NFC())
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def tekken() -> Tokenizer:
    tokenizer = _byte_level(_split(TEKKEN), ["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = _template(tokenizer, "<s> $A")
    return tokenizer


def smollm() -> Tokenizer:
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _byte_level(pre_tokenizers.Sequence([digits, byte_level]), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])


def llama2(legacy: bool = True) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    codes = [f"<0x{byte:02X}>" for byte in range(256)]
    _pairs(tokenizer, ["<unk>", "<s>", "</s>", *codes], limit_alphabet=400, max_token_length=12)
    saved = models.BPE.__getstate__(tokenizer.model)  # bytes are in the vocabulary, and no added tokens
    added = [AddedToken(token, normalized=False, special=True) for token in ("<unk>", "<s>", "</s>")]
    model = models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    model.__setstate__(saved)
    trained, tokenizer = tokenizer, Tokenizer(model)
    tokenizer.add_special_tokens(added)
    tokenizer.normalizer = trained.normalizer
    if not legacy:
        tokenizer.pre_tokenizer = trained.pre_tokenizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    tokenizer.post_processor = _template(tokenizer, "<s> $A")
    return tokenizer


def charsmap(rule: str) -> bytes:
    """SentencePiece's table of normalised forms."""
    file, proto = io.BytesIO(), sentencepiece_model_pb2.ModelProto()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b"] * 9), model_writer=file, vocab_size=6, model_type="char", minloglevel=2,
        normalization_rule_name=rule, hard_vocab_limit=False,
    )  # fmt: skip
    proto.ParseFromString(file.getvalue())
    return bytes(proto.normalizer_spec.precompiled_charsmap)


def xlm_roberta() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Precompiled(charsmap("nmt_nfkc")), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    marks = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), marks])
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True, normalized=True, special=True)]
    trainer = trainers.UnigramTrainer(vocab_size=4000, special_tokens=special, unk_token="<unk>", show_progress=False)
    _trained(tokenizer, trainer, _common())
    tokenizer.post_processor = _template(tokenizer, "<s> $A </s>")
    return tokenizer


def albert() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace("``", '"'), normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(),
            normalizers.Precompiled(charsmap("nmt_nfkc_cf")), normalizers.Strip(),
        ]
    )  # fmt: skip
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=3000, special_tokens=["<unk>", "[CLS]", "[SEP]", "[MASK]"], unk_token="<unk>", show_progress=False
    )
    _trained(tokenizer, trainer, _common())
    tokenizer.add_tokens([AddedToken("word", single_word=True), AddedToken("Ünit", rstrip=True)])
    tokenizer.post_processor = _template(tokenizer, "[CLS] $A [SEP]")
    return tokenizer


def words() -> Tokenizer:
    """No family's: the parts that are left."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation("merged_with_previous"), pre_tokenizers.Digits(),
            pre_tokenizers.Split("e", "merged_with_next"), pre_tokenizers.Split(Regex("[aou]+"), "contiguous"),
            pre_tokenizers.Split(Regex(r"\p{L}+"), "removed", invert=True),
        ]
    )  # fmt: skip
    _trained(tokenizer, trainers.WordLevelTrainer(vocab_size=900, special_tokens=["<unk>", "<s>"], show_progress=False))
    return tokenizer


def characters(normalizer: Any) -> Tokenizer:
    """Each character that a normalizer leaves is a token, whose offsets tell what it stands for."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s|\S"), "isolated")
    return tokenizer


#: Name → what makes the tokenizer.
PIPELINES: dict[str, Callable[[], Tokenizer]] = {
    "bert": bert,
    "bert-cased": lambda: bert(lowercase=False),
    "bert-accents": lambda: bert(strip_accents=False),
    "gpt2": gpt2,
    "gpt2-trimmed": lambda: gpt2(trim_offsets=True),
    "roberta": roberta,
    "opt": opt,
    "llama3": llama3,
    "qwen": qwen,
    "tekken": tekken,
    "smollm": smollm,
    "llama2": llama2,
    "llama2-metaspace": lambda: llama2(legacy=False),
    "xlm-roberta": xlm_roberta,
    "albert": albert,
    "words": words,
}
