"""ExecuTorch through its Python API, where there is no C++ compiler: it needs torch, and holds the GIL in a run."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedspzo.device_runtime.engines.protocol import Constants, cannot_load, cannot_run
from fedspzo.device_runtime.errors import EngineError, install_hint

try:
    import torch
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Method, Runtime
except ImportError as missing:
    raise EngineError(
        "engine.not-installed", f"ExecuTorch cannot be imported ({missing}); {install_hint('executorch,torch')}"
    ) from None


class ExecuTorchGraph:
    """A loaded .pte graph. Inputs are used in place; outputs are copied out."""

    def __init__(self, method: Method) -> None:
        self._method = method

    def run(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        """See :class:`fedspzo.device_runtime.engines.protocol.StageGraph`."""
        try:
            results = self._method.execute([torch.from_numpy(array) for array in inputs])
        except RuntimeError as error:
            raise cannot_run("ExecuTorch", error) from None
        for result, out in zip(results, outputs, strict=True):
            out[...] = result.numpy()


class ExecuTorchEngine:
    """Runs .pte graphs on the CPU with XNNPACK."""

    name = format = "executorch"
    takes_constants = True

    def __init__(self, threads: int) -> None:
        _unsafe_reset_threadpool(threads)
        # Graphs only read their inputs, and some lie in a file mapped read-only.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        self._runtime = Runtime.get()

    def load(self, path: Path, constants: Constants | None = None) -> ExecuTorchGraph:
        """See :class:`fedspzo.device_runtime.engines.protocol.Engine`."""
        if constants and not constants.file.exists():  # ExecuTorch's own words sometimes leave the reason out
            raise cannot_load("ExecuTorch", constants.file, "No such file or directory")
        try:
            method = self._runtime.load_program(path, data_path=constants.file if constants else None).load_method(
                "forward"
            )
        except RuntimeError as error:
            raise cannot_load("ExecuTorch", path, error) from None
        if method is None:
            raise EngineError("engine.no-forward", f"{path} has no method 'forward'; export the bundle again")
        return ExecuTorchGraph(method)


def create(threads: int) -> ExecuTorchEngine:
    """The ExecuTorch engine."""
    return ExecuTorchEngine(threads)
