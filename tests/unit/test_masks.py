"""What attention hides has no part in its result, however large the scores are, in PyTorch and in both engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fedspzo.device_runtime.engines.protocol import SUFFIXES, create_engine
from fedspzo.device_runtime.model.arrays import aligned_empty
from fedspzo.export.lowering.lower import lower, trace
from fedspzo.export.modules.operators import attend, causal_bias, padding_bias
from fedspzo.export.modules.stage_module import StageModule, Weights

SHAPE = (2, 2, 6, 4)
#: Of the second text all is padding.
MASK = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0, 0.0], [0.0] * 6])


class Attend(StageModule):
    """Attention to what is no padding, and to what came before."""

    feeds = ("query", "key", "value", "mask")

    def __init__(self) -> None:
        super().__init__([])
        self.register_buffer("seen", causal_bias(SHAPE[2]), persistent=False)

    def compute(self, weights: Weights, *feeds: Tensor) -> tuple[Tensor, ...]:
        query, key, value, mask = feeds
        return attend(query, key, value, padding_bias(mask)), attend(query, key, value, self.seen)


def large_scores() -> tuple[list[Tensor], Tensor, Tensor]:
    """Inputs whose scores are 1e5 for what is hidden and -1e5 for what is seen, and the first text's results."""
    query, value = torch.full(SHAPE, 100.0), torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    key = torch.where(torch.arange(6)[:, None] < 3, -500.0, 500.0).expand(SHAPE).contiguous()
    padded = value[0, :, :3].mean(dim=1, keepdim=True).expand(2, 6, 4)
    causal = value[0].cumsum(dim=1) / torch.arange(1, 7)[:, None]
    causal[:, 3:] = value[0, :, 3:].cumsum(dim=1) / torch.arange(1, 4)[:, None]
    return [query, key, value, MASK], padded.transpose(0, 1).reshape(6, 8), causal.transpose(0, 1).reshape(6, 8)


@pytest.mark.parametrize("engine", SUFFIXES)
def test_nothing_leaks_through_a_mask(engine: str, tmp_path: Path) -> None:
    inputs, padded, causal = large_scores()
    module = Attend()
    graph, _ = lower(trace(module, inputs, [], engine), [], engine)
    file = tmp_path / f"graph{SUFFIXES[engine]}"
    file.write_bytes(graph.instance([]))
    arrays = []
    for tensor in inputs:
        arrays.append(aligned_empty(tuple(tensor.shape)))
        arrays[-1][...] = tensor.numpy()
    outputs = [aligned_empty((2, 6, 8)) for _ in range(2)]
    create_engine(engine).load(file).run(arrays, outputs)
    for found, expected in zip(outputs, (padded, causal), strict=True):
        assert np.isfinite(found).all(), "a text without tokens gives numbers all the same"
        np.testing.assert_allclose(found[0], expected.numpy(), rtol=1e-5, atol=1e-6)
