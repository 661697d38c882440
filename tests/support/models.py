"""Small models of every family with random weights, from their transformers configs, with tokenizers of their kind."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from _pytest.mark.structures import ParameterSet
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from fedspzo.device_runtime.data.sources import Example
from fedspzo.device_runtime.data.store import DataStore, tokenise
from fedspzo.device_runtime.model.bundle import Bundle

TEXTS = [
    "the film was good and the music was fine It was great.",
    "a bad play with a dull end It was terrible.",
    "Does this mean that it is true? Yes or No?\nYes\nNo\nMaybe\n",
    "Title: Rome\nContext: Rome is a city.\nQuestion: what is Rome?\nAnswer: a city\n",
    "one two three four five six seven",
]
_ENCODER = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 66,
}  # fmt: skip
_DECODER = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
}  # fmt: skip
_OPT = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 48, "word_embed_proj_dim": 32,
    "max_position_embeddings": 64,
}  # fmt: skip
_LLAMA3_SCALING = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
_TWO_LAYERS = {**_DECODER, "num_hidden_layers": 2}
_WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5}

#: Name → (model type, what its config says beyond the defaults).
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", _ENCODER),
    "roberta": ("roberta", {**_ENCODER, "type_vocab_size": 1, "pad_token_id": 1}),
    "xlm-roberta": ("xlm-roberta", {**_ENCODER, "type_vocab_size": 1, "pad_token_id": 1}),
    "opt": ("opt", _OPT),
    "opt-350m": ("opt", {**_OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "eos_token_id": 1}),
    "llama-3.2": ("llama", {**_DECODER, "rope_parameters": _LLAMA3_SCALING, "tie_word_embeddings": True}),
    "llama-untied": ("llama", {**_DECODER, "tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {**_DECODER, "sliding_window": 5}),
    "qwen2": ("qwen2", {**_DECODER, "tie_word_embeddings": True}),
    "qwen3": (
        "qwen3",
        {
            **_DECODER, "head_dim": 12, "use_sliding_window": True, "sliding_window": 6,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
    ),
    "gemma": ("gemma", {**_TWO_LAYERS, "head_dim": 12}),
    "gemma2": (
        "gemma2",
        {
            **_TWO_LAYERS, **_WINDOWS, "head_dim": 12, "query_pre_attn_scalar": 9, "attn_logit_softcapping": 4.0,
            "final_logit_softcapping": 6.0,
        },
    ),
    "gemma3": ("gemma3_text", {**_TWO_LAYERS, **_WINDOWS, "head_dim": 12, "query_pre_attn_scalar": 9}),
    "phi3": (
        "phi3",
        {
            **_TWO_LAYERS, "original_max_position_embeddings": 48,
            "rope_parameters": {
                "rope_type": "longrope", "partial_rotary_factor": 0.5, "rope_theta": 10000.0,
                "short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0],
            },
        },
    ),
    "smollm3": ("smollm3", {**_TWO_LAYERS, "no_rope_layers": [1, 0]}),
    "granite": (
        "granite",
        {
            **_TWO_LAYERS, "embedding_multiplier": 3.0, "residual_multiplier": 0.6, "attention_multiplier": 0.2,
            "logits_scaling": 2.0,
        },
    ),
    "olmo": ("olmo", {**_TWO_LAYERS, "clip_qkv": 1.5}),
    "olmo2": ("olmo2", _TWO_LAYERS),
    "olmo3": ("olmo3", {**_TWO_LAYERS, **_WINDOWS}),
    "gpt-neox": ("gpt_neox", {name: value for name, value in _TWO_LAYERS.items() if name != "num_key_value_heads"}),
}  # fmt: skip
#: Encoders, with the same layout; each is asked by its masked-language-model head.
_ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "distilbert": (
        "distilbert", {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 66},
    ),
    "electra": ("electra", {**_ENCODER, "embedding_size": 16}),
    "mpnet": ("mpnet", {**_ENCODER, "pad_token_id": 1}),
    "deberta-v3": (
        "deberta-v2",
        {
            **_ENCODER, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8,
            "norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False,
        },
    ),
    "modernbert": ("modernbert", {**_ENCODER, "local_attention": 6, "pad_token_id": 1}),
}  # fmt: skip
MODELS |= _ENCODERS
ENCODERS = ("bert", "roberta", "xlm-roberta", *_ENCODERS)


#: What phones run.
ENGINES = ("litert", "executorch")
#: Models whose layers differ most.
MOST_DIFFERENT = ("opt", "gpt2", "phi3", "deberta-v3", "modernbert")


def cases(
    variants: Mapping[str, Sequence[str]],
    quick: Mapping[tuple[str, str], Sequence[str]],
    slow: Mapping[str, Sequence[str]],
) -> list[ParameterSet]:
    """(model, variant, engines) to test: those of the quick suite, what the slow one has more, and the matrix the rest.

    The slow suite has one variant of some models, in turn, on some engines: to lower a layer takes seconds.
    """
    found = []
    for name, kinds in variants.items():
        turn = kinds[list(MODELS).index(name) % len(kinds)]
        for variant in kinds:
            more = slow.get(name, ()) if variant == turn else ()
            suites = ((quick.get((name, variant), ()), ()), (more, pytest.mark.slow), (ENGINES, pytest.mark.matrix))
            tested = 0
            for engines, marks in suites:
                if len(engines) > tested:
                    tested = len(engines)
                    alone = "" if tested == len(ENGINES) else f"-{engines[0]}"
                    found.append(pytest.param(name, variant, engines, id=f"{name}-{variant}{alone}", marks=marks))
    return found


#: Model types whose tokenizers are of word pieces.
_WORD_PIECES = ("bert", "distilbert", "electra")


def wide(name: str) -> dict[str, float]:
    """Changes to a model's config that make its matrices wide enough to quantise."""
    kind = MODELS[name][0]
    if kind == "gpt2":
        return {"n_embd": 64}
    if kind == "distilbert":
        return {"dim": 64, "hidden_dim": 96}
    if kind == "opt":
        return {"hidden_size": 64, "ffn_dim": 96, "word_embed_proj_dim": 32 if name == "opt-350m" else 64}
    # Phi-3's factors are for heads of this width. OLMo's clip is wider too: where both ends of a range are cut, its
    # zero in 8 bits lies between two codes, and each engine may take either.
    own = {"phi3": {"num_attention_heads": 8}, "olmo": {"clip_qkv": 8.0}}.get(kind, {})
    head = {"head_dim": 16} if "head_dim" in MODELS[name][1] else {}
    return {"hidden_size": 64, "intermediate_size": 96, **own, **head}


def make_checkpoint(folder: Path, name: str, **changes: Any) -> Path:
    """Save a model and its tokenizer."""
    kind, settings = MODELS[name]
    pieces = kind in _WORD_PIECES
    tokenizer = _word_pieces() if pieces else byte_pairs(TEXTS, mask=name in ENCODERS)
    vocabulary = tokenizer.get_vocab_size() + (kind == "qwen2")  # whose class in transformers adds a token
    config = AutoConfig.for_model(kind, **{**settings, "vocab_size": vocabulary, **changes})
    torch.manual_seed(0)
    factory = AutoModelForMaskedLM if name in ENCODERS else AutoModelForCausalLM
    model = factory.from_config(config, dtype=torch.float32)
    with torch.no_grad():  # larger than the usual start, so that every part matters to the loss
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter) + (parameter.ndim == 1) * parameter.mean())
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder, mask="[MASK]" if pieces else "<mask>" if name in ENCODERS else None)
    return folder


def save_tokenizer(tokenizer: Tokenizer, folder: Path, mask: str | None) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **({"mask_token": mask} if mask else {})}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def byte_pairs(texts: list[str], mask: bool) -> Tokenizer:
    """A byte-level tokenizer as RoBERTa, OPT, LLaMA 3 and Qwen have one; with a mask it also ends each text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", *(["<mask>"] if mask else [])]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts * 3, trainer)
    end = " </s>" if mask else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<s> $A{end}", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def _word_pieces() -> Tokenizer:
    words = sorted({word.strip(".,?:\n").lower() for text in TEXTS for word in text.split()})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "?", ":", *words]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(tokens[:5])
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def five_examples(bundle: Bundle) -> DataStore:
    """A few sentences for the task sst2."""
    texts = ("the film was good", "a dull end", "one two three", "bad music play", "good")
    return tokenise(bundle, [Example({"sentence": text}, i % 2) for i, text in enumerate(texts)])
