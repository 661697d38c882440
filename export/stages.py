"""Runs a bundle's stages on an engine, one at a time, with no other stage's weights in memory."""

from __future__ import annotations

import gc
from math import prod

import numpy as np

from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.arrays import ScratchArrays
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import StageSpec
from fedspzo.device_runtime.model.stored import Stored, read, widen, widened
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.export.modules.heads import is_stacked
from fedspzo.export.network.build import Network

#: Bytes of a graph's weights from which on the memory of what came before is given back first.
_LARGE = 1 << 26


class StageWeights:
    """The weights of one stage at a time, read from the bundle's files.

    Attributes:
        bundle: the bundle.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._scratch = ScratchArrays()  # engines keep what they know of an array: the same ones serve all stages
        self._loaded: dict[int, np.ndarray] = {}
        self._use: tuple[int, float] = (1, 0.0)

    @property
    def size(self) -> int:
        """Bytes of what is held."""
        return sum(array.nbytes for array in self._loaded.values())

    def load(self, stage: StageSpec, network: Network, noise: float) -> None:
        """Hold the weights of a stage instead of those held before, with noise on its adapters and labels."""
        use = network.size.groups, noise
        for index in list(self._loaded) if use != self._use else self._loaded.keys() - set(stage.tensors):
            self._scratch.give(self._loaded.pop(index))
        self._use = use
        for index in stage.tensors:
            if index not in self._loaded:
                spec = self.bundle.manifest.tensors[index]
                self._loaded[index] = self._scratch.take(network.shape(index))
                if is_stacked(spec):
                    random = np.random.default_rng(index).standard_normal(self._loaded[index].shape, np.float32)
                    self._loaded[index][...] = widened(self.read(index)) + noise * random
                else:
                    widen(self.read(index), self._loaded[index])

    def read(self, index: int) -> Stored:
        """A tensor as it is stored, read without mapping the file's pages."""
        spec = self.bundle.manifest.tensors[index]
        return read(self.bundle.tensor_file(spec), spec.name, spec.dtype)

    def tensor(self, index: int) -> np.ndarray:
        """See :class:`fedspzo.device_runtime.step.runner.ModelWeights`."""
        return self._loaded[index]


class StageRunner:
    """Runs a bundle's stages on an engine, with the weights of one stage in memory.

    Attributes:
        bundle: the bundle.
        engine: the engine's name.
    """

    def __init__(self, bundle: Bundle, engine: str) -> None:
        self.bundle, self.engine = bundle, engine
        self._graph = ""
        self._renew()

    @property
    def forward(self) -> Forward[StageWeights]:
        """What makes batches."""
        return self._forward

    def load(self, stage: StageSpec, network: Network, noise: float = 0.0) -> Forward[StageWeights]:
        """What runs a stage, with its weights; see :meth:`StageWeights.load`."""
        coming = 4 * sum(prod(network.shape(index)) for index in stage.tensors)
        if stage.graph != self._graph and max(coming, self._forward.weights.size) >= _LARGE:
            # The engine and the scratch arrays keep as much memory as the last graph took, and so does lowering.
            self._renew()
            gc.collect()
        self._graph = stage.graph
        self._forward.weights.load(stage, network, noise)
        # Graphs with constants hold a copy of them: those of one stage at a time.
        return Forward(self._runner, self._forward.weights) if stage.constants else self._forward

    def _renew(self) -> None:
        self._runner = create_engine(self.engine)
        self._forward = Forward(self._runner, StageWeights(self.bundle))
