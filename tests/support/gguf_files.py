"""Small files in llama.cpp's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from models import TEXTS, byte_pairs

HIDDEN, INNER, LAYERS, HEADS, KEY_HEADS = 64, 96, 2, 4, 2


def write_gguf(file: Path, architecture: str = "llama", **extra: Any) -> Path:
    """A decoder of two layers with blocks of four and eight bits.

    Args:
        extra: keys to add (``rope.scaling.type`` as ``rope__scaling__type``), or tensors by their names.
    """
    tokenizer = json.loads(byte_pairs(TEXTS, mask=False).to_str())["model"]
    names = {"<s>": "<|im_start|>", "</s>": "<|im_end|>", "<unk>": "<|endoftext|>"}
    tokens = [names.get(token, token) for token in sorted(tokenizer["vocab"], key=tokenizer["vocab"].get)]
    tokens += [f"<pad{index}>" for index in range(-len(tokens) % 32)]
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    kinds = gguf.TokenType
    writer.add_token_types([kinds.CONTROL if token[0] == "<" and token[1:] else kinds.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    random = np.random.default_rng(0)

    def matrix(name: str, out: int, width: int, kind: gguf.GGMLQuantizationType) -> None:
        values = (0.3 * random.standard_normal((out, width))).astype(np.float32)
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    def norm(name: str) -> None:
        writer.add_tensor(name, (1 + 0.1 * random.standard_normal(HIDDEN)).astype(np.float32))

    eight, four = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_1
    matrix("token_embd.weight", len(tokens), HIDDEN, eight)
    for layer in range(LAYERS):
        for part, out, width in (
            ("attn_q", HIDDEN, HIDDEN), ("attn_k", HIDDEN // 2, HIDDEN), ("attn_v", HIDDEN // 2, HIDDEN),
            ("attn_output", HIDDEN, HIDDEN), ("ffn_gate", INNER, HIDDEN), ("ffn_up", INNER, HIDDEN),
            ("ffn_down", HIDDEN, INNER),
        ):  # fmt: skip
            matrix(f"blk.{layer}.{part}.weight", out, width, four)
        norm(f"blk.{layer}.attn_norm.weight")
        norm(f"blk.{layer}.ffn_norm.weight")
    norm("output_norm.weight")
    for name, value in extra.items():
        if isinstance(value, np.ndarray):
            writer.add_tensor(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_uint16(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
