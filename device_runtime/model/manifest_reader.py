"""Reading a manifest from outside: nothing is believed before its types, sizes and references are right."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import dacite

from fedspzo.device_runtime.directions import format as directions
from fedspzo.device_runtime.errors import BundleError, DataError
from fedspzo.device_runtime.model.manifest import (
    AT,
    FORMAT,
    FORMAT_WITH_SLICES,
    HIDDEN,
    KEYS,
    MANIFEST,
    ROWS,
    TOKENIZER,
    VALUES,
    WEIGHTS,
    AdapterSpec,
    Check,
    GraphSpec,
    Manifest,
    Shape,
)
from fedspzo.device_runtime.model.modes import MODES
from fedspzo.device_runtime.model.stored import GROUP, NAMES, QUANTISED

#: Most bytes of a manifest; one of a model with 80 layers has a tenth of it.
MANIFEST_BYTES = 1 << 22
#: A file of a bundle, which lies in its folder and is not hidden.
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_KEY = re.compile(r"([0-9a-f]{64})?")
#: Most axes of an array, most elements of one, and the largest of other integers.
_AXES, _ELEMENTS, _INTEGER = 8, 1 << 40, 1 << 62


def parse_manifest(folder: Path, text: str) -> Manifest:
    """The manifest that a text is.

    Args:
        folder: where it lies, for messages.

    Raises:
        BundleError: it is of another version, or damaged: a field is missing, unknown or of another type, or what it
            says contradicts itself.
    """
    try:
        if len(text) > MANIFEST_BYTES:
            raise ValueError(f"it has more than {MANIFEST_BYTES} characters")
        record = _frozen(json.loads(text, parse_constant=_no_number))
        for key, known in (("format", (FORMAT, FORMAT_WITH_SLICES)), ("directions", (directions.FORMAT,))):
            if (found := record.pop(key)) not in known:
                raise BundleError(
                    "bundle.version",
                    f"{folder} has {key} version {found!r:.20}, and this version of fedspzo reads"
                    f" {' and '.join(map(str, known))}; update fedspzo",
                )
        hooks: dict[type, Callable[[Any], Any]] = {int: _integer, float: _number}
        manifest = dacite.from_dict(Manifest, record, dacite.Config(type_hooks=hooks, strict=True))
        for spec in manifest.tensors:
            if spec.dtype not in NAMES:
                raise BundleError(
                    "bundle.unknown-dtype",
                    f"{folder} stores '{spec.name}' as {spec.dtype}, which this version cannot read; update fedspzo",
                )
        _check(manifest)
        return manifest
    # dacite lets what a wrong container raises through.
    except (dacite.DaciteError, KeyError, TypeError, ValueError, AttributeError, DataError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise BundleError(
            "bundle.manifest-damaged",
            f"{folder / MANIFEST} is damaged ({reason[:200]!r}); get or export the bundle again",
        ) from None


def _frozen(value: Any) -> Any:
    """A JSON value with tuples in place of lists. Raises ValueError where UTF-8 cannot write a text."""
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    if isinstance(value, dict):
        return {_frozen(key): _frozen(item) for key, item in value.items()}
    if isinstance(value, str):
        value.encode()
    return value


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _integer(value: object) -> object:
    """Python takes True for an integer, and JSON's have any size."""
    if isinstance(value, bool) or (isinstance(value, int) and abs(value) > _INTEGER):
        raise ValueError("an integer is wrong, or too large")
    return value


def _number(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number is too large")
    return _integer(value)


def _check(manifest: Manifest) -> None:
    """Raises ValueError where the manifest contradicts itself."""
    _check_tensors(manifest)
    _check_stages(manifest)
    shapes = manifest.shapes
    for shape in (*shapes, *manifest.continuations):
        _check_shape(shape, manifest)
    _need(all(ROWS in shape.feeds for shape in shapes), "a shape does not take tokens")
    _need(any(shape.groups == 1 for shape in shapes), "it has no shape for one branch")
    largest = max(shape.batch for shape in shapes), max(shape.length for shape in shapes)
    first = shapes[0]
    _need(
        (first.batch, first.length, first.groups) == (*largest, 1), "its first shape is not the largest of one branch"
    )
    _need(manifest.task.answer_tokens < manifest.length, "its answers are longer than its examples")
    _need({WEIGHTS, TOKENIZER} <= manifest.files.keys(), "it lists no weights or no tokenizer")
    _need({"name", "family"} <= manifest.model.keys(), "it does not name the model")
    names = (*manifest.model.values(), *(s.name for s in manifest.stages), *(t.name for t in manifest.tensors))
    _need(all(map(str.isprintable, names)), "a name has control characters")
    _need(manifest.least in MODES, f"the weakest mode of its devices is not one of {', '.join(MODES)}")
    _need(bool(_KEY.fullmatch(manifest.enrolment_key)), "its enrolment key is not 64 hexadecimal digits")
    _need(manifest.sizes.keys() <= manifest.files.keys(), "it has a size of a file that it does not list")
    _need(all(size >= 0 for size in manifest.sizes.values()), "a file has less than no bytes")
    _check_findings(manifest.checks)
    if manifest.adapters is not None:
        _check_adapters(manifest.adapters)


def _check_tensors(manifest: Manifest) -> None:
    specs = {spec.name: spec for spec in manifest.tensors}
    _need(len(specs) == len(manifest.tensors), "two tensors have one name")
    for spec in manifest.tensors:
        _check_size(spec.shape, spec.name)
        _need(bool(spec.shape), f"'{spec.name}' is no array")
        if spec.dtype in QUANTISED:
            _need(len(spec.shape) > 1, f"'{spec.name}' is no matrix")
            _need(spec.dtype != "int4" or spec.shape[-1] % GROUP == 0, f"'{spec.name}' has a group that is not whole")
    for table in {manifest.embedding, manifest.output or manifest.embedding}:
        _need(table in specs and len(specs[table].shape) == 3, f"there is no table '{table}'")


def _check_stages(manifest: Manifest) -> None:
    stages = (*manifest.stages, *filter(None, [manifest.decoder]))
    _need(bool(manifest.stages) and bool(manifest.shapes), "it has no stage or no shape")
    _need(len(manifest.checks) == len(manifest.stages), "it has not a check for each stage")
    for stage in stages:
        indices = (*stage.tensors, *stage.constants)
        _need(all(0 <= index < len(manifest.tensors) for index in indices), f"'{stage.name}' has an unknown tensor")
        _need(all(stage.graph in shape.graphs for shape in manifest.shapes), f"'{stage.name}' has no graph")
        count = len(stage.tensors)
        for shape in (*manifest.shapes, *manifest.continuations):
            linear = shape.graphs[stage.graph].linear if stage.graph in shape.graphs else ()
            known = all(0 <= weight < count and -1 <= bias < count for weight, bias in linear)
            _need(known, f"'{stage.name}' has a linear map of an unknown tensor")
    for stage in manifest.stages[:-1]:
        _need(all(stage.graph in shape.graphs for shape in manifest.continuations), f"'{stage.name}' does not continue")
    graphs = [graph for shape in (*manifest.shapes, *manifest.continuations) for graph in shape.graphs.values()]
    _need(bool(set.intersection(*(set(graph.files) for graph in graphs))), "no engine has all graphs")


def _check_shape(shape: Shape, manifest: Manifest) -> None:
    _need(min(shape.batch, shape.length, shape.groups) > 0, "a shape is empty")
    _check_size((shape.groups, shape.batch, shape.length), "a shape")
    for name, size in shape.feeds.items():
        _check_size(size, name)
    for graph in shape.graphs.values():
        _check_graph(graph, shape, manifest)


def _check_graph(graph: GraphSpec, shape: Shape, manifest: Manifest) -> None:
    own = {HIDDEN, AT, *shape.feeds, *((KEYS, VALUES) if shape in manifest.continuations else ())}
    _need(own.issuperset(graph.feeds), f"'{graph.name}' has an unknown feed")
    _need(bool(graph.outputs) and graph.flops >= 0, f"'{graph.name}' gives nothing, or for nothing")
    for size in (*graph.outputs, *graph.kept):
        _check_size(size, graph.name)
    files = chain(graph.files.values(), graph.data.values(), graph.packed.values())
    _need(all(file in manifest.files for file in files), f"'{graph.name}' has a file that is not listed")
    if graph.alike is not None:
        _check_graph(graph.alike, shape, manifest)
        same = (graph.alike.feeds, graph.alike.outputs, graph.alike.kept) == (graph.feeds, graph.outputs, graph.kept)
        _need(same and graph.alike.files.keys() == graph.files.keys(), f"'{graph.name}' differs for alike branches")
    if graph.slices:
        rows = next((spec.shape[1] for spec in manifest.tensors if spec.name == manifest.output), 0)
        starts, stops = ([getattr(part, edge) for part in graph.slices] for edge in ("start", "stop"))
        _need([*starts, rows] == [0, *stops], f"'{graph.name}' has slices that are not of the whole table")
        _need(
            all(start < stop for start, stop in zip(starts, stops, strict=True)), f"'{graph.name}' has an empty slice"
        )
        for part in graph.slices:
            _check_graph(part.graph, shape, manifest)
            _need(part.graph.files.keys() == graph.files.keys(), f"'{graph.name}' has a slice for another engine")


def _check_findings(checks: Sequence[Check]) -> None:
    """No deviation is there before they have been measured."""
    formats = checks[0].delegated.keys()
    _need(all(check.delegated.keys() == formats for check in checks), "its checks are not of the same engines")
    for check in checks:
        _need(check.deviation.keys() in (formats, set()), "its deviations are not of the same engines")


def _check_adapters(adapters: AdapterSpec) -> None:
    _need(adapters.rank >= 0, "its adapters have no rank")


def _check_size(shape: Iterable[int], name: str) -> None:
    sizes = tuple(shape)
    _need(
        len(sizes) <= _AXES and all(size >= 0 for size in sizes) and math.prod(sizes) <= _ELEMENTS,
        f"'{name}' has an impossible shape",
    )


def _need(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
