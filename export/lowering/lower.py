"""Lowering of a module to each engine's format, and the share of its matrix work that the engine's delegate takes."""

from __future__ import annotations

import io
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.utils.flop_counter import FlopCounterMode

from fedspzo.device_runtime.errors import ExportError, install_hint
from fedspzo.device_runtime.model.stored import Quantised
from fedspzo.export.layout import Constant
from fedspzo.export.lowering.constants import (
    ExecuTorchTemplate,
    InCodes,
    InFull,
    LiteRTTemplate,
    TemplateGraph,
    quantise_litert,
)
from fedspzo.export.modules.stage_module import StageModule
from fedspzo.export.quiet import quiet


@dataclass(frozen=True)
class Plain:
    """A lowered graph all of whose weights are inputs."""

    content: bytes

    def instance(self, constants: Sequence[Constant]) -> bytes:
        """See :class:`fedspzo.export.lowering.constants.TemplateGraph`."""
        return self.content


def count_flops(module: torch.nn.Module, example: Sequence[torch.Tensor]) -> int:
    """Floating-point operations of the matrix products in one run."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        module(*example)
    return int(counter.get_total_flops())


def trace(
    module: StageModule, example: Sequence[torch.Tensor], matrices: Sequence[Quantised], engine: str
) -> ExportedProgram:
    """A module as an exported program, which an engine's format is lowered from.

    Args:
        module: the module.
        example: inputs of the shapes to lower for, in the module's order, without those that are constants.
        matrices: the constants of the template; for PyTorch, they are inputs nevertheless.
        engine: the format.
    """
    inputs = tuple(example)
    traced: torch.nn.Module = module
    if matrices and engine == "torch":
        inputs = (*inputs, *(torch.zeros(matrix.shape) for matrix in matrices))
    with torch.no_grad(), quiet():
        if matrices and engine != "torch":
            traced = InFull(module, matrices) if engine == "litert" else InCodes(module, matrices)
        return torch.export.export(traced.eval(), inputs, strict=False)


def lower(program: ExportedProgram, matrices: Sequence[Quantised], engine: str) -> tuple[TemplateGraph, float]:
    """Lower a program to an engine's format.

    Returns:
        The graph, and the delegated share of its matrix work, 0 to 1.

    Raises:
        ExportError: the engine's tools are not installed, or did other than what was asked.
    """
    try:
        with quiet():
            return _LOWER[engine](program, matrices)
    except ImportError as missing:
        raise ExportError(
            "export.tools-missing", f"export for {engine} needs its tools ({missing}); {install_hint('export')}"
        ) from None


def _lower_torch(program: ExportedProgram, matrices: Sequence[Quantised]) -> tuple[TemplateGraph, float]:
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # has paths of this machine
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return Plain(buffer.getvalue()), 1.0


def _lower_executorch(program: ExportedProgram, matrices: Sequence[Quantised]) -> tuple[TemplateGraph, float]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
    from executorch.exir.passes import MemoryPlanningPass

    total = sum(_node_flops(node) for node in program.graph.nodes)
    for node in program.graph.nodes:
        if "dequantize_affine" in str(node.target):  # what XNNPACK finds here goes into a file of its own
            node.meta.setdefault("custom", {})["delegate_constant_tag"] = "constants"
    edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    left = sum(_node_flops(node) for node in edge.exported_program().graph.nodes)
    config = ExecutorchBackendConfig(memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False))
    content = edge.to_executorch(config).buffer
    template = ExecuTorchTemplate(content, matrices) if matrices else Plain(content)
    return template, 1.0 - left / total if total else 1.0


_PRODUCTS = ("bmm", "mm", "addmm", "matmul", "linear")


def _node_flops(node: torch.fx.Node) -> int:
    """Operations of a matrix product by its operands' shapes, 0 for anything else."""
    target: Any = node.target
    operator = target.name().removeprefix("aten::").split(".")[0] if hasattr(target, "name") else ""
    if operator not in _PRODUCTS:
        return 0
    shapes = [argument.meta["val"].shape for argument in node.args if isinstance(argument, torch.fx.Node)]
    inner = shapes[1 if operator == "addmm" else 0][-1]
    return 2 * int(inner) * math.prod(int(n) for n in node.meta["val"].shape)


def _lower_litert(program: ExportedProgram, matrices: Sequence[Quantised]) -> tuple[TemplateGraph, float]:
    import litert_torch

    example = program.example_inputs[0]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "graph.tflite"
        litert_torch.convert(program.module(), example).export(str(file))
        if not matrices:
            return Plain(file.read_bytes()), _litert_share(file)
        content = quantise_litert(file, "int8" if matrices[0].codes.dtype == np.int8 else "int4")
        file.write_bytes(content)
        return LiteRTTemplate(content, matrices), _litert_share(file)


def _litert_share(file: Path) -> float:
    """Share of the batch matrix products and fully connected layers that lie inside delegated partitions."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(file))
    interpreter.allocate_tensors()
    operators: list[dict[str, Any]] = interpreter._get_ops_details()
    producers = {int(out): op for op in operators if op["op_name"] != "DELEGATE" for out in op["outputs"]}
    inside: set[int] = set()
    for partition in (op for op in operators if op["op_name"] == "DELEGATE"):
        edge = {int(tensor) for tensor in partition["inputs"]}
        pending = [int(tensor) for tensor in partition["outputs"]]
        while pending:
            tensor = pending.pop()
            producer = producers.get(tensor)
            if tensor in edge or producer is None or producer["index"] in inside:
                continue
            inside.add(producer["index"])
            pending.extend(int(operand) for operand in producer["inputs"])
    work = {op["index"]: _operator_work(interpreter, op) for op in operators}
    total = sum(work.values())
    return sum(work[index] for index in inside) / total if total else 1.0


def _operator_work(interpreter: Any, operator: dict[str, Any]) -> int:
    if operator["op_name"] not in ("BATCH_MATMUL", "FULLY_CONNECTED"):
        return 0
    left, out = (interpreter._get_tensor_details(int(t), 0) for t in (operator["inputs"][0], operator["outputs"][0]))
    return int(left["shape"][-1]) * math.prod(int(n) for n in out["shape"])


_LOWER = {"torch": _lower_torch, "executorch": _lower_executorch, "litert": _lower_litert}
