"""The manifest of a bundle: which graph each stage runs, on which tensors, in which shapes, and what was checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedspzo.device_runtime.directions import format as directions
from fedspzo.device_runtime.files import PUBLIC, write_atomically
from fedspzo.device_runtime.model.metrics import SINGLE
from fedspzo.device_runtime.model.modes import MODES
from fedspzo.device_runtime.model.task import Task

#: Of bundles; those with slices have a version of their own, so that older runtimes say that they must be updated.
FORMAT, FORMAT_WITH_SLICES = 2, 3
MANIFEST, WEIGHTS, TOKENIZER = "manifest.json", "weights.safetensors", "tokenizer.json"
#: A large vocabulary, which is then not read from TOKENIZER.
VOCABULARY = "vocabulary.safetensors"
#: The quantised matrices, where a format's graphs refer to them (ExecuTorch's have files of their own kind).
BASE = "base.safetensors"
#: Feeds: the activation that stages hand on, the token rows that the first takes in its place, and, for the next token,
#: its position and the keys and values of the tokens before it; one-hot over the token whose output is scored; and what
#: the table's rows are multiplied with, where a head scores all tokens in slices.
HIDDEN, ROWS, POSITION, KEYS, VALUES, LAST, AT = "hidden", "rows", "position", "keys", "values", "last", "at"


@dataclass(frozen=True)
class TensorSpec:
    """One weight tensor.

    Attributes:
        name: its name in ``weights.safetensors``, or in ``base.safetensors`` for matrices that only graphs use.
        shape: its shape there, which is the shape the graph takes; of quantised ones, that of the matrices they stand
            for, [..., out, in].
        trainable: whether rounds change it.
        source: the parameter of the Hugging Face checkpoint that it came from ("" when it came from none).
        transposed: whether it is the source's transpose; matrices that are inputs of graphs are [1, in, out].
        dtype: what it is stored as, one of ``model.stored.NAMES``; graphs take float32, or have it within.
    """

    name: str
    shape: tuple[int, ...]
    trainable: bool
    source: str
    transposed: bool
    dtype: str = "float32"


@dataclass(frozen=True)
class GraphSpec:
    """One forward-only graph of one shape, which several stages may share.

    Attributes:
        name: what the graph is called.
        feeds: names of its leading inputs (``hidden`` or one of the shape's feeds); the stage's tensors follow.
        outputs: shapes of its outputs.
        flops: floating-point operations of its matrix products in one run of a whole batch.
        files: format → file name.
        data: format → name of the file that holds the graph's constants, where it has some.
        packed: format → name of a second file of the graph, in which linear maps' weights are no inputs, for engines
            that let them be written as they have packed them. What stands for them is the first stage's with the graph.
        linear: these maps' places among the stage's tensors: of the weight, and of the bias or -1.
        kept: shapes of the keys and values that it gives after its outputs, [batch, key heads, tokens, size].
        alike: of a graph for several branches, the one for those that start from the same activations, which computes
            once what they share; None where the export made no such graph.
        slices: of a head that scores all tokens by a large table, the graphs for slices of its rows, which cover it in
            order. The graph itself then ends before the scores: it gives ``at`` [B, A, width] and, for losses, the
            scores [B, A] of the answers' own tokens (``step/sliced.py``).
    """

    name: str
    feeds: tuple[str, ...]
    outputs: tuple[tuple[int, ...], ...]
    flops: int
    files: Mapping[str, str]
    data: Mapping[str, str]
    packed: Mapping[str, str]
    linear: tuple[tuple[int, int], ...]
    kept: tuple[tuple[int, ...], ...] = ()
    alike: GraphSpec | None = None
    slices: tuple[SliceSpec, ...] = ()


@dataclass(frozen=True)
class SliceSpec:
    """Some rows of the table that scores tokens.

    Attributes:
        start, stop: the rows.
        graph: takes them as its last input, or has them as its constant, and gives the logarithm [B, A] of the sum of
            their scores' exponentials or, in the decoder, their scores [rows, B].
    """

    start: int
    stop: int
    graph: GraphSpec


@dataclass(frozen=True)
class Shape:
    """The network's graphs for batches of one size.

    Attributes:
        batch: examples in a batch.
        length: tokens in an example.
        groups: branches that go through a graph together, each with the batch and with adapters of its own.
        feeds: feed name → shape, with groups · batch in front.
        graphs: graph name → graph.
    """

    batch: int
    length: int
    groups: int
    feeds: Mapping[str, tuple[int, ...]]
    graphs: Mapping[str, GraphSpec]


@dataclass(frozen=True)
class StageSpec:
    """A piece of the network.

    Attributes:
        name: its name.
        graph: the graph that it runs.
        tensors: indices of the tensors that the graph takes.
        constants: indices of the quantised matrices that are part of the graph, which no other stage then shares.
    """

    name: str
    graph: str
    tensors: tuple[int, ...]
    constants: tuple[int, ...] = ()


@dataclass(frozen=True)
class Check:
    """What export found out about a stage, the worst over the shapes.

    Attributes:
        delegated: format → share of the matrix work that the engine's delegate takes, 0 to 1.
        deviation: format → largest difference from PyTorch on the stage's real weights, relative to the largest value.
    """

    delegated: Mapping[str, float]
    deviation: Mapping[str, float]


@dataclass(frozen=True)
class Comparison:
    """What export found out about the whole bundle, on texts of the task.

    Attributes:
        reference: the libraries that it was compared with, and their versions; "" when it was not. They had the
            bundle's weights, as these are stored.
        texts: how many texts there were. Their tokens are the same.
        deviation: format → largest difference from the reference's scores, relative to the largest score.
        rounding: how far the reference's scores are from those of the model before its weights were rounded, in the
            same measure; None where none were.
        skipped: why nothing was compared, "" when it was.
    """

    reference: str = ""
    texts: int = 0
    deviation: Mapping[str, float] = field(default_factory=dict)
    rounding: float | None = None
    skipped: str = ""


@dataclass(frozen=True)
class AdapterSpec:
    """Adapters that are trained over a frozen base.

    Attributes:
        kind: "low-rank" (LoRA, arXiv 2106.09685), "output-scales": a factor on each output (arXiv 2505.13430), or
            "cores": a matrix between two fixed bases.
        rank: inner width of low-rank ones, or the width of cores.
        alpha: what low-rank ones add is scaled by alpha/rank; for cores, the rank.
    """

    kind: str
    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        """Factor on what low-rank adapters add."""
        return self.alpha / self.rank if self.rank else 1.0


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` says.

    Attributes:
        model: name, family, id on the hub (or ""), and the SHA-256 of the checkpoint's weights.
        task: what the model is asked.
        embedding: the tensor [1, tokens, width] whose rows the runtime gathers by token id (feed ``rows``).
        output: for generation, the tensor of the same kind whose rows score the next token (feed ``answer_rows``).
        tensors: all weight tensors; a tensor's index here is the one directions are keyed by.
        stages: the network, in order; the last one ends in the losses.
        decoder: for generation, the stage that takes the last one's place to score the next token.
        adapters: what is trained, where it is not the model's own tensors: for each adapted linear map, named after it,
            ``lora_A`` [1, in, rank] and ``lora_B`` [1, rank, out]; ``factors`` [1, 1, out]; or ``core_C``
            [1, rank, rank] between ``core_R`` [1, in, rank] and ``core_L`` [1, rank, out], which stay frozen.
        shapes: sizes of batches, each with its graphs; the largest comes first.
        checks: one for each stage.
        base: SHA-256 of ``base.safetensors``, though the file be left out; "" where no matrix is quantised.
        files: file name → SHA-256.
        continuations: for generation, sizes of batches, with graphs of the stages before the head for one token of each
            text; they take the keys and values of the tokens before it, up to the length. The smallest comes first.
        comparison: of the whole bundle with transformers; None in bundles of versions that made none.
        sizes: file name → bytes; bundles of before have none.
        least: the weakest mode in which its devices take part, one of ``model.modes.MODES``.
        enrolment_key: public key, in hexadecimal, that certifies the devices whose results are summed; "" for none.
    """

    model: Mapping[str, str]
    task: Task
    embedding: str
    output: str
    tensors: tuple[TensorSpec, ...]
    stages: tuple[StageSpec, ...]
    decoder: StageSpec | None
    adapters: AdapterSpec | None
    shapes: tuple[Shape, ...]
    checks: tuple[Check, ...]
    base: str
    files: Mapping[str, str]
    continuations: tuple[Shape, ...] = ()
    comparison: Comparison | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    least: str = MODES[0]
    enrolment_key: str = ""

    @property
    def batch(self) -> int:
        """Most examples in a batch."""
        return self.shapes[0].batch

    @property
    def length(self) -> int:
        """Most tokens in an example."""
        return self.shapes[0].length

    @property
    def constants(self) -> frozenset[int]:
        """Indices of the tensors that are part of graphs."""
        stages = (*self.stages, *filter(None, [self.decoder]))
        return frozenset(index for stage in stages for index in stage.constants)

    def write(self, folder: Path) -> None:
        """Write ``manifest.json``."""
        graphs = (graph for shape in self.shapes for graph in shape.graphs.values())
        version = FORMAT_WITH_SLICES if any(graph.slices for graph in graphs) else FORMAT
        record = {"format": version, "directions": directions.FORMAT, **self._record()}
        write_atomically(folder / MANIFEST, json.dumps(record, indent=1).encode(), PUBLIC)

    def _record(self) -> dict[str, Any]:
        """All fields; what came later is left out where it is not used, so that identities stay."""
        record = asdict(self)
        if self.least == MODES[0]:
            del record["least"]
        if not self.enrolment_key:
            del record["enrolment_key"]
        for shape in (*record["shapes"], *record["continuations"]):
            for graph in shape["graphs"].values():
                _leave_out_unused(graph)
        for name, unused in (("kind", SINGLE), ("metrics", ()), ("chat", None)):
            if getattr(self.task, name) == unused:
                del record["task"][name]
        return record

    def identity(self) -> bytes:
        """What two bundles must share to train together: all but where they came from and their shapes."""
        record = {"format": FORMAT, "directions": directions.FORMAT, "length": self.length, **self._record()}
        for name in ("model", "shapes", "continuations", "checks", "comparison", "sizes"):
            del record[name]
        record["task"].pop("metrics", None)  # they change no weight
        record["files"] = {name: value for name, value in self.files.items() if name in (WEIGHTS, TOKENIZER)}
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).digest()


def _leave_out_unused(graph: dict[str, Any]) -> None:
    """Fields of a graph that came later."""
    for inner in (*filter(None, [graph["alike"]]), *(part["graph"] for part in graph["slices"])):
        _leave_out_unused(inner)
    for name in ("alike", "slices"):
        if not graph[name]:
            del graph[name]
