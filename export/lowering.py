"""Lowering of one stage to each engine's format, and the share of its matrix work that the engine's delegate takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils.flop_counter import FlopCounterMode

from device_runtime.engines import SUFFIXES
from device_runtime.errors import ExportError
from export.quiet import quiet


def export_program(module: torch.nn.Module, example: Sequence[torch.Tensor]) -> ExportedProgram:
    """The stage as an exported program, which all formats are lowered from."""
    with torch.no_grad(), quiet():
        return torch.export.export(module.eval(), tuple(example), strict=False)


def count_flops(module: torch.nn.Module, example: Sequence[torch.Tensor]) -> int:
    """Floating-point operations of the matrix products in one run."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        module(*example)
    return int(counter.get_total_flops())


def lower(program: ExportedProgram, engine: str, folder: Path, name: str) -> tuple[str, float]:
    """Write a stage in an engine's format.

    Returns:
        The file's name in ``folder``, and the delegated share of the matrix work, 0 to 1.

    Raises:
        ExportError: the engine's tools are not installed.
    """
    file = folder / (name + SUFFIXES[engine])
    try:
        with quiet():
            share = _LOWER[engine](program, file)
    except ImportError as missing:
        raise ExportError(
            f"lowering to {engine} needs its tools ({missing}); install them with: pip install 'fedspzo[export]'"
        ) from None
    return file.name, share


def _lower_torch(program: ExportedProgram, file: Path) -> float:
    torch.export.save(program, file)
    return 1.0


def _lower_executorch(program: ExportedProgram, file: Path) -> float:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
    from executorch.exir.passes import MemoryPlanningPass

    edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    left = sum(_node_flops(node) for node in edge.exported_program().graph.nodes)
    config = ExecutorchBackendConfig(memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False))
    file.write_bytes(edge.to_executorch(config).buffer)
    total = sum(_node_flops(node) for node in program.graph.nodes)
    return 1.0 - left / total if total else 1.0


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


def _lower_litert(program: ExportedProgram, file: Path) -> float:
    import litert_torch

    example = program.example_inputs[0]
    litert_torch.convert(program.module(), example).export(str(file))
    return _litert_share(file)


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
