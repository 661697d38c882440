"""What transformers itself makes of a checkpoint's folder: token ids, and scores for examples of a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from fedspzo.device_runtime.data.chat import USER
from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.model.task import GENERATION, MASKED, SIMILARITY, Task
from fedspzo.export.check.layered import Replaced, load_model, load_stand_ins
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.modules.heads import TEMPERATURE


class Reference:
    """The model of a checkpoint's folder for a task, as transformers or sentence-transformers makes it."""

    def __init__(self, checkpoint: Checkpoint, task: Task) -> None:
        self._checkpoint, self._task = checkpoint, task
        self._factory: Any = {MASKED: AutoModelForMaskedLM, SIMILARITY: AutoModel}.get(task.form, AutoModelForCausalLM)
        self._sentences = task.form == SIMILARITY and checkpoint.is_sentence_model

    @property
    def exists(self) -> bool:
        """Whether transformers has such a model."""
        return type(self._checkpoint.config) in self._factory._model_mapping

    @property
    def versions(self) -> str:
        """The libraries."""
        name = f"transformers {transformers.__version__}"
        if not self._sentences:
            return name
        import sentence_transformers

        return f"sentence-transformers {sentence_transformers.__version__}, {name}"

    def text(self, fields: Mapping[str, str]) -> str:
        """What a model is asked: the task's template, or a dialogue of one turn as transformers renders it."""
        chat = self._task.chat
        if chat is None:
            return self._task.render(fields)
        turn = {"role": USER, "content": fields[self._task.fields[0]]}
        return f"{self._checkpoint.texts.render([turn], asks=True)}{chat.lead}"

    def token_ids(self, texts: Sequence[str], closed: bool = True) -> list[list[int]]:
        """Tokens by the folder's own tokenizer, with those that it puts at a start, and if ``closed`` at an end."""
        if self._sentences:
            encoder, prompt = self._encoder({}), self._prompt
            bare = [text.removeprefix(prompt) for text in texts]
            return [encoder.preprocess([text], prompt=prompt or None)["input_ids"][0].tolist() for text in bare]
        tokenizer = AutoTokenizer.from_pretrained(self._checkpoint.folder)
        if self._task.chat is not None:  # whose template writes the tokens around a text itself
            return [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        end = 0 if closed else _closing(tokenizer)
        return [ids[: len(ids) - end] for ids in (list(tokenizer(text)["input_ids"]) for text in texts)]

    @torch.inference_mode()
    def scores(
        self, store: DataStore, texts: Sequence[str], words: Sequence[int], replaced: Replaced
    ) -> tuple[np.ndarray, ...]:
        """Scores of examples, as a bundle's last stages give them.

        Args:
            texts: the filled-in templates.
            words: token ids of the label words, for forms that have them; their rows are never replaced.
            replaced: weights to take instead of the checkpoint's.

        Returns:
            Logits [examples, labels]; for generation losses [examples] and scores of the next token [examples, tokens].
        """
        ids = torch.from_numpy(store.ids).long()[:, : store.lengths.max()]
        mask = torch.arange(ids.shape[1]) < torch.from_numpy(store.lengths)[:, None]
        ids = torch.where(mask, ids, torch.tensor(self._checkpoint.padding))
        if self._task.form == SIMILARITY:
            vectors, labels = map(nn.functional.normalize, self._vectors(ids, mask, texts, replaced))
            return ((TEMPERATURE * vectors @ labels.T).numpy(),)
        starts, lengths = (torch.from_numpy(array).long()[:, None] for array in (store.starts, store.lengths))
        if self._task.form != GENERATION:
            return (self._logits(ids, mask, starts, replaced, words)[:, 0].numpy(),)
        answers, last = starts + torch.arange(self._task.answer_tokens), lengths - 1
        logits = self._logits(ids, mask, torch.cat([torch.minimum(answers, last), last], dim=1), replaced)
        losses = np.empty(len(ids), np.float32)
        for row, (start, end) in enumerate(zip(store.starts, store.lengths - 1, strict=True)):
            losses[row] = nn.functional.cross_entropy(logits[row, : end - start], ids[row, start + 1 : end + 1])
        return losses, logits[:, -1].numpy()

    def _logits(
        self, ids: Tensor, mask: Tensor, positions: Tensor, replaced: Replaced, words: Sequence[int] | None = None
    ) -> Tensor:
        """Scores of label words, or of all tokens, [texts, positions, words] at some positions [texts, positions]."""
        model = load_model(self._checkpoint, self._factory, replaced, own_head=bool(replaced) and words is not None)
        rows, head = torch.arange(len(ids))[:, None], model.get_output_embeddings()
        wanted = slice(None) if words is None else list(words)
        if head is None:
            return model(input_ids=ids, attention_mask=mask.long()).logits[rows, positions][..., wanted]
        # All tokens' scores at all positions could take more memory than the model.
        head.register_forward_pre_hook(lambda _, inputs: (inputs[0][rows, positions],))
        if words is not None and head.weight.shape[0] == model.get_input_embeddings().weight.shape[0]:
            wanted = slice(None)
            head.forward = lambda hidden: _rows(head, hidden, list(words))  # of a table that stays in its file
        return model(input_ids=ids, attention_mask=mask.long()).logits[..., wanted]

    def _vectors(self, ids: Tensor, mask: Tensor, texts: Sequence[str], replaced: Replaced) -> tuple[Tensor, Tensor]:
        """Vectors of texts, and of the labels' descriptions, which are the original model's."""
        descriptions = [label.text for label in self._task.labels]
        if self._sentences:
            bare = [text.removeprefix(self._prompt) for text in texts]
            found = [self._encoder(replaced).encode(bare), self._encoder({}).encode(descriptions)]
            return torch.from_numpy(found[0]), torch.from_numpy(found[1])
        original = load_model(self._checkpoint, self._factory, {})
        labels = [_mean(original, torch.tensor([ids]), torch.ones(1, len(ids))) for ids in self.token_ids(descriptions)]
        model = load_model(self._checkpoint, self._factory, replaced) if replaced else original
        return _mean(model, ids, mask), torch.cat(labels)

    def _encoder(self, replaced: Replaced) -> Any:
        """What sentence-transformers makes of the folder, whole."""
        from sentence_transformers import SentenceTransformer

        settings = {"dtype": torch.float32}
        encoder: Any = SentenceTransformer(str(self._checkpoint.source), device="cpu", model_kwargs=settings)
        if replaced:
            model, sources = load_stand_ins(self._checkpoint, self._factory)
            for name, parameter in model.named_parameters():
                stored = (sources or {}).get(parameter, "")
                if stored in replaced:
                    encoder[0].auto_model.get_parameter(name).data = torch.from_numpy(replaced[stored]())
        return encoder

    @property
    def _prompt(self) -> str:
        """What sentence-transformers puts in front of texts; the task's template has it as well."""
        return self._checkpoint.sentence.prompt if self._checkpoint.sentence else ""


def _closing(tokenizer: Any) -> int:
    """How many tokens the tokenizer puts at an end."""
    whole, bare = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    opening = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    return len(whole) - opening - len(bare)


def _rows(head: nn.Linear, hidden: Tensor, words: list[int]) -> Tensor:
    """Scores of some tokens, [..., words]."""
    return nn.functional.linear(hidden, head.weight[words], None if head.bias is None else head.bias[words])


def _mean(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Means of the last activations over the tokens that count, [texts, width]."""
    hidden = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
