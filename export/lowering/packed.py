"""Graphs whose linear maps' weights are constants, to be written where the engine has packed them.

One graph serves all stages that compute the same, and its constants are the first one's weights, where they lie in the
bundle: what they are does not matter, for they are overwritten (``device_runtime/engines/packed.py``).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedspzo.device_runtime.model.manifest import WEIGHTS, TensorSpec
from fedspzo.device_runtime.model.tensor_file import TensorFile
from fedspzo.export.lowering.tflite_file import LiteRTModel
from fedspzo.export.modules.stage_module import StageModule
from fedspzo.export.quiet import quiet


def linear_maps(module: StageModule, specs: Sequence[TensorSpec]) -> tuple[tuple[int, int], ...]:
    """Places of the weights and biases (or -1) of a module's linear maps; none unless all are trained, in float32.

    Args:
        specs: of the module's tensors.
    """
    places = {name: place for place, name in enumerate(module.tensors)}
    weights = [name for name, place in places.items() if name.endswith(".weight") and len(specs[place].shape) == 3]
    maps = tuple((places[name], places.get(name.removesuffix("weight") + "bias", -1)) for name in weights)
    used = [specs[place] for pair in maps for place in pair if place >= 0]
    return maps if all(spec.trainable and spec.dtype == "float32" for spec in used) else ()


class _Fixed(torch.nn.Module):
    """A module with constants for its linear maps' weights, matrices as [out, in]."""

    def __init__(self, module: StageModule, fixed: Mapping[int, np.ndarray]) -> None:
        super().__init__()
        self.module = module
        self.fixed = torch.nn.ParameterDict(
            {str(place): torch.nn.Parameter(torch.from_numpy(array), False) for place, array in fixed.items()}
        )

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Feeds and the other weights → the outputs."""
        rest = iter(inputs)
        feeds = [next(rest) for _ in self.module.feeds]
        count = len(self.module.tensors)
        weights = [self.fixed[str(at)] if str(at) in self.fixed else next(rest) for at in range(count)]
        outputs: tuple[Tensor, ...] = self.module(*feeds, *weights)
        return outputs


def packed_graph(
    module: StageModule,
    example: Sequence[Tensor],
    specs: Sequence[TensorSpec],
    maps: Sequence[tuple[int, int]],
    file: TensorFile,
) -> bytes | None:
    """The .tflite graph of a module with constants in the tensor file, or None where it was lowered otherwise.

    Args:
        example: inputs of the shapes to lower for: feeds, then all tensors, which are overwritten.
        specs: of the module's tensors, in the first stage with the graph.
        maps: see :func:`linear_maps`.
        file: the bundle's ``weights.safetensors``.
    """
    import litert_torch

    feeds = len(module.feeds)
    fixed: dict[int, np.ndarray] = {}
    for at in (at for pair in maps for at in pair if at >= 0):
        array = example[feeds + at].numpy()  # in place: a layer's are large
        array.fill(at + 1.5)  # each its own number, by which it is found again; the converter holds such ones briefly
        fixed[at] = array.reshape(specs[at].shape[:0:-1] or specs[at].shape)
    inputs = tuple(tensor for at, tensor in enumerate(example) if at - feeds not in fixed)
    with torch.no_grad(), quiet(), tempfile.TemporaryDirectory() as folder:
        program = torch.export.export(_Fixed(module, fixed).eval(), inputs, strict=False)
        litert_torch.convert(program.module(), inputs).export(str(Path(folder) / "graph.tflite"))
        model = LiteRTModel((Path(folder) / "graph.tflite").read_bytes())
    known = {_hash(array.tobytes()): place for place, array in fixed.items()}
    found: set[tuple[int, int]] = set()
    for _, *weights in model.fully_connected():
        tensors = [tensor for tensor in weights if tensor is not None]
        places = [known.get(_hash(model.take(tensor))) for tensor in tensors]
        for tensor, place in zip(tensors, places, strict=True):
            if place is None:
                return None
            size = 4 * int(np.prod(specs[place].shape))
            model.place(tensor, WEIGHTS, file.start(specs[place].name), size)
        found.add((places[0] or 0, places[1] or 0 if len(places) > 1 else -1))
    model.keep_rest()
    return model.content() if found == set(maps) else None


def _hash(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
