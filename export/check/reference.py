"""What transformers itself makes of a checkpoint's folder: token ids, and scores for examples of a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.model.task import GENERATION, MASKED, SIMILARITY, Task
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.modules.heads import TEMPERATURE
from fedspzo.export.quiet import quiet

#: The list of a sentence encoder's modules, which sentence-transformers reads and transformers does not.
MODULES = "modules.json"


@dataclass(frozen=True, eq=False)
class Scores:
    """What a model says of some examples.

    Attributes:
        names: what the rows are.
        values: float32, an array for each row.
    """

    values: tuple[np.ndarray, ...]


def has_reference(checkpoint: Checkpoint, form: str) -> bool:
    """Whether transformers has a model of the checkpoint's type for a form of task."""
    return type(checkpoint.config) in _factory(form)._model_mapping


def versions(checkpoint: Checkpoint, form: str) -> str:
    """What is compared with, for the manifest."""
    if is_sentence_encoder(checkpoint, form):
        import sentence_transformers

        return f"sentence-transformers {sentence_transformers.__version__}, transformers {transformers.__version__}"
    return f"transformers {transformers.__version__}"


def is_sentence_encoder(checkpoint: Checkpoint, form: str) -> bool:
    """Whether a task's scores are sentence-transformers' to say."""
    return form == SIMILARITY and (checkpoint.folder / MODULES).is_file()


def token_ids(checkpoint: Checkpoint, texts: Sequence[str], closed: bool) -> list[list[int]]:
    """Tokens by the folder's own tokenizer.

    Args:
        closed: whether to keep what the tokenizer puts at a text's end.
    """
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
        encoded = [list(tokenizer(text)["input_ids"]) for text in texts]
        end = 0 if closed else len(_closing(tokenizer))
    return [ids[: len(ids) - end] for ids in encoded]


def _closing(tokenizer: Any) -> list[int]:
    """The tokens that the tokenizer puts at an end."""
    whole, bare = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    opening = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    return list(whole[opening + len(bare) :])


@torch.inference_mode()
def score(checkpoint: Checkpoint, task: Task, store: DataStore, words: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Scores of examples, as the bundle's stages give them.

    Args:
        words: token ids of the label words, for forms that have them.

    Returns:
        Logits [examples, labels]; for generation losses [examples] and scores of the next token [examples, tokens].
    """
    ids = torch.from_numpy(store.ids).long()[:, : store.lengths.max()]
    mask = torch.arange(ids.shape[1]) < torch.from_numpy(store.lengths)[:, None]
    ids = torch.where(mask, ids, torch.tensor(checkpoint.padding))
    with quiet():
        if task.form == SIMILARITY:
            texts, labels = _embed(checkpoint, task, ids, mask)
            return (TEMPERATURE * texts @ labels.T,)
        model = _factory(task.form).from_pretrained(checkpoint.folder, dtype=torch.float32).eval()
        logits = model(input_ids=ids, attention_mask=mask.long()).logits
    if task.form != GENERATION:
        at = logits[torch.arange(len(ids)), torch.from_numpy(store.starts).long()]
        return (np.asarray(at[:, list(words)].numpy()),)
    losses = np.empty(len(ids), np.float32)
    for row, (start, length) in enumerate(zip(store.starts, store.lengths, strict=True)):
        losses[row] = torch.nn.functional.cross_entropy(logits[row, start : length - 1], ids[row, start + 1 : length])
    last = logits[torch.arange(len(ids)), torch.from_numpy(store.lengths).long() - 1]
    return losses, np.asarray(last.numpy())


def _factory(form: str) -> Any:
    return {MASKED: AutoModelForMaskedLM, SIMILARITY: AutoModel}.get(form, AutoModelForCausalLM)


def _embed(checkpoint: Checkpoint, task: Task, ids: torch.Tensor, mask: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of texts and of the labels' descriptions."""
    descriptions = [label.text for label in task.labels]
    if is_sentence_encoder(checkpoint, task.form):
        from sentence_transformers import SentenceTransformer

        encoder = SentenceTransformer(str(checkpoint.folder), device="cpu", model_kwargs={"dtype": torch.float32})
        labels = encoder.encode(descriptions, convert_to_tensor=True)
        texts = encoder({"input_ids": ids, "attention_mask": mask.long()})["sentence_embedding"]
    else:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
        model = AutoModel.from_pretrained(checkpoint.folder, dtype=torch.float32).eval()
        labels = torch.stack([_mean(model, torch.tensor([tokenizer(text)["input_ids"]]))[0] for text in descriptions])
        texts = _mean(model, ids, mask)
    normalize = torch.nn.functional.normalize
    return normalize(texts).numpy(), normalize(labels).numpy()


def _mean(model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean of the last activations over the tokens that count."""
    mask = torch.ones_like(ids) if mask is None else mask.long()
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
