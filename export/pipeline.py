"""The export pipeline: checkpoint and task in, checked bundle out, one tensor and one stage in memory at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

from fedspzo.device_runtime.data.encoder import Encoder
from fedspzo.device_runtime.errors import ExportError
from fedspzo.device_runtime.model.bundle import SOURCE, Bundle, file_hash
from fedspzo.device_runtime.model.manifest import BASE, MANIFEST, TOKENIZER, Check, Comparison, Manifest
from fedspzo.device_runtime.model.task import GENERATION, SIMILARITY, Task
from fedspzo.export.calibrate import compensate_base
from fedspzo.export.check.whole import check_bundle
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.checks import check_lengths, check_tensors, check_tokenizer, check_trained
from fedspzo.export.compare import compare
from fedspzo.export.families import Architecture, Family, find_family
from fedspzo.export.layout import write_weights
from fedspzo.export.lowering.graphs import GraphWriter, Progress
from fedspzo.export.network.adapters import Cores, adapt
from fedspzo.export.network.build import Network, Size, build_network, can_continue
from fedspzo.export.network.target import COMPENSATED, Target
from fedspzo.export.network.tensors import network_tensors
from fedspzo.export.network.tokens import with_special_tokens
from fedspzo.export.network.vectors import forms, with_pooling, with_prompt
from fedspzo.export.output import appearing
from fedspzo.export.prior.axis import steep_axis
from fedspzo.export.prior.examples import describe_prior
from fedspzo.export.prior.informed import informed
from fedspzo.export.quiet import quiet
from fedspzo.export.stages import StageRunner
from fedspzo.export.tasks import choose_form

#: Largest difference between an engine's output and PyTorch's that an export may have, relative to the largest value.
TOLERANCE = 1e-4
#: The same for stages with quantised matrices, whose activations go to 8 bits.
INTEGER_TOLERANCE = 0.05


def export_bundle(
    model: str,
    tasks: Mapping[str, Task],
    target: Target,
    out: Path,
    progress: Progress = lambda step: None,
    families: Sequence[Family] = (),
    check: bool = True,
) -> Bundle:
    """Export a model for a task.

    Args:
        model: see :class:`fedspzo.export.checkpoint.Checkpoint`.
        tasks: the task in the forms that it has.
        out: the bundle's folder; it must not exist, and appears only when all checks have passed.
        progress: told what is being done.
        families: your own ones, asked before those that come with the project.
        check: whether to compare the whole bundle with transformers.

    Raises:
        ExportError: the model or an option is not supported, a matrix product was not delegated, an engine deviates
            from PyTorch by more than :data:`TOLERANCE`, or :data:`INTEGER_TOLERANCE`, or transformers gives other
            tokens or scores.
    """
    with appearing(out) as folder:
        progress(f"reading {model}")
        checkpoint = Checkpoint(model)
        networks, task, target = _networks(checkpoint, tasks, target, families, progress)
        if task.chat is not None and task.chat.date:
            progress(f"fixing the date that the chat template prints: {task.chat.date[:10]}")
        rounding = _write_weights(checkpoint, networks[0], target, families, folder, progress)
        _write(checkpoint, networks, task, target, rounding, folder, progress, check)
    return Bundle(out)


def _networks(
    checkpoint: Checkpoint, tasks: Mapping[str, Task], target: Target, families: Sequence[Family], progress: Progress
) -> tuple[list[Network], Task, Target]:
    """The network in every shape, the largest first, those for the next token last; the task in its best form; and the
    target, whose cores have their bases."""
    family = find_family(checkpoint, families)
    lengths = sorted(set(target.lengths), reverse=True)
    architectures = {length: family.describe(checkpoint, length) for length in lengths}
    largest = architectures[lengths[0]]
    task = with_special_tokens(checkpoint, choose_form(dict(tasks), forms(checkpoint, largest), checkpoint.name))
    if task.form == SIMILARITY:
        task = with_prompt(checkpoint, task)
        architectures = {length: with_pooling(checkpoint, found) for length, found in architectures.items()}
        largest = architectures[lengths[0]]
    if task.form == GENERATION and target.answer_tokens:
        task = replace(task, answer_tokens=target.answer_tokens)
    check_lengths(checkpoint, largest, task, target)
    check_tensors(checkpoint, largest)
    check_tokenizer(checkpoint, largest)
    if target.adapters is not None:
        architectures = {n: adapt(a, checkpoint, target.adapters) for n, a in architectures.items()}
        largest = architectures[lengths[0]]

    def describe(length: int) -> Architecture:
        found = family.describe(checkpoint, length)
        return with_pooling(checkpoint, found) if task.form == SIMILARITY else found

    def axis() -> np.ndarray:
        progress("finding what the inputs of the label words have in common")
        return steep_axis(checkpoint, describe, task, lengths[0])

    tensors = network_tensors(checkpoint, largest, task, target, axis)
    batches, groups = sorted(set(target.batches), reverse=True), sorted({1, *target.groups})
    networks = [
        build_network(architectures[length], task, tensors, Size(count, batch, length))
        for count, length, batch in product(groups, lengths, batches)
    ]
    check_trained(networks[0], target)
    if can_continue(largest, task):
        networks += [
            build_network(largest, task, tensors, Size(1, batch, lengths[0]), continues=True)
            for batch in reversed(batches)
        ]
    if isinstance(target.adapters, Cores):
        cores = informed(target.adapters, checkpoint, describe, lengths[0], task, progress)
        target = replace(target, adapters=cores)
        tensors = network_tensors(checkpoint, largest, task, target, axis)
        networks = [replace(network, tensors=tensors) for network in networks]
    return networks, task, target


def _write_weights(
    checkpoint: Checkpoint,
    network: Network,
    target: Target,
    families: Sequence[Family],
    folder: Path,
    progress: Progress,
) -> str:
    """Write the tensor files; returns how matrices of 4 bits were rounded, "" where there are none."""
    progress("writing weights")
    tensors = network.tensors
    write_weights(folder, list(tensors.values()), (network.embedding, network.output))
    rounding = target.rounding_of(tensor.spec for tensor in tensors.values())
    if rounding == COMPENSATED:
        family = find_family(checkpoint, families)
        compensate_base(checkpoint, family, tensors, folder, target.calibration, progress)
    return rounding


def _origins(checkpoint: Checkpoint, target: Target, rounding: str) -> dict[str, str]:
    """What the manifest says of how weights were made, "" for what was not done."""
    origins = {"gguf": checkpoint.gguf, "rounding": rounding}
    if isinstance(cores := target.adapters, Cores):
        origins["prior"] = describe_prior(cores.prior, cores.seed)
        origins["left_out"] = ", ".join(f"{label} ({meant})" for label, meant in sorted(cores.left_out.items()))
    return {name: "".join(filter(str.isprintable, text)) for name, text in origins.items()}


def _write(
    checkpoint: Checkpoint,
    networks: Sequence[Network],
    task: Task,
    target: Target,
    rounding: str,
    folder: Path,
    progress: Progress,
    check: bool,
) -> None:
    checkpoint.texts.write(folder / TOKENIZER)
    graphs = GraphWriter(target, folder, progress)
    shapes = tuple(graphs.write(network) for network in networks if not network.continues)
    continuations = tuple(graphs.write(network, shapes[0]) for network in networks if network.continues)
    stages = networks[0].stages
    checks = tuple(Check(graphs.shares[stage.graph], {}) for stage in stages)
    manifest = Manifest(
        model={
            "name": checkpoint.name if checkpoint.hub else checkpoint.source.resolve().name,
            "family": checkpoint.config.model_type,
            "hub": checkpoint.hub,
            "hash": checkpoint.hash,
            "config": checkpoint.config_hash,
            **{name: known for name, known in _origins(checkpoint, target, rounding).items() if known},
            **({"modules": checkpoint.sentence.hash} if task.form == SIMILARITY and checkpoint.sentence else {}),
        },
        task=task,
        embedding=networks[0].embedding,
        output=networks[0].output,
        tensors=tuple(tensor.spec for tensor in networks[0].tensors.values()),
        stages=stages,
        decoder=networks[0].decoder,
        adapters=target.adapters.spec if target.adapters else None,
        shapes=shapes,
        checks=checks,
        continuations=continuations,
        base=file_hash(folder / BASE) if (folder / BASE).exists() else "",
        files={path.name: file_hash(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST},
        sizes={path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name != MANIFEST},
        least=target.least,
        enrolment_key=target.enrolment_key.hex(),
    )
    manifest.write(folder)
    (folder / SOURCE).write_text(str(checkpoint.source.resolve()), encoding="utf-8")
    bundle = Bundle(folder)
    Encoder(bundle).encode(dict.fromkeys(task.fields, "a"))  # a template longer than the limit is said now
    deviations: dict[str, list[float]] = {}
    runners = [StageRunner(bundle, name) for name in target.formats]
    for name, runner in zip(target.formats, runners, strict=True):
        progress(f"comparing {name} with PyTorch")
        with quiet():
            deviations[name] = compare(runner, networks)
        for stage, deviation in zip((*stages, stages[-1]), deviations[name], strict=False):
            tolerance = INTEGER_TOLERANCE if stage.constants else TOLERANCE
            if not deviation <= tolerance:
                raise ExportError(
                    "export.deviates",
                    f"{name} deviates from PyTorch by {deviation:.1e} at '{stage.name}', more than {tolerance:.0e};"
                    " leave this engine out",
                )
    comparison = Comparison(skipped="as asked")
    if check:
        progress("comparing the bundle with transformers")
        comparison = check_bundle(checkpoint, networks, runners, TOLERANCE)
    found = ({name: deviations[name][index] for name in target.formats} for index in range(len(stages)))
    checks = tuple(replace(check, deviation=d) for check, d in zip(checks, found, strict=True))
    files, sizes = dict(manifest.files), dict(manifest.sizes)
    if BASE in files and set(target.formats) == {"executorch"}:  # which has files of its own
        (folder / BASE).unlink()
        del files[BASE], sizes[BASE]
    replace(manifest, checks=checks, comparison=comparison, files=files, sizes=sizes).write(folder)
