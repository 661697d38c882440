"""Checks before anything is written: refuses checkpoints and requests that would make a wrong model."""

from __future__ import annotations

from fnmatch import fnmatchcase

from fedspzo.device_runtime.errors import ExportError
from fedspzo.device_runtime.model.task import GENERATION, Task
from fedspzo.export.checkpoint import Checkpoint, old_name
from fedspzo.export.families import Architecture
from fedspzo.export.network.build import Network
from fedspzo.export.network.target import Target


def check_tensors(checkpoint: Checkpoint, architecture: Architecture) -> None:
    """Refuse a checkpoint with tensors that its architecture has no place for.

    Raises:
        ExportError: there are such tensors: leaving them out would export another model than the one given.
    """
    known = {architecture.embedding, architecture.output, architecture.output_bias}
    stages = (*architecture.stages, *((architecture.final,) if architecture.final else ()))
    known.update(name for stage in stages for name in stage.tensors)
    stored = known | {old_name(name) for name in known}
    extra = [
        name
        for name in checkpoint.files
        if name not in stored
        and not name.endswith(architecture.ignored)
        and not any(part in architecture.unused for part in name.split("."))
    ]
    if extra:
        raise ExportError(
            "model.extra-tensors",
            f"{checkpoint.folder} has {len(extra)} tensors that a model of type '{checkpoint.config.model_type}' does"
            f" not have, such as '{extra[0]}'; merge adapters into the model, or save it without them",
        )


def check_tokenizer(checkpoint: Checkpoint, architecture: Architecture) -> None:
    """Raise ExportError when the tokenizer makes tokens of texts that the token table has no row for.

    Special tokens do not count: no text may become one.
    """
    rows = checkpoint.shape(architecture.embedding)[0]
    tokenizer = checkpoint.tokenizer
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    vocabulary = [item for item in tokenizer.get_vocab().items() if item[0] not in special]
    token, highest = max(vocabulary, key=lambda item: item[1])
    if highest >= rows:
        raise ExportError(
            "model.tokenizer-mismatch",
            f"the tokenizer of {checkpoint.name} has the token '{token}' with index {highest}, and the model has"
            f" {rows} embeddings; use the model's own tokenizer",
        )


def check_lengths(checkpoint: Checkpoint, architecture: Architecture, task: Task, target: Target) -> None:
    """Raise ExportError when the lengths are more than the model takes, or leave no room for an answer."""
    if max(target.lengths) > architecture.limit:
        raise ExportError(
            "export.too-long",
            f"{checkpoint.name} takes at most {architecture.limit} tokens; choose a smaller --max-length",
        )
    if target.answer_tokens is not None and (task.form != GENERATION or target.answer_tokens < 1):
        raise ExportError(
            "export.answer-tokens",
            f"--answer-tokens is {target.answer_tokens}; give at least 1 for a task that generates, and leave it out"
            " for others",
        )
    if task.answer_tokens >= min(target.lengths):
        raise ExportError(
            "export.no-room-for-prompt",
            f"an answer of {task.answer_tokens} tokens leaves no room for a prompt; raise --max-length",
        )


def check_trained(network: Network, target: Target) -> None:
    """Raise ExportError when nothing is left to train, or a pattern of what is trained matches no tensor."""
    names = list(network.tensors)
    example = names[network.stages[-2].tensors[0]]
    for pattern in (*target.train, *target.freeze):
        if pattern and not any(fnmatchcase(name, pattern) for name in names):
            raise ExportError(
                "export.pattern-unmatched",
                f"'{pattern}' in --train or --freeze matches no tensor; write a part of a name such as '{example}'",
            )
    if not any(tensor.spec.trainable for tensor in network.tensors.values()):
        raise ExportError(
            "export.nothing-to-train",
            f"no tensor is left to train; let --train and --freeze match names such as '{example}' (token and position"
            " tables stay frozen)",
        )
