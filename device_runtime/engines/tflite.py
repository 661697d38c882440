"""tflite-runtime: the older interpreter, for machines that ai-edge-litert has no wheel for. Slower, and it copies.

Its last release, 2.14, wants numpy below 2. Its XNNPACK does not take matrix products of two inputs, so that they run
on the interpreter's own kernels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedspzo.device_runtime.engines.protocol import Constants, cannot_load, cannot_run
from fedspzo.device_runtime.errors import EngineError, install_hint

try:
    from tflite_runtime.interpreter import Interpreter
except ImportError as missing:
    raise EngineError(
        "engine.not-installed", f"tflite-runtime cannot be imported ({missing}); {install_hint('tflite')}"
    ) from None


class TFLiteGraph:
    """A .tflite graph in the interpreter; inputs and outputs are copied."""

    def __init__(self, interpreter: Any) -> None:
        self._interpreter = interpreter
        self._inputs = _in_order(interpreter.get_input_details())
        self._outputs = _in_order(interpreter.get_output_details())

    def run(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        """See :class:`fedspzo.device_runtime.engines.protocol.StageGraph`."""
        try:
            for index, array in zip(self._inputs, inputs, strict=True):
                self._interpreter.set_tensor(index, array)
            self._interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise cannot_run("tflite-runtime", error) from None
        for index, out in zip(self._outputs, outputs, strict=True):
            out[...] = self._interpreter.get_tensor(index)


def _in_order(ports: list[dict[str, Any]]) -> list[int]:
    """Tensor indices of a graph's inputs or outputs by the number at the end of their names."""
    return [port["index"] for port in sorted(ports, key=lambda port: int(re.findall(r"\d+", port["name"])[-1]))]


class TFLiteEngine:
    """Runs .tflite graphs on the CPU with tflite-runtime."""

    name = "tflite"
    format = "litert"
    takes_constants = False

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def load(self, path: Path, constants: Constants | None = None) -> TFLiteGraph:
        """See :class:`fedspzo.device_runtime.engines.protocol.Engine`."""
        try:
            interpreter = Interpreter(model_path=str(path), num_threads=self._threads)
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise cannot_load("tflite-runtime", path, error) from None
        return TFLiteGraph(interpreter)


def create(threads: int) -> TFLiteEngine:
    """The tflite-runtime engine."""
    return TFLiteEngine(threads)
