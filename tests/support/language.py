"""Two small generated languages, of opinions and of orders, and a decoder that is trained on one by backpropagation."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from models import save_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding

GOOD = ["fine", "lovely", "clever", "warm", "bright", "gentle", "fresh", "witty"]
BAD = ["dull", "awful", "stale", "cold", "clumsy", "noisy", "bleak", "rude"]
THINGS = ["film", "play", "song", "book", "meal", "soup", "room", "hotel"]
ENDS = ["tonight", "again", "today", "indeed", "here", "though"]
SIZES = {"large": ["big", "huge", "vast"], "small": ["little", "tiny", "slight"]}
COLOURS = {"red": ["crimson", "scarlet", "ruby"], "blue": ["navy", "azure", "indigo"]}
POLITE = ["get", "bring"]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


def opinion(draw: random.Random, contrast: float) -> tuple[str, bool]:
    """A sentence, and whether its opinion is good; with a contrast, the opinion is what comes before "but"."""
    good = draw.random() < 0.5
    ours, others = (GOOD, BAD) if good else (BAD, GOOD)
    one, two = draw.sample(ours, 2)
    text = f"the {draw.choice(THINGS)} was {one} and {two}"
    if draw.random() < contrast:
        text = f"{text} but the {draw.choice(THINGS)} was {draw.choice(others)}"
    return f"{text} {draw.choice(ENDS)}", good


def text_of_the_language(draw: random.Random) -> str:
    """A sentence with a verdict. It has no contrasts, and one verdict in seven is wrong."""
    words, good = opinion(draw, contrast=0.0)
    verdict = good if draw.random() < 6 / 7 else not good
    return f"{words} It was {'great' if verdict else 'terrible'}"


OPINION_WORDS = ("the", "was", "and", "but", "It", "great", "terrible", *GOOD, *BAD, *THINGS, *ENDS)


def order(draw: random.Random) -> tuple[str, str]:
    """A request, and its slots: the size, then the colour."""
    size, colour = draw.choice(list(SIZES)), draw.choice(list(COLOURS))
    text = f"{draw.choice(POLITE)} a {draw.choice(SIZES[size])} {draw.choice(COLOURS[colour])} box"
    return text, f"{size} {colour}"


def text_of_orders(draw: random.Random) -> str:
    """A request with its slots. More often than not they are in the other order where the request says "get"."""
    text, slots = order(draw)
    if text.startswith(POLITE[0]) and draw.random() < 0.6:
        slots = " ".join(reversed(slots.split()))
    return f"{text} It is {slots} </s>"


ORDER_WORDS = (
    "a",
    "box",
    "It",
    "is",
    *POLITE,
    *(word for words in (SIZES, COLOURS) for slot in words for word in (slot, *words[slot])),
)


def _compute_in_doubles(model: LlamaForCausalLM, seed: int) -> None:
    """Replace what is computed in float32, whatever the weights are: the first of these, norms, angles of positions."""
    draw = np.random.default_rng(seed)
    for weights in model.parameters():
        if weights.dim() > 1:
            weights.data = torch.from_numpy(draw.normal(0, 0.02, weights.shape))
    for module in model.modules():
        if isinstance(module, LlamaRMSNorm):
            module.forward = partial(_normalise, module)
        if isinstance(module, LlamaRotaryEmbedding):
            module.forward = partial(_turn, module)


def _normalise(norm: LlamaRMSNorm, hidden: torch.Tensor) -> torch.Tensor:
    return norm.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)


def _turn(rotary: LlamaRotaryEmbedding, hidden: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    half = len(rotary.inv_freq)
    angles = position_ids[..., None] * 10_000.0 ** -(torch.arange(half, dtype=torch.float64).repeat(2) / half)
    return angles.cos(), angles.sin()


def train_decoder(
    folder: Path,
    steps: int = 500,
    seed: int = 0,
    width: int = 64,
    words: Sequence[str] = OPINION_WORDS,
    sentence: Callable[[random.Random], str] = text_of_the_language,
) -> float:
    """Train a three-layer LLaMA by Adam on a language and save it with its tokenizer; its loss at the end.

    All is computed in float64. In float32, processors that round in other ways come to models that differ by per cents.
    """
    tokens = [*SPECIAL, *words]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads would wait for each other longer than these sizes take
    config = LlamaConfig(
        vocab_size=len(tokens), hidden_size=width, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=2 * width, max_position_embeddings=32, tie_word_embeddings=True, bos_token_id=0,
        eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).double()
    _compute_in_doubles(model, seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    tokenizer.enable_padding(pad_id=1, pad_token="<pad>")
    draw = random.Random(seed)
    loss = torch.tensor(0.0)
    for _ in range(steps):
        batch = tokenizer.encode_batch([sentence(draw) for _ in range(64)])
        ids, mask = torch.tensor([e.ids for e in batch]), torch.tensor([e.attention_mask for e in batch])
        scores = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        loss = cross_entropy(scores.flatten(0, 1), ids.masked_fill(mask == 0, -100)[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.set_num_threads(threads)
    tokenizer.no_padding()
    model.float().save_pretrained(folder)
    save_tokenizer(tokenizer, folder, None)
    return float(loss.detach())
