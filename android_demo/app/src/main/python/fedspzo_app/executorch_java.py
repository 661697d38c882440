"""ExecuTorch through the Java classes of ``org.pytorch:executorch-android``, whose C++ symbols are hidden.

Inputs are used where they lie: a direct ``FloatBuffer`` is laid over each array. Results are copied once, from Java's
array into the caller's. A graph whose constants lie in a file of their own cannot be loaded this way.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedspzo.device_runtime.engines.protocol import Constants, cannot_load, cannot_run, check_count
from fedspzo.device_runtime.errors import EngineError


class ExecuTorchGraph:
    """A loaded .pte graph.

    A tensor over an array's memory is made at the array's first use and kept with the array: callers work in the same
    arrays over and over.
    """

    def __init__(self, module: Any, classes: _Classes) -> None:
        self._module, self._classes = module, classes
        self._inputs: dict[int, tuple[np.ndarray, Any]] = {}
        self._outputs: dict[int, tuple[np.ndarray, Any]] = {}

    def run(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        """See :class:`fedspzo.device_runtime.engines.protocol.StageGraph`."""
        given = [self._value(array) for array in inputs]
        try:
            results = self._module.forward(*given)
        except Exception as error:  # Java's exceptions are not known here
            raise cannot_run("ExecuTorch", error) from None
        check_count(len(results), outputs)
        for result, out in zip(results, outputs, strict=True):
            values = result.toTensor().getDataAsFloatArray()
            if len(values) != out.size:
                raise EngineError(
                    "engine.result-size",
                    f"the graph gives {len(values)} numbers where float32 {out.shape} was wanted; import a newer"
                    " bundle",
                )
            buffer = self._buffer(out)
            buffer.rewind()
            buffer.put(values)

    def _value(self, array: np.ndarray) -> Any:
        known = self._inputs.get(id(array))
        if known is None:
            tensor = self._classes.tensor.fromBlob(self._classes.over(array), list(array.shape))
            known = self._inputs[id(array)] = (array, self._classes.value.from_(tensor))
        return known[1]

    def _buffer(self, array: np.ndarray) -> Any:
        known = self._outputs.get(id(array))
        if known is None:
            known = self._outputs[id(array)] = (array, self._classes.over(array))
        return known[1]


class _Classes:
    """The Java classes that take part. Raises EngineError when the app was built without ExecuTorch."""

    def __init__(self) -> None:
        try:
            from java.nio import ByteOrder
            from org.fedspzo.app import Buffers
            from org.pytorch.executorch import EValue, Module, Tensor
        except ImportError as error:
            raise EngineError(
                "engine.not-in-app",
                f"this app was built without ExecuTorch ({error}); build it with -Pexecutorch, or import a bundle for"
                " the engine litert",
            ) from None
        self.module, self.tensor, self.value = Module, Tensor, EValue
        self._buffers, self._order = Buffers, ByteOrder.nativeOrder()

    def over(self, array: np.ndarray) -> Any:
        """A FloatBuffer over an array's memory, which the caller keeps alive. Raises EngineError when it cannot be."""
        if array.dtype != np.float32 or not array.flags.c_contiguous:
            raise EngineError(
                "engine.array-shape",
                f"the graph takes contiguous float32 arrays, not {array.dtype} {array.shape}; import a newer bundle",
            )
        return self._buffers.over(array.ctypes.data, array.nbytes).order(self._order).asFloatBuffer()


class ExecuTorchEngine:
    """Runs .pte graphs on the CPU with XNNPACK."""

    name = format = "executorch"
    takes_constants = False

    def __init__(self, threads: int) -> None:
        self._classes, self._threads = _Classes(), threads

    def load(self, path: Path, constants: Constants | None = None) -> ExecuTorchGraph:
        """See :class:`fedspzo.device_runtime.engines.protocol.Engine`."""
        module = self._classes.module
        try:
            return ExecuTorchGraph(module.load(str(path), module.LOAD_MODE_MMAP, self._threads), self._classes)
        except Exception as error:  # Java's exceptions are not known here
            raise cannot_load("ExecuTorch", path, error) from None


def create(threads: int) -> ExecuTorchEngine:
    """The ExecuTorch engine. Raises EngineError when the app was built without it."""
    return ExecuTorchEngine(threads)
