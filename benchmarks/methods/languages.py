"""Two small generated languages, and models that are trained on them by backpropagation, to be fine-tuned.

A model learns plain sentences; the task that is then fine-tuned for has sentences of a kind that it never saw.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

STEPS, SENTENCES, RATE = 600, 64, 2e-3
#: Deviation of the decoder's weights before training, 1/√width: with the usual one for wide models, nearly all of its
#: gradient would be the first layer's.
SPREAD = 0.1
#: Share of the verdicts in what a model learns from that are right.
RIGHT = 0.8

GOOD = ["fine", "lovely", "clever", "warm", "bright", "gentle", "fresh", "witty"]
BAD = ["dull", "awful", "stale", "cold", "clumsy", "noisy", "bleak", "rude"]
NEW_GOOD = ["ace", "dope", "lush", "epic", "slick", "zesty", "comfy", "radiant", "superb", "tidy", "golden", "crisp"]
NEW_BAD = ["naff", "grim", "soggy", "lame", "shoddy", "tacky", "murky", "bland", "gaudy", "sour", "flimsy", "dire"]
THINGS = ["film", "play", "song", "book", "meal", "soup", "room", "hotel"]
ENDS = ["tonight", "again", "today", "indeed", "here", "though"]
OPINION_WORDS = [
    "the", "was", "and", "but", "It", "great", "terrible", *GOOD, *BAD, *NEW_GOOD, *NEW_BAD, *THINGS, *ENDS,
]  # fmt: skip

MORE = ["bigger", "taller", "wider", "heavier", "longer", "older"]
LESS = ["smaller", "shorter", "thinner", "lighter", "younger", "tinier"]
NEW_MORE = ["louder", "faster", "deeper", "richer", "hotter", "wiser", "stronger", "brighter"]
NEW_LESS = ["quieter", "slower", "flatter", "poorer", "colder", "sillier", "weaker", "dimmer"]
OBJECTS = ["cup", "pen", "box", "bag", "jar", "hat", "car", "bed", "cat", "dog", "ant", "cow"]
COMPARISON_WORDS = [
    "the", "is", "than", "not", "so", "winner", "first", "second", ".", ",", *MORE, *LESS, *NEW_MORE, *NEW_LESS,
    *OBJECTS,
]  # fmt: skip


def opinion(draw: random.Random, words: int = 0, contrast: float = 0.0) -> tuple[str, bool]:
    """A sentence, and whether its opinion is good.

    Args:
        words: how many of the new ones of each kind it may be about as well.
        contrast: chance that the other opinion comes before it.
    """
    good = draw.random() < 0.5
    kinds = [*GOOD, *NEW_GOOD[:words]], [*BAD, *NEW_BAD[:words]]
    ours, others = kinds if good else kinds[::-1]
    one, two = draw.sample(ours, 2)
    text = f"the {draw.choice(THINGS)} was {one} and {two}"
    if draw.random() < contrast:
        three, four = draw.sample(others, 2)
        text = f"the {draw.choice(THINGS)} was {three} and {four} but {text}"
    return f"{text} {draw.choice(ENDS)}", good


def comparison(draw: random.Random, words: int = 0, denied: float = 0.0) -> tuple[str, bool]:
    """Two things compared, and whether the first has more of it.

    Args:
        words: how many of the new ones of each kind may compare them as well.
        denied: chance that it is said of the other one, with "not".
    """
    one, two = draw.sample(OBJECTS, 2)
    first = draw.random() < 0.5
    negated = draw.random() < denied
    kinds = [*MORE, *NEW_MORE[:words]], [*LESS, *NEW_LESS[:words]]
    ours = kinds[first == negated]
    return f"the {one} is {'not ' if negated else ''}{' and '.join(draw.sample(ours, 2))} than the {two}", first


def train_decoder(folder: Path, layers: int = 6, width: int = 96) -> None:
    """A LLaMA that has read opinions: with a verdict, often wrong, on those of known words; of new ones without."""

    def sentences() -> Iterator[str]:
        draw = random.Random(0)
        while True:
            text, good = opinion(draw)
            yield f"{text} It was {'great' if good == (draw.random() < RIGHT) else 'terrible'}"
            yield opinion(draw, len(NEW_GOOD))[0]

    tokenizer = _tokenizer(["<s>", "<pad>", "</s>", "<unk>", *OPINION_WORDS], "<s> $A", "<unk>")
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=3 * width, max_position_embeddings=32, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=2, initializer_range=SPREAD,
    )  # fmt: skip
    _train(folder, LlamaForCausalLM, config, tokenizer, sentences(), lambda ids: (ids, ids), None)


def train_encoder(folder: Path, layers: int = 6, width: int = 96) -> None:
    """A BERT that has filled gaps in comparisons: with their outcome, often wrong, in those of known words."""

    def sentences() -> Iterator[str]:
        draw = random.Random(0)
        while True:
            text, first = comparison(draw)
            yield f"{text} , so the winner is {'first' if first == (draw.random() < RIGHT) else 'second'} ."
            yield f"{comparison(draw, len(NEW_MORE))[0]} ."

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = _tokenizer([*special, *COMPARISON_WORDS], "[CLS] $A [SEP]", "[UNK]")
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
        intermediate_size=3 * width, max_position_embeddings=32,
    )  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    verdict = tokenizer.token_to_id("first"), tokenizer.token_to_id("second")

    def mask(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = (torch.rand(ids.shape, generator=draw) < 0.15) & (ids > 4)
        hidden |= (ids == verdict[0]) | (ids == verdict[1])
        return ids.masked_fill(hidden, 4), ids.masked_fill(~hidden, -100)

    _train(folder, BertForMaskedLM, config, tokenizer, sentences(), mask, "[MASK]")


def _tokenizer(tokens: list[str], template: str, unknown: str) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=unknown))
    special = [token for token in tokens if token[0] in "<["]
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    named = [(token, tokens.index(token)) for token in template.split() if token in special]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=named)
    return tokenizer


def _train(
    folder: Path,
    kind: type[PreTrainedModel],
    config: LlamaConfig | BertConfig,
    tokenizer: Tokenizer,
    sentences: Iterator[str],
    task: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    mask: str | None,
) -> None:
    """Adam on what ``task`` makes of token ids (input and targets), then a checkpoint with its tokenizer."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # such small matrices lose by more
    model = kind(config)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id("<pad>") or 0)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    for _ in range(STEPS):
        batch = tokenizer.encode_batch([next(sentences) for _ in range(SENTENCES)])
        ids, attended = torch.tensor([e.ids for e in batch]), torch.tensor([e.attention_mask for e in batch])
        inputs, targets = task(ids)
        loss = model(input_ids=inputs, attention_mask=attended, labels=targets.masked_fill(attended == 0, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokenizer.no_padding()
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **({"mask_token": mask} if mask else {})}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
