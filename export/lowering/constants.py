"""Quantised matrices as constants of graphs, multiplied by each engine's integer kernels (activations go to 8 bits).

A graph is lowered once, as a template with random matrices; each stage then gets a copy of a few kilobytes in which the
places of its own matrices stand in for the template's. They lie outside the graphs, once for all shapes of batches: for
LiteRT in the bundle's tensor file, for ExecuTorch in a ``.ptd`` file for each stage.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fedspzo.device_runtime.errors import ExportError
from fedspzo.device_runtime.model.stored import GROUP, Quantised, quantise, widened
from fedspzo.export.layout import Constant
from fedspzo.export.lowering.tflite_file import LiteRTModel
from fedspzo.export.modules.stage_module import StageModule


class TemplateGraph(Protocol):
    """A lowered graph in which the places of constants can be exchanged."""

    def instance(self, constants: Sequence[Constant]) -> bytes:
        """The graph's file with other matrices of the same shapes and types."""


def random_matrix(shape: tuple[int, ...], dtype: str, seed: int) -> Quantised:
    """A matrix [out, in] to lower a template with.

    Each scale is a power of two and each group has the largest code, so that any tool that quantises what the codes
    stand for finds just these.
    """
    random = np.random.default_rng(seed)
    top, group = (127, shape[-1]) if dtype == "int8" else (7, GROUP)
    codes = random.integers(-top, top + 1, (shape[-2], shape[-1] // group, group)).astype(np.float32)
    codes[..., 0] = top
    codes *= np.exp2(random.integers(-7, -4, (*codes.shape[:2], 1))).astype(np.float32)
    return quantise(codes.reshape(shape[-2:]), dtype)


class InFull(torch.nn.Module):
    """A module whose last inputs are fixed, as float32: what LiteRT's tools quantise."""

    def __init__(self, module: StageModule, matrices: Sequence[Quantised]) -> None:
        super().__init__()
        self.module = module
        self.fixed = torch.nn.ParameterList(
            torch.nn.Parameter(torch.from_numpy(widened(matrix).reshape(matrix.shape[-2:])), requires_grad=False)
            for matrix in matrices
        )

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """See :class:`fedspzo.export.modules.stage_module.StageModule`."""
        outputs: tuple[Tensor, ...] = self.module(*inputs, *self.fixed)
        return outputs


class InCodes(InFull):
    """A module whose last inputs are fixed, as torchao's quantised tensors: what ExecuTorch's XNNPACK takes."""

    def __init__(self, module: StageModule, matrices: Sequence[Quantised]) -> None:
        super().__init__(module, [])
        self.fixed = torch.nn.ParameterList(
            torch.nn.Parameter(torchao_tensor(matrix), requires_grad=False) for matrix in matrices
        )


def torchao_tensor(matrix: Quantised) -> Tensor:
    """A matrix as torchao has it, multiplied with activations of 8 bits."""
    from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import (
        IntxUnpackedToInt8Tensor,
        IntxUnpackedToInt8TensorActivationQuantization,
    )

    ones = Quantised(matrix.codes, np.ones_like(matrix.scales))
    scales = torch.from_numpy(matrix.scales.astype(np.float32)).reshape(matrix.shape[-2], -1)
    quantised: Tensor = IntxUnpackedToInt8Tensor(
        qdata=torch.from_numpy(widened(ones).astype(np.int8)).reshape(matrix.shape[-2:]),
        scale=scales,
        zero_point=torch.zeros(scales.shape, dtype=torch.int8),
        target_dtype=torch.int8 if matrix.codes.dtype == np.int8 else _INT4,
        block_size=(1, matrix.shape[-1] // scales.shape[1]),
        dtype=torch.float32,
        activation_quantization=IntxUnpackedToInt8TensorActivationQuantization.INT8_ASYM_PER_TOKEN,
    )
    return quantised


class LiteRTTemplate:
    """A .tflite graph whose constants are external buffers: parts of a file beside it."""

    def __init__(self, content: bytes, matrices: Sequence[Quantised]) -> None:
        """Raises ExportError when LiteRT's quantiser made other codes of the template's matrices."""
        self._model = LiteRTModel(content)
        known = {matrix.codes.tobytes(): index for index, matrix in enumerate(matrices)}
        placed: dict[int, tuple[Any, Any]] = {}
        for graph, weight, _ in self._model.fully_connected():
            if any(weight is other for other, _ in placed.values()):  # a matrix that is applied twice
                continue
            index = known.get(self._model.take(weight))
            details = weight.quantization.details
            scales = graph.tensors[details.scales] if details else None  # those of 8 bits are in the quantization
            if index is None or (scales and self._model.take(scales) != matrices[index].scales.tobytes()):
                raise _changed("LiteRT")
            placed[index] = weight, scales
        if len(placed) != len(matrices):
            raise _changed("LiteRT")
        self._placed = [placed[index] for index in range(len(matrices))]
        self._model.keep_rest()

    def instance(self, constants: Sequence[Constant]) -> bytes:
        """See :class:`TemplateGraph`."""
        self._model.clear()
        for (weight, scales), constant in zip(self._placed, constants, strict=True):
            self._model.place(weight, constant.file, constant.codes_at, constant.matrix.codes.nbytes)
            if scales is None:
                weight.quantization.scale = constant.matrix.scales.reshape(-1)
            else:
                self._model.place(scales, constant.file, constant.scales_at, constant.matrix.scales.nbytes)
        return self._model.content()


#: Not in torch's type stubs.
_INT4: torch.dtype = vars(torch)["int4"]


def _changed(engine: str) -> ExportError:
    return ExportError("export.matrix-changed", f"{engine}'s tools changed a quantised matrix; leave this engine out")


def quantise_litert(source: Path, dtype: str) -> bytes:
    """A float .tflite graph with its fully connected layers in integers."""
    from ai_edge_quantizer import qtyping, quantizer, recipe_manager

    recipes = recipe_manager.RecipeManager()
    recipes.add_dynamic_config(
        regex=".*",
        operation_name=qtyping.TFLOperationName.FULLY_CONNECTED,
        num_bits=8 if dtype == "int8" else 4,
        granularity=getattr(qtyping.QuantGranularity, "CHANNELWISE" if dtype == "int8" else f"BLOCKWISE_{GROUP}"),
    )
    result = quantizer.Quantizer(str(source), recipes.get_quantization_recipe()).quantize()
    return bytes(result.quantized_model)


class ExecuTorchTemplate:
    """A .pte graph whose constants are looked up in a .ptd file by keys made from their bytes."""

    def __init__(self, content: bytes, matrices: Sequence[Quantised]) -> None:
        """Raises ExportError when ExecuTorch's tools made other keys of the template's matrices."""
        self._content = content
        self._keys = [list(executorch_data(matrix)) for matrix in matrices]
        if not all(key in content for keys in self._keys for key in keys):
            raise _changed("ExecuTorch")

    def instance(self, constants: Sequence[Constant]) -> bytes:
        """See :class:`TemplateGraph`."""
        content = self._content
        for keys, constant in zip(self._keys, constants, strict=True):
            for old, new in zip(keys, executorch_data(constant.matrix), strict=True):
                content = content.replace(old, new)
        return content


def executorch_data(matrix: Quantised) -> Mapping[bytes, bytes]:
    """What ExecuTorch's XNNPACK keeps of a matrix: codes and scales by their keys."""
    if matrix.codes.dtype == np.int8:
        codes, scales = matrix.codes.tobytes(), matrix.scales.tobytes()
    else:
        codes = (matrix.codes ^ 0x88).tobytes()  # it has them plus 8, and scales as bfloat16
        scales = (matrix.scales.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return {_key(codes): codes, b"scale_" + _key(scales): scales}


def _key(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def write_executorch_data(file: Path, matrices: Sequence[Quantised]) -> None:
    """Write matrices to a .ptd file."""
    from executorch.exir._serialize.data_serializer import DataEntry, DataPayload
    from executorch.extension.flat_tensor.serialize.serialize import FlatTensorSerializer

    entries = {key: content for matrix in matrices for key, content in executorch_data(matrix).items()}
    named = {key.decode(): DataEntry(index, 16, None) for index, key in enumerate(entries)}
    file.write_bytes(bytes(FlatTensorSerializer().serialize(DataPayload(list(entries.values()), named))))
