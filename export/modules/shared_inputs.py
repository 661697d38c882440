"""Which linear maps of a stage see the same in all branches of a run, where these start from the same activations.

What comes of weights that each branch has its own of is followed through the stage, on tensors without contents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedspzo.export.modules.stage_module import ADDED, StageModule, Weights


def shared_inputs(
    module: StageModule, feeds: Sequence[tuple[int, ...]], tensors: Sequence[tuple[int, ...]]
) -> set[str]:
    """Linear maps with an adapter whose input does not depend on what a branch has its own of.

    Args:
        module: the stage's.
        feeds, tensors: shapes of what it takes; tensors that branches have their own of are stacked.
    """
    with torch.no_grad(), torch.device("meta"):
        named = {name: torch.empty(shape) for name, shape in zip(module.tensors, tensors, strict=True)}
        given = [torch.empty(shape) for shape in feeds]
        own = [tensor for name, tensor in named.items() if name.endswith(ADDED) and tensor.shape[0] > 1]
        with _Parted(own) as parted:
            weights = _Watched(named, parted.holds)
            deepcopy(module).to("meta").compute(weights, *given)
    return weights.alike - weights.apart


class _Parted(TorchDispatchMode):
    """Follows what comes of some tensors."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        self._tensors = {id(tensor): tensor for tensor in tensors}  # held, so that no other gets the same number

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor is one of them, or came of one."""
        return id(tensor) in self._tensors

    def __torch_dispatch__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function; its results are held where an argument is."""
        results = function(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) and self.holds(leaf) for leaf in tree_leaves((args, kwargs))):
            self._tensors |= {id(leaf): leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor)}
        return results


class _Watched(Weights):
    """Weights that note the linear maps with an adapter by their inputs.

    Attributes:
        alike, apart: those with an input that is the same in all branches, and those with one that is not.
    """

    def __init__(self, tensors: Mapping[str, Tensor], parted: Callable[[Tensor], bool]) -> None:
        super().__init__(tensors)
        self._parted = parted
        self._adapted = {name.removesuffix(part) for name in tensors for part in ADDED if name.endswith(part)}
        self.alike: set[str] = set()
        self.apart: set[str] = set()

    def linear(self, name: str, x: Tensor) -> Tensor:
        """See :class:`Weights`."""
        if name in self._adapted:
            (self.apart if self._parted(x) or x.shape[0] % self.groups else self.alike).add(name)
        return super().linear(name, x)
