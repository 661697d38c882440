"""A small generated language with opinions in it, and a decoder that is trained on it by backpropagation."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from models import save_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM

GOOD = ["fine", "lovely", "clever", "warm", "bright", "gentle", "fresh", "witty"]
BAD = ["dull", "awful", "stale", "cold", "clumsy", "noisy", "bleak", "rude"]
THINGS = ["film", "play", "song", "book", "meal", "soup", "room", "hotel"]
ENDS = ["tonight", "again", "today", "indeed", "here", "though"]
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


def train_decoder(folder: Path, steps: int = 500, seed: int = 0, width: int = 64) -> float:
    """Train a two-layer LLaMA by Adam on the language and save it with its tokenizer; its loss at the end."""
    words = ["the", "was", "and", "but", "It", "great", "terrible", *GOOD, *BAD, *THINGS, *ENDS]
    tokens = [*SPECIAL, *words]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokens), hidden_size=width, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=2 * width, max_position_embeddings=32, tie_word_embeddings=True, bos_token_id=0,
        eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    tokenizer.enable_padding(pad_id=1, pad_token="<pad>")
    draw = random.Random(seed)
    loss = torch.tensor(0.0)
    for _ in range(steps):
        batch = tokenizer.encode_batch([text_of_the_language(draw) for _ in range(64)])
        ids, mask = torch.tensor([e.ids for e in batch]), torch.tensor([e.attention_mask for e in batch])
        labels = ids.masked_fill(mask == 0, -100)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokenizer.no_padding()
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder, None)
    return float(loss.detach())
