"""The bound of a step: the same stages with their weights as constants of the graphs, which engines pack in advance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedspzo.device_runtime.engines.protocol import SUFFIXES, create_engine
from fedspzo.device_runtime.model.arrays import aligned_empty
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import HIDDEN
from fedspzo.device_runtime.step.runner import Batch
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import find_family
from fedspzo.export.lowering.lower import lower, trace
from fedspzo.export.modules.stage_module import StageModule
from fedspzo.export.network.build import Network, Size, build_network
from fedspzo.export.network.target import Target
from fedspzo.export.network.tensors import network_tensors


class Constant(torch.nn.Module):
    """A module with its weights inside: matrices as [out, in], which engines multiply by as fully connected layers."""

    def __init__(self, module: StageModule, weights: list[Tensor]) -> None:
        super().__init__()
        self.module = module
        self.weights = torch.nn.ParameterList(torch.nn.Parameter(weight, requires_grad=False) for weight in weights)

    def forward(self, *feeds: Tensor) -> tuple[Tensor, ...]:
        """Feeds → the outputs."""
        return self.module(*feeds, *self.weights)


class StaticModel:
    """A bundle's network with static weights, stage by stage, for batches of one shape."""

    def __init__(self, checkpoint: Path, bundle: Bundle, engine: str, threads: int, batch: Batch) -> None:
        """Lower every stage with its weights, and load it.

        Args:
            checkpoint: what the bundle was exported from.
            batch: gives the shape and the feeds.
        """
        self._batch = batch
        network = _network(checkpoint, bundle, engine, batch)
        runner = create_engine(engine, threads)
        tensors = list(network.tensors.values())
        folder = checkpoint.parent / f"static-{batch.shape.batch}x{batch.shape.length}"
        folder.mkdir()
        self._stages = []
        for number, stage in enumerate(network.stages):
            module, graph = network.graphs[stage.graph], batch.shape.graphs[stage.graph]
            weights = []
            for index in stage.tensors:
                weight = torch.from_numpy(np.array(tensors[index].load()))
                weights.append(weight[0].T.contiguous() if tensors[index].spec.transposed else weight)
            rows = batch.feeds["rows"]
            example = [torch.from_numpy(rows if feed == HIDDEN else batch.feeds[feed]) for feed in module.feeds]
            program = trace(Constant(module, weights), example, [], engine)
            template, delegated = lower(program, [], engine)
            if delegated < 1.0:
                raise SystemExit(f"{engine} delegates only {delegated:.0%} of '{stage.name}' with static weights")
            file = folder / f"{number}{SUFFIXES[engine]}"
            file.write_bytes(template.instance([]))
            outputs = [aligned_empty(shape) for shape in (*graph.outputs, *graph.kept)]
            self._stages.append((runner.load(file), module.feeds, outputs))

    def forward(self) -> float:
        """Run all stages; the mean loss."""
        hidden = self._batch.feeds["rows"]
        for graph, feeds, outputs in self._stages:
            graph.run([hidden if feed == HIDDEN else self._batch.feeds[feed] for feed in feeds], outputs)
            hidden = outputs[0]
        return float(hidden.mean())


def _network(checkpoint: Path, bundle: Bundle, engine: str, batch: Batch) -> Network:
    opened, shape = Checkpoint(str(checkpoint)), batch.shape
    architecture = find_family(opened).describe(opened, shape.length)
    target = Target([engine], [shape.batch], [shape.length], freeze=["labels"])
    tensors = network_tensors(opened, architecture, bundle.manifest.task, target)
    return build_network(architecture, bundle.manifest.task, tensors, Size(1, shape.batch, shape.length))
