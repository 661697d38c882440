"""PyTorch as the reference engine: runs the exported programs (.pt2) that other engines' graphs were lowered from."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedspzo.device_runtime.engines.protocol import Constants, cannot_load, cannot_run
from fedspzo.device_runtime.errors import EngineError, install_hint
from fedspzo.device_runtime.model.stored import widened

try:
    import torch
except ImportError as missing:
    raise EngineError(
        "engine.not-installed", f"PyTorch cannot be imported ({missing}); {install_hint('torch')}"
    ) from None


class TorchGraph:
    """A loaded .pt2 program; it takes the constants as its last inputs, in full."""

    def __init__(self, module: torch.nn.Module, constants: Constants | None) -> None:
        self._module = module
        self._constants = constants.matrices if constants else ()

    def run(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        """See :class:`fedspzo.device_runtime.engines.protocol.StageGraph`."""
        with torch.inference_mode():
            try:
                constants = (widened(constant).reshape(constant.shape[-2:]) for constant in self._constants)
                results = self._module(*map(torch.from_numpy, (*inputs, *constants)))
            except (RuntimeError, AssertionError) as error:
                raise cannot_run("PyTorch", error) from None
        for result, out in zip(results, outputs, strict=True):
            out[...] = result.numpy()


class TorchEngine:
    """Runs .pt2 programs in PyTorch on the CPU."""

    name = format = "torch"
    takes_constants = True

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        # Graphs only read their inputs, and some lie in a file mapped read-only.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

    def load(self, path: Path, constants: Constants | None = None) -> TorchGraph:
        """See :class:`fedspzo.device_runtime.engines.protocol.Engine`."""
        try:
            if not zipfile.is_zipfile(path):  # torch would print a page about it
                raise ValueError("it is not an exported program")
            return TorchGraph(torch.export.load(path).module(), constants)
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            raise cannot_load("PyTorch", path, error) from None


def create(threads: int) -> TorchEngine:
    """The PyTorch engine."""
    return TorchEngine(threads)
