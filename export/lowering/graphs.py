"""Writes the graphs of a network in each format, and for ExecuTorch the files of their constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd
from pathlib import Path

import torch

from fedspzo.device_runtime.engines.protocol import SUFFIXES
from fedspzo.device_runtime.errors import ExportError
from fedspzo.device_runtime.model.arrays import ALIGNMENT
from fedspzo.device_runtime.model.manifest import (
    AT,
    HIDDEN,
    KEYS,
    ROWS,
    VALUES,
    WEIGHTS,
    GraphSpec,
    Shape,
    SliceSpec,
    StageSpec,
)
from fedspzo.device_runtime.model.stored import Quantised
from fedspzo.device_runtime.model.tensor_file import TensorFile
from fedspzo.export.layout import Constant, find_constant
from fedspzo.export.lowering.constants import TemplateGraph, random_matrix, write_executorch_data
from fedspzo.export.lowering.faster import faster
from fedspzo.export.lowering.lower import count_flops, lower, trace
from fedspzo.export.lowering.packed import linear_maps, packed_graph
from fedspzo.export.modules.heads import Before, Slice, TokenScores
from fedspzo.export.modules.shared_inputs import shared_inputs
from fedspzo.export.modules.stage_module import StageModule
from fedspzo.export.modules.tokens import TextStage
from fedspzo.export.network.build import Network, Template
from fedspzo.export.network.target import Target

Progress = Callable[[str], None]

#: Most rows of a table that tokens are scored by at a time.
SLICE_ROWS = 8192


@dataclass(frozen=True)
class _Lowered:
    """A module in every format, with what is known of it; all stages that compute the same share it."""

    templates: dict[str, TemplateGraph]
    shares: dict[str, float]
    outputs: tuple[tuple[int, ...], ...]
    kept: tuple[tuple[int, ...], ...]
    flops: int
    linear: tuple[tuple[int, int], ...] = ()
    packed: bytes | None = None


class GraphWriter:
    """Writes the graphs of networks that differ in their shape alone.

    Attributes:
        shares: graph → format → smallest delegated share of the matrix work.
    """

    def __init__(self, target: Target, folder: Path, progress: Progress) -> None:
        """The folder has the tensor files already."""
        self.shares: dict[str, dict[str, float]] = {}
        self._formats, self._folder, self._progress = target.formats, folder, progress
        self._data_files: dict[tuple[tuple[str, int], ...], str] = {}

    @faster()
    def write(self, network: Network, whole: Shape | None = None) -> Shape:
        """Lower every graph of a network.

        Args:
            network: the network.
            whole: for a network that continues, what was written for whole texts of the same length.

        Raises:
            ExportError: a graph cannot be computed or lowered, or not all of its matrix work is delegated.
        """
        groups, batch, length = network.size
        size = ("next-" if network.continues else "") + f"{batch}x{length}" + (f"x{groups}" if groups > 1 else "")
        specs = [tensor.spec for tensor in network.tensors.values()]
        graphs: dict[str, GraphSpec] = {}
        lowered: dict[Template, _Lowered] = {}
        hidden = network.feeds[ROWS]
        alone = _only_trained(network) if groups > 1 else None
        for stage in network.all_stages:
            if stage.graph in graphs:
                continue
            module = network.graphs[stage.graph]
            if stage == network.decoder:
                hidden = graphs[network.stages[-2].graph].outputs[0]
            kept = whole.graphs[stage.graph].kept if whole else ()
            past = [(batch, heads, length, features) for _, heads, _, features in kept]
            feeds = {**network.feeds, HIDDEN: hidden, **dict(zip((KEYS, VALUES), past, strict=False))}
            if isinstance(module, TokenScores) and len(slices := _slices(*network.shape(network.output_index)[1:])) > 1:
                graphs[stage.graph] = self._write_slices(network, stage, module, feeds, slices, size)
                continue
            template = network.templates[stage.graph]
            if template not in lowered:
                lowered[template] = self._lower(network, stage, module, feeds, size)
            constants = [find_constant(self._folder, specs[index]) for index in stage.constants]
            spec = self._write(stage.graph, stage, module, lowered[template], constants, size)
            if stage == alone and (shared := self._shared(network, stage, module, feeds)):
                starting = module.starting_alike(shared)
                same = self._lower(network, stage, starting, feeds, f"{size} for branches that start alike")
                spec = replace(spec, alike=self._write(f"{stage.graph}.alike", stage, starting, same, constants, size))
            graphs[stage.graph] = spec
            hidden = spec.outputs[0]
        return Shape(batch, length, groups, network.feeds, graphs)

    def _shared(
        self, network: Network, stage: StageSpec, module: StageModule, sizes: Mapping[str, tuple[int, ...]]
    ) -> set[str]:
        """Linear maps whose input branches share that start alike."""
        tensors = [network.shape(index) for index in (*stage.tensors, *stage.constants)]
        return shared_inputs(module, [sizes[feed] for feed in module.feeds], tensors)

    def _write_slices(
        self,
        network: Network,
        stage: StageSpec,
        head: TokenScores,
        sizes: Mapping[str, tuple[int, ...]],
        slices: Sequence[range],
        size: str,
    ) -> GraphSpec:
        """The files of a head that scores all tokens: up to the scores, and of each slice of the table."""
        specs, table = [tensor.spec for tensor in network.tensors.values()], network.output_index
        inputs, constants = ([i for i in own if i != table] for own in (stage.tensors, stage.constants))
        start, module = replace(stage, tensors=tuple(inputs), constants=tuple(constants)), Before(head)
        matrices = [find_constant(self._folder, specs[index]) for index in constants]
        before = self._write(
            stage.graph, start, module, self._lower(network, start, module, sizes, size), matrices, size
        )
        part, spec = Slice(head), specs[table]
        feeds = [{**sizes, AT: before.outputs[0]}[feed] for feed in part.feeds]
        lowered, written, parts = dict[int, _Lowered](), dict[int, GraphSpec](), list[SliceSpec]()
        for rows in slices:
            name, count = f"{stage.graph}.{rows.start}", len(rows)
            own = [find_constant(self._folder, spec).slice(rows.start, rows.stop)] if table in stage.constants else []
            if count not in lowered:
                shape = (*spec.shape[:-2], count, spec.shape[-1])
                tensors, templates = ([], [random_matrix(shape, spec.dtype, table)]) if own else ([shape], [])
                lowered[count] = self._lower_module(name, part, feeds, tensors, templates, size)
            if own or count not in written:
                written[count] = self._write(name, stage, part, lowered[count], own, size)
            parts.append(SliceSpec(rows.start, rows.stop, replace(written[count], name=name)))
        flops = before.flops + sum(each.graph.flops for each in parts)
        return replace(before, flops=flops, slices=tuple(parts))

    def _write(
        self,
        graph: str,
        stage: StageSpec,
        module: StageModule,
        found: _Lowered,
        constants: Sequence[Constant],
        size: str,
    ) -> GraphSpec:
        """The files of a stage's graph."""
        files: dict[str, str] = {}
        for name, lowered_graph in found.templates.items():
            files[name] = f"{graph}-{size}{SUFFIXES[name]}"
            (self._folder / files[name]).write_bytes(lowered_graph.instance(constants))
            known = self.shares.setdefault(stage.graph, {})
            known[name] = min(found.shares[name], known.get(name, 1.0))
        data = {name: self._data(graph, name, constants) for name in files if constants}
        packed: dict[str, str] = {}
        if found.packed is not None:
            packed["litert"] = f"{graph}-{size}.packed{SUFFIXES['litert']}"
            (self._folder / packed["litert"]).write_bytes(found.packed)
        return GraphSpec(graph, module.feeds, found.outputs, found.flops, files, data, packed, found.linear, found.kept)

    def _lower(
        self,
        network: Network,
        stage: StageSpec,
        module: StageModule,
        sizes: Mapping[str, tuple[int, ...]],
        size: str,
    ) -> _Lowered:
        """A stage's module in every format, for feeds of such sizes."""
        specs = [tensor.spec for tensor in network.tensors.values()]
        feeds = [sizes[feed] for feed in module.feeds]
        tensors = [network.shape(index) for index in stage.tensors]
        matrices = [random_matrix(specs[index].shape, specs[index].dtype, index) for index in stage.constants]
        found = self._lower_module(stage.graph, module, feeds, tensors, matrices, size)
        own = [specs[index] for index in stage.tensors]
        decodes = network.decoder is not None and stage.name == network.decoder.name
        perturbed = not (decodes or network.continues or matrices) and network.size.groups == 1
        linear = linear_maps(module, own) if perturbed and "litert" in found.templates else ()
        if not linear:
            return found
        example = [*(torch.ones(shape) for shape in feeds), *(torch.zeros(shape) for shape in tensors)]
        packed = packed_graph(module, example, own, linear, TensorFile(self._folder / WEIGHTS))
        return replace(found, linear=linear if packed else (), packed=packed)

    def _lower_module(
        self,
        name: str,
        module: StageModule,
        feeds: Sequence[tuple[int, ...]],
        tensors: Sequence[tuple[int, ...]],
        matrices: Sequence[Quantised],
        size: str,
    ) -> _Lowered:
        """A module in every format, for feeds and tensors of such shapes and constants like these."""
        self._progress(f"tracing {name} {size}")
        templates: dict[str, TemplateGraph] = {}
        shares: dict[str, float] = {}
        try:
            example = [*(torch.ones(shape) for shape in feeds), *(torch.zeros(shape) for shape in tensors)]
            whole = [*example, *(torch.zeros(matrix.shape) for matrix in matrices)]
            with torch.inference_mode():
                outputs = tuple(tuple(out.shape) for out in module(*whole))
            programs = {engine: trace(module, example, matrices, engine) for engine in self._formats}
        except (RuntimeError, ValueError, ZeroDivisionError) as error:
            reason = str(error).strip().splitlines()[-1][:200]
            raise ExportError(
                "export.graph-fails",
                f"'{name}' does not run with the model's config ({reason}); check that config.json belongs to"
                " the weights, or choose a smaller --batch",
            ) from None
        for engine, program in programs.items():
            self._progress(f"lowering {name} {size} to {engine}")
            templates[engine], shares[engine] = lower(program, matrices, engine)
            if shares[engine] < 1.0:
                raise ExportError(
                    "export.not-delegated",
                    f"{engine} delegates only {shares[engine]:.1%} of the matrix products of '{name}', so it would be"
                    " slow; leave this engine out",
                )
        given = 1 if isinstance(module, TextStage) else len(outputs)
        return _Lowered(
            templates,
            shares,
            outputs[:given],
            outputs[given:],
            count_flops(module, whole),
        )

    def _data(self, graph: str, engine: str, constants: Sequence[Constant]) -> str:
        """Name of the file that graphs have their constants from; ExecuTorch's is written the first time."""
        if engine != "executorch":
            return constants[-1].file
        places = tuple((constant.file, constant.codes_at) for constant in constants)
        if places not in self._data_files:  # the decoder has the head's
            self._data_files[places] = f"{graph}.ptd"
            file = self._folder / self._data_files[places]
            write_executorch_data(file, [constant.matrix for constant in constants])
        return self._data_files[places]


def _only_trained(network: Network) -> StageSpec | None:
    """The stage with all that is trained before the head; None where several have some. All branches reach it alike."""
    trained = {index for index, tensor in enumerate(network.tensors.values()) if tensor.spec.trainable}
    found = [stage for stage in network.stages[:-1] if trained.intersection(stage.tensors)]
    return found[0] if len(found) == 1 else None


def _slices(rows: int, width: int) -> list[range]:
    """Slices of a table, of one size where its rows can be so divided, that start where engines can use them."""
    least = -(-rows // SLICE_ROWS)
    counts = range(least, min(4 * least, rows) + 1)
    even = (rows // count for count in counts if rows % count == 0 and rows // count * width % ALIGNMENT == 0)
    step = ALIGNMENT // gcd(ALIGNMENT, width)
    size = next(even, -(-rows // least // step) * step)
    return [range(start, min(start + size, rows)) for start in range(0, rows, size)]
