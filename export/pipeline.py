"""The export pipeline: checkpoint and task in, checked bundle out, one tensor and one stage in memory at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch

from device_runtime.arrays import ALIGNMENT
from device_runtime.bundle import Bundle, file_hash
from device_runtime.encoder import Encoder
from device_runtime.errors import ExportError
from device_runtime.forward import HIDDEN
from device_runtime.halves import DTYPES
from device_runtime.manifest import MANIFEST, TOKENIZER, WEIGHTS, AdapterSpec, Check, GraphSpec, Manifest, Shape
from device_runtime.stored import QUANTISED, SCALES, layout, quantise
from device_runtime.task import GENERATION, Task
from device_runtime.tensors import write_tensors
from export.adapters import adapt
from export.checkpoint import CONFIG, Checkpoint
from export.checks import check_lengths, check_tensors, check_tokenizer, check_trained
from export.compare import compare
from export.families import find_family
from export.lowering import count_flops, export_program, lower
from export.network import Network, Tensor, build_network
from export.quiet import quiet
from export.target import Target
from export.tasks import choose_form
from export.words import with_special_tokens

#: Largest difference between an engine's output and PyTorch's that an export may have, relative to the largest value.
TOLERANCE = 1e-4

Progress = Callable[[str], None]


def export_bundle(
    model: str, tasks: Mapping[str, Task], target: Target, out: Path, progress: Progress = lambda step: None
) -> Bundle:
    """Export a model for a task.

    Args:
        model: folder, hub id, or ``minilm``.
        tasks: the task in the forms that it has.
        out: the bundle's folder; it must not exist, and appears only when all checks have passed.
        progress: told what is being done.

    Raises:
        ExportError: the model or an option is not supported, a matrix product was not delegated, or an engine
            deviates from PyTorch by more than :data:`TOLERANCE`.
    """
    if out.exists():
        raise ExportError(f"{out} exists already; remove it or choose another --out")
    progress(f"reading {model}")
    checkpoint = Checkpoint(model)
    networks, task = _networks(checkpoint, tasks, target)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write(checkpoint, networks, task, target, partial, progress)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Bundle(out)


def _networks(checkpoint: Checkpoint, tasks: Mapping[str, Task], target: Target) -> tuple[list[Network], Task]:
    """The network in every shape, the largest first, and the task in the form that the model does best."""
    family = find_family(checkpoint)
    lengths = sorted(set(target.lengths), reverse=True)
    architectures = {length: family.describe(checkpoint, length) for length in lengths}
    largest = architectures[lengths[0]]
    task = with_special_tokens(checkpoint, choose_form(dict(tasks), largest.forms, checkpoint.name))
    if task.form == GENERATION and target.answer_tokens:
        task = replace(task, answer_tokens=target.answer_tokens)
    check_lengths(checkpoint, largest, task, target)
    check_tensors(checkpoint, largest)
    check_tokenizer(checkpoint, largest)
    if target.adapters is not None:
        architectures = {n: adapt(a, checkpoint, target.adapters) for n, a in architectures.items()}
    batches, groups = sorted(set(target.batches), reverse=True), sorted({1, *target.groups})
    networks = [
        build_network(checkpoint, architectures[length], task, target, count, batch, length)
        for count, length, batch in product(groups, lengths, batches)
    ]
    check_trained(networks[0], target)
    return networks, task


def _write(
    checkpoint: Checkpoint,
    networks: Sequence[Network],
    task: Task,
    target: Target,
    folder: Path,
    progress: Progress,
) -> None:
    progress("writing weights")
    _write_weights(folder, networks[0])
    checkpoint.tokenizer.save(str(folder / TOKENIZER))
    shares: dict[tuple[str, str], float] = {}
    shapes = tuple(_lower(network, target, folder, shares, progress) for network in networks)
    stages = networks[0].stages
    checks = tuple(Check({name: shares[stage.graph, name] for name in target.formats}, {}) for stage in stages)
    manifest = Manifest(
        model={
            "name": checkpoint.name,
            "family": checkpoint.config.model_type,
            "source": str(checkpoint.folder.resolve()),
            "hash": checkpoint.hash,
            "config": file_hash(checkpoint.folder / CONFIG),
        },
        task=task,
        embedding=networks[0].embedding,
        output=networks[0].output,
        tensors=tuple(tensor.spec for tensor in networks[0].tensors.values()),
        stages=stages,
        decoder=networks[0].decoder,
        adapters=AdapterSpec(target.adapters.rank, target.adapters.alpha) if target.adapters else None,
        shapes=shapes,
        checks=checks,
        files={path.name: file_hash(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST},
    )
    manifest.write(folder)
    bundle = Bundle(folder)
    Encoder(bundle).encode(dict.fromkeys(task.fields, "a"))  # a template longer than the limit is said now
    deviations: dict[str, list[float]] = {}
    for name in target.formats:
        progress(f"comparing {name} with PyTorch")
        with quiet():
            deviations[name] = compare(bundle, networks, name)
        for stage, deviation in zip((*stages, stages[-1]), deviations[name], strict=False):
            if not deviation <= TOLERANCE:
                raise ExportError(
                    f"{name} deviates from PyTorch by {deviation:.1e} at '{stage.name}', more than"
                    f" {TOLERANCE:.0e}; leave this engine out or report the model"
                )
    found = ({name: deviations[name][index] for name in target.formats} for index in range(len(stages)))
    checks = tuple(replace(check, deviation=d) for check, d in zip(checks, found, strict=True))
    replace(manifest, checks=checks).write(folder)


def _write_weights(folder: Path, network: Network) -> None:
    """All tensors, those of odd sizes last: the others then start where engines can use them as they lie."""
    arrays = {
        name: (tensor, *array)
        for tensor in network.tensors.values()
        for name, array in layout(tensor.spec.name, tensor.spec.shape, tensor.spec.dtype).items()
    }

    def unaligned(name: str) -> bool:
        _, shape, dtype = arrays[name]
        return int(np.prod(shape)) * dtype.itemsize % ALIGNMENT != 0

    order = sorted(arrays, key=unaligned)
    made = _Made()
    write_tensors(
        folder / WEIGHTS,
        {name: arrays[name][1] for name in order},
        (made.array(name, arrays[name][0]) for name in order),
        {},
        dtypes={name: arrays[name][2] for name in order},
    )


class _Made:
    """Makes tensors as they are stored, each once though it may consist of two arrays."""

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}

    def array(self, name: str, tensor: Tensor) -> np.ndarray:
        """One array of a tensor. Raises ExportError when a number is beyond the type's range."""
        if name not in self._arrays:
            spec = tensor.spec
            matrix = np.ascontiguousarray(tensor.load())
            if spec.dtype in QUANTISED:
                codes = quantise(matrix, spec.dtype)
                self._arrays |= {spec.name: codes.codes, spec.name + SCALES: codes.scales}
            else:
                self._arrays[spec.name] = _rounded(spec.name, matrix, spec.dtype)
        return self._arrays.pop(name)


def _rounded(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """A tensor as float32 or 16 bits, rounded to the nearest."""
    if dtype == "float32":
        return array
    rounded = torch.from_numpy(array).to(getattr(torch, dtype))
    if not bool(torch.isfinite(rounded).all()):
        raise ExportError(f"'{name}' has numbers beyond the range of {dtype}; store the weights as bfloat16 or float32")
    return rounded.view(torch.int16).numpy().view(DTYPES[dtype])


def _lower(
    network: Network, target: Target, folder: Path, shares: dict[tuple[str, str], float], progress: Progress
) -> Shape:
    """Lower every graph of a network; notes the smallest delegated shares."""
    size = f"{network.batch}x{network.length}" + (f"x{network.groups}" if network.groups > 1 else "")
    graphs: dict[str, GraphSpec] = {}
    hidden = network.feeds["rows"]
    for stage in network.all_stages:
        if stage.graph in graphs:
            continue
        piece = network.graphs[stage.graph]
        if stage == network.decoder:
            hidden = graphs[network.stages[-2].graph].outputs[0]
        tensors = [network.shape(index) for index in stage.tensors]
        feeds = [hidden if feed == HIDDEN else network.feeds[feed] for feed in piece.feeds]
        progress(f"tracing {stage.graph} {size}")
        try:
            example = [*(torch.ones(shape) for shape in feeds), *(torch.zeros(shape) for shape in tensors)]
            program = export_program(piece, example)
            with torch.inference_mode():
                outputs = tuple(tuple(out.shape) for out in piece(*example))
        except (RuntimeError, ValueError, ZeroDivisionError) as error:
            reason = str(error).strip().splitlines()[-1][:200]
            raise ExportError(
                f"'{stage.graph}' cannot be computed as the model's config says ({reason}); is config.json the weights'"
                " own, and is the batch one that fits into memory?"
            ) from None
        files: dict[str, str] = {}
        for name in target.formats:
            progress(f"lowering {stage.graph} {size} to {name}")
            files[name], share = lower(program, name, folder, f"{stage.graph}-{size}")
            if share < 1.0:
                raise ExportError(
                    f"{name} delegates only {share:.1%} of the matrix work of '{stage.graph}', which would run slowly;"
                    " leave this engine out or report the model"
                )
            shares[stage.graph, name] = min(share, shares.get((stage.graph, name), 1.0))
        graphs[stage.graph] = GraphSpec(stage.graph, piece.feeds, outputs, count_flops(piece, example), files)
        hidden = outputs[0]
    return Shape(network.batch, network.length, network.groups, network.feeds, graphs)
