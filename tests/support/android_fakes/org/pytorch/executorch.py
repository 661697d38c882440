"""The Java classes of ``executorch-android``, over the real ExecuTorch of this machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from executorch.runtime import Runtime
from java.nio import FloatArray, FloatBuffer


class Tensor:
    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    @staticmethod
    def fromBlob(buffer: FloatBuffer, shape: list[int]) -> Tensor:
        assert isinstance(buffer, FloatBuffer)
        return Tensor(buffer.values.reshape(shape))

    def getDataAsFloatArray(self) -> FloatArray:
        return FloatArray(self.values)


class EValue:
    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    @staticmethod
    def from_(tensor: Tensor) -> EValue:
        return EValue(tensor)

    def toTensor(self) -> Tensor:
        return self._tensor


class Module:
    LOAD_MODE_MMAP = 1

    def __init__(self, method: Any) -> None:
        self._method = method

    @staticmethod
    def load(path: str, mode: int, threads: int) -> Module:
        assert (mode, threads >= 1) == (Module.LOAD_MODE_MMAP, True)
        return Module(Runtime.get().load_program(path).load_method("forward"))

    def forward(self, *inputs: EValue) -> list[EValue]:
        results = self._method.execute([torch.from_numpy(value.toTensor().values) for value in inputs])
        return [EValue(Tensor(result.numpy())) for result in results]
