"""A model and a task as a network: stages in order, the graph of each, and the tensors that it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from fedspzo.device_runtime.model.manifest import LAST, POSITION, ROWS, StageSpec
from fedspzo.device_runtime.model.metrics import MULTI, REGRESSION, SINGLE
from fedspzo.device_runtime.model.stored import QUANTISED
from fedspzo.device_runtime.model.task import GENERATION, SIMILARITY, Task
from fedspzo.export.families import Architecture, Stage
from fedspzo.export.layout import Tensor
from fedspzo.export.modules.heads import TABLE, AnswerLoss, LabelWords, NextToken, Similarity, is_stacked
from fedspzo.export.modules.operators import cross_entropy, squared_error, threshold_loss
from fedspzo.export.modules.stage_module import StageModule
from fedspzo.export.modules.tokens import TextStage


class Size(NamedTuple):
    """What a network's graphs take at a time.

    Attributes:
        groups: branches, each with the batch and with adapters of its own.
        batch: examples of each.
        length: tokens of each.
    """

    groups: int
    batch: int
    length: int


#: What graphs that are lowered alike have in common: see :class:`Network`.
Template = tuple[object, ...]


@dataclass(frozen=True)
class Network:
    """A model for one shape of batches, before lowering.

    Attributes:
        size: the shape's.
        feeds: feed name → shape.
        embedding, output: names of the token table and, for generation, of the table that scores tokens.
        tensors: all tensors, in the order that directions are keyed by; the same for all shapes.
        graphs: graph name → its module. Stages with constants have graphs of their own.
        templates: graph name → what it shares with graphs that are the same except for their constants.
        stages: the stages in order.
        decoder: for generation, the stage that scores the next token.
        continues: whether it computes one token of each text, from keys and values of ``length`` tokens before it; it
            has no head then, for that of whole texts does.
    """

    size: Size
    feeds: Mapping[str, tuple[int, ...]]
    embedding: str
    output: str
    tensors: Mapping[str, Tensor]
    graphs: Mapping[str, StageModule]
    templates: Mapping[str, Template]
    stages: tuple[StageSpec, ...]
    decoder: StageSpec | None
    continues: bool = False

    def shape(self, index: int) -> tuple[int, ...]:
        """A tensor's shape as graphs take it: one of what is trained for each branch."""
        spec = list(self.tensors.values())[index].spec
        return (self.size.groups, *spec.shape[1:]) if is_stacked(spec) else spec.shape

    @property
    def output_index(self) -> int:
        """Place among all tensors of the table that scores tokens, for generation."""
        return list(self.tensors).index(self.output)

    @property
    def all_stages(self) -> tuple[StageSpec, ...]:
        """The stages, and the decoder when there is one."""
        return (*self.stages, self.decoder) if self.decoder else self.stages


def build_network(
    architecture: Architecture, task: Task, tensors: Mapping[str, Tensor], size: Size, continues: bool = False
) -> Network:
    """Put an architecture and the head for a task together.

    Args:
        architecture: with its adapters, if there are any, and for texts of the size's length.
        tensors: see :func:`fedspzo.export.network.tensors.network_tensors`.
        continues: whether to compute one token of each text, from keys and values; see :func:`can_continue`.
    """
    output = architecture.output if task.form == GENERATION else ""
    heads = [] if continues else _heads(architecture, task)
    graphs = _Graphs(tensors, output)
    before = architecture.stages
    if can_continue(architecture, task) and size.groups == 1:
        before = tuple(_with_keys_and_values(stage, continues) for stage in before)
    stages = tuple(graphs.add(stage) for stage in (*before, *heads[:1]))
    decoder = graphs.add(heads[1]) if heads[1:] else None
    width = tensors[architecture.embedding].spec.shape[-1]
    tokens = size._replace(length=1) if continues else size
    sizes = _feed_sizes(tokens, task, width, tensors[output].spec.shape[-1] if output else width)
    used = {ROWS}.union(*(module.feeds for module in graphs.modules.values()))
    return Network(
        size=size,
        feeds={name: shape for name, shape in sizes.items() if name in used},
        embedding=architecture.embedding,
        output=output,
        tensors=tensors,
        graphs=graphs.modules,
        templates=graphs.templates,
        stages=stages,
        decoder=decoder,
        continues=continues,
    )


def can_continue(architecture: Architecture, task: Task) -> bool:
    """Whether the network generates, and its stages can compute one token from the keys and values before it."""
    return task.form == GENERATION and all(isinstance(stage.module, TextStage) for stage in architecture.stages)


def _with_keys_and_values(stage: Stage, continues: bool) -> Stage:
    """A stage that gives keys and values of the tokens that it computes: of whole texts, or of the next ones."""
    module = stage.module
    assert isinstance(module, TextStage)
    return replace(stage, module=module.continuing() if continues else module.keeping())


_LOSSES = {SINGLE: cross_entropy, MULTI: threshold_loss, REGRESSION: squared_error}


def _heads(architecture: Architecture, task: Task) -> list[Stage]:
    """The stage that ends in losses and, for generation, the one that scores the next token."""
    final, closing = architecture.final, architecture.closing
    scoring = architecture.scoring
    if task.form == SIMILARITY or final is None:
        similarity = Similarity(architecture.pooling, closing.module if closing else None, _LOSSES[task.kind])
        return [Stage("head", "head", similarity, final.prefix if final else "")]
    if task.form != GENERATION:
        return [Stage("head", "head", LabelWords(final.module, scoring, _LOSSES[task.kind]), final.prefix)]
    return [
        Stage("head", "head", AnswerLoss(final.module, scoring), final.prefix),
        Stage("decoder", "decoder", NextToken(final.module, scoring), final.prefix),
    ]


def _feed_sizes(size: Size, task: Task, width: int, output_width: int) -> dict[str, tuple[int, ...]]:
    """Shapes of all feeds by name."""
    rows, length, answers = size.groups * size.batch, size.length, task.answer_tokens or 1
    return {
        ROWS: (rows, length, width),
        "mask": (rows, length),
        "targets": (rows, len(task.labels)),
        "select": (rows, answers, length),
        "answer_rows": (rows, answers, output_width),
        "answer_mask": (rows, answers),
        LAST: (rows, 1, length),
        POSITION: (rows, 1),
    }


class _Graphs:
    """Gives each stage its graph: stages whose modules compute the same share one, unless it has constants."""

    def __init__(self, tensors: Mapping[str, Tensor], table: str) -> None:
        """``table`` is the name of the table that scores tokens."""
        self.modules: dict[str, StageModule] = {}
        self.templates: dict[str, Template] = {}
        self._tensors, self._table = tensors, table
        self._indices = {name: index for index, name in enumerate(tensors)}

    def add(self, stage: Stage) -> StageSpec:
        """A stage with the name of its graph, and its tensors by their places among all."""
        names = {tensor: self._name(stage, tensor) for tensor in stage.module.tensors}
        specs = {tensor: self._tensors[name].spec for tensor, name in names.items()}
        constants = tuple(tensor for tensor, spec in specs.items() if spec.dtype in QUANTISED)
        module = stage.module.ending(constants) if constants else stage.module
        kinds = tuple((specs[tensor].shape, specs[tensor].dtype) for tensor in constants)
        template = (stage.graph, module.tensors, kinds)
        shares = not constants and self.templates.get(stage.graph, template) == template
        graph = stage.graph if shares else stage.name.replace(" ", "-")
        self.modules[graph], self.templates[graph] = module, template
        indices = [self._indices[names[tensor]] for tensor in module.tensors]
        inputs = len(indices) - len(constants)
        return StageSpec(stage.name, graph, tuple(indices[:inputs]), tuple(indices[inputs:]))

    def _name(self, stage: Stage, tensor: str) -> str:
        """The name in the bundle of a tensor of a stage's module."""
        if tensor == TABLE:
            return self._table
        full = stage.full_name(tensor)
        return full if full in self._tensors else tensor
