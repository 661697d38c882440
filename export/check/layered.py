"""A model of transformers with the weights of one layer in memory, or with other weights than its folder has.

transformers itself says which tensor of the files is which of the model's parameters: it loads stand-ins, each a number
of its own that takes no memory to speak of, and what they stand for takes their places while a layer runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedspzo.export.checkpoint import Checkpoint

#: Name in the checkpoint → what to take in its tensor's place.
Replaced = Mapping[str, Callable[[], np.ndarray]]
#: Bytes of float32 weights up to which a model is loaded whole.
_WHOLE = 1 << 28
#: The first stand-in; no model starts a weight with such a number.
_FIRST = 1e5


def load_model(checkpoint: Checkpoint, factory: Any, replaced: Replaced, own_head: bool = False) -> Any:
    """A model of transformers in float32, ready to run.

    Args:
        factory: the ``AutoModel`` that makes it.
        replaced: weights to take instead of the checkpoint's.
        own_head: whether the table that scores tokens is the checkpoint's in any case.
    """
    size = sum(4 * prod(checkpoint.shape(name)) for name in checkpoint.files)
    if not replaced and size <= _WHOLE:
        return factory.from_pretrained(checkpoint.folder, dtype=torch.float32).eval()
    model, sources = load_stand_ins(checkpoint, factory)
    if sources is None:  # transformers joins tensors of the files to one of its own
        return _load_joined(checkpoint, factory, replaced)
    untied: Tensor | None = None
    if own_head:
        head, table = model.get_output_embeddings(), model.get_input_embeddings().weight
        if head.weight is table:
            head.weight = untied = nn.Parameter(table.detach()[:])
            sources[untied] = sources[table]

    def weight(parameter: Tensor) -> Tensor:
        name = sources[parameter]
        taken = name in replaced and parameter is not untied
        return torch.from_numpy(replaced[name]() if taken else checkpoint.tensor(name))

    for module, deep in _layers(model):
        _Held(module, [p for p in (*module.parameters(deep), *module.buffers(deep)) if p in sources], weight)
    for module in model.modules():
        _Held(module, [p for p in _read_apart(module, model.get_input_embeddings()) if p in sources], weight)
    return model


def load_stand_ins(checkpoint: Checkpoint, factory: Any) -> tuple[Any, dict[Tensor, str] | None]:
    """A model with numbers for weights, and the name in the checkpoint of each of them.

    There are no names where transformers makes a weight of several tensors.
    """
    numbers = {name: _FIRST + place for place, name in enumerate(checkpoint.files)}
    loaded = {name: torch.full((1,), number).expand(checkpoint.shape(name)) for name, number in numbers.items()}
    names = {tensor.data_ptr(): name for name, tensor in loaded.items()}
    by_number = {number: name for name, number in numbers.items()}
    kind = factory._model_mapping[type(checkpoint.config)]
    model, info = kind.from_pretrained(
        None, config=checkpoint.config, dtype=torch.float32, state_dict=loaded, output_loading_info=True
    )
    sources: dict[Tensor, str] = {}
    for name, parameter in (*model.named_parameters(), *model.named_buffers()):
        found = names.get(parameter.data_ptr())
        if found is None and parameter.ndim == 1:  # transformers has padded a head's bias by nothing
            found = by_number.get(parameter[0].item())
        if found is not None:
            sources[parameter] = found
        elif isinstance(parameter, nn.Parameter) and name not in info["missing_keys"]:
            return model, None
    return model.eval(), sources


def _load_joined(checkpoint: Checkpoint, factory: Any, replaced: Replaced) -> Any:
    """The whole model, with replaced weights as if its files had them."""
    if not replaced:
        return factory.from_pretrained(checkpoint.folder, dtype=torch.float32).eval()
    weights = {
        name: torch.from_numpy(replaced[name]() if name in replaced else checkpoint.tensor(name))
        for name in checkpoint.files
    }
    kind = factory._model_mapping[type(checkpoint.config)]
    return kind.from_pretrained(None, config=checkpoint.config, dtype=torch.float32, state_dict=weights).eval()


def _layers(model: nn.Module) -> Iterator[tuple[nn.Module, bool]]:
    """The parts that run with their weights in memory, and whether those of their own parts are meant as well."""
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield from ((layer, True) for layer in child)
        else:
            yield from _layers(child)
    yield model, False


def _read_apart(module: nn.Module, table: nn.Module) -> Iterator[Tensor]:
    """Weights that a module with layers may read without running the parts that have them: DeBERTa's positions."""
    if any(isinstance(child, nn.ModuleList) for child in module.children()):
        for child in module.children():
            if not any(True for _ in child.children()) and child is not table:
                yield from child.parameters()


class _Held:
    """Weights that a module has while it runs."""

    def __init__(self, module: nn.Module, weights: Sequence[Tensor], load: Callable[[Tensor], Tensor]) -> None:
        self._weights, self._load = weights, load
        self._stand_ins: list[Tensor] = []
        if weights:
            module.register_forward_pre_hook(self._take)
            module.register_forward_hook(self._give_back, always_call=True)

    def _take(self, *_: object) -> None:
        self._stand_ins = [weight.data for weight in self._weights]
        for weight in self._weights:
            weight.data = self._load(weight)

    def _give_back(self, *_: object) -> None:
        for weight, stand_in in zip(self._weights, self._stand_ins, strict=True):
            weight.data = stand_in
        self._stand_ins = []
