"""Model families: how a Hugging Face architecture is cut into stages. One module each, found by its place here."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from transformers import PretrainedConfig

from fedspzo.device_runtime.errors import ExportError
from fedspzo.device_runtime.model.task import CAUSAL, GENERATION, MASKED, SIMILARITY
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.modules.heads import PLAIN, Scoring
from fedspzo.export.modules.stage_module import StageModule
from fedspzo.export.sentence import Pooling
from fedspzo.export.supported import unsupported


@dataclass(frozen=True)
class Stage:
    """A stage of a model.

    Attributes:
        name: the stage's name.
        graph: name of its graph, which stages whose modules compute the same share.
        module: what it computes.
        prefix: what stands before the names of the module's tensors in the checkpoint.
        shared: name in the module → in the checkpoint, of tensors that several stages take; they are among the
            architecture's ``tables``.
    """

    name: str
    graph: str
    module: StageModule
    prefix: str
    shared: Mapping[str, str] = field(default_factory=dict)

    def full_name(self, name: str) -> str:
        """The checkpoint's name of a tensor of the module."""
        return self.shared.get(name, self.prefix + name)

    @property
    def tensors(self) -> tuple[str, ...]:
        """The checkpoint's names of its tensors."""
        return tuple(map(self.full_name, self.module.tensors))


@dataclass(frozen=True)
class Architecture:
    """A model as a family describes it, for one length of text.

    Attributes:
        forms: the forms of tasks that it can do, the best first.
        limit: most tokens that it takes.
        embedding: the checkpoint's name of the token table.
        stages: its stages up to the head, in order.
        final: what stands between the last of them and the scores of tokens (a norm, a transform); None when the
            checkpoint has no language-model head.
        output: name of the table whose rows score tokens.
        output_bias: name of its bias.
        tables: names of tensors that are looked up by position or kind; they stay frozen, as the token table does.
        conv1d: whether matrices are stored [in, out] (GPT-2's Conv1D), not [out, in].
        ignored: endings of tensor names that the network does not need.
        pooling: how the similarity form makes a vector of a text's last hidden states.
        unused: names of the model's parts that no text goes through, such as ``vision_tower``.
        scoring: what the model does to the scores of tokens.
    """

    forms: tuple[str, ...]
    limit: int
    embedding: str
    stages: tuple[Stage, ...]
    final: Stage | None
    output: str
    output_bias: str = ""
    tables: Collection[str] = ()
    conv1d: bool = False
    ignored: tuple[str, ...] = ()
    pooling: Pooling = field(default_factory=Pooling)
    unused: tuple[str, ...] = ()
    scoring: Scoring = PLAIN

    @property
    def closing(self) -> Stage | None:
        """The last norm of a decoder, which its last hidden states have gone through; encoders have none."""
        return self.final if CAUSAL in self.forms else None


#: What encoders and decoders can be asked. The vector of a decoder's text is its folder's choice: see
#: :func:`fedspzo.export.network.pooled.pooled`.
ENCODER_FORMS, DECODER_FORMS = (MASKED, SIMILARITY), (CAUSAL, GENERATION)


class Family(Protocol):
    """What a family's module provides.

    Attributes:
        MODEL_TYPES: the ``model_type`` values of the configs that it serves.
    """

    @property
    def MODEL_TYPES(self) -> tuple[str, ...]:
        """See above."""

    def describe(self, checkpoint: Checkpoint, length: int) -> Architecture:
        """The checkpoint's network for texts of ``length`` tokens.

        Raises:
            ExportError: the config asks for something that the family does not do.
        """


def find_family(checkpoint: Checkpoint, others: Sequence[Family] = ()) -> Family:
    """The family that serves a checkpoint, ``others`` before those that come with the project.

    Raises:
        ExportError: no family serves it; the sentence names the supported model types.
    """
    ours: list[Family] = [
        importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)
    ]
    wanted = checkpoint.config.model_type
    for family in (*others, *ours):
        if wanted in family.MODEL_TYPES:
            return family
    raise unsupported(checkpoint.name, checkpoint.config.to_dict())


def require(checkpoint: Checkpoint, **wanted: object) -> None:
    """Raise ExportError unless the config's settings, where it has them, are the wanted ones."""
    for name, value in wanted.items():
        found = getattr(checkpoint.config, name, value)
        if found != value:
            raise ExportError(
                "model.unsupported-variant",
                f"{checkpoint.name} has the unsupported {name} = {found!r}; choose a model with {value!r}",
            )


def require_causal(checkpoint: Checkpoint, config: PretrainedConfig) -> None:
    """Raise ExportError when tokens of the decoder see later ones, which transformers has two settings for."""
    for name, seeing in (("is_causal", False), ("use_bidirectional_attention", True)):
        if bool(getattr(config, name, not seeing)) == seeing:
            raise ExportError(
                "model.unsupported-variant",
                f"{checkpoint.name} has {name} = {getattr(config, name)!r}: its tokens see later ones, and it cannot be"
                " exported as a decoder; choose a model without this setting",
            )
