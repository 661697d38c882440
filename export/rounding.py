"""Rounding to 4 bits that keeps a matrix's outputs, not its weights: GPTQ (arXiv 2210.17323), then coordinate descent.

Each code is rounded in turn, and those that follow take back what its rounding adds to the outputs of typical inputs.
The format stays as it is (``model.stored``): codes and scales are only chosen better.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedspzo.device_runtime.model.stored import GROUP, Quantised, pack, quantise, storable, widened

#: What is added to each input's mean square, as a part of it: a short text says little of how inputs go together, and
#: codes that fit it too well lose on other texts.
_DAMPING = 0.3
#: The same for inputs that the text hardly uses, as a part of the average mean square.
_FLOOR = 1e-4
#: Columns whose rounding is passed on to the others at a time.
_BLOCK = 64
#: Passes over all scales and codes after the first rounding.
_PASSES = 1
#: Parts of a group's largest weight that the largest code may stand for at first.
_PARTS = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.72, 0.68, 0.64)
_LARGEST = 7


@dataclass(frozen=True)
class Inputs:
    """Second moments of a linear map's inputs, with what rounding needs of them; matrices may share them.

    Attributes:
        moments: float32 [in, in], damped.
        damping: float32 [in], what was added to their diagonal.
        order: columns by the size of their inputs, the largest first.
        factor: float32 [in, in]: the upper Cholesky factor of the inverse of the moments in that order.
    """

    moments: Tensor
    damping: Tensor
    order: Tensor
    factor: Tensor

    @classmethod
    def of(cls, inputs: Tensor) -> Inputs:
        """From inputs float32 [..., in]."""
        flat = inputs.reshape(-1, inputs.shape[-1])
        moments = flat.t() @ flat / flat.shape[0]
        squares = moments.diagonal()
        damping = _DAMPING * squares + max(_FLOOR * float(squares.mean()), 1e-12)
        squares += damping
        order = torch.argsort(squares, descending=True, stable=True)
        factor = torch.linalg.cholesky(moments[order][:, order].double())
        factor = torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True).float()
        return cls(moments, damping, order, factor)


def output_errors(matrix: Tensor, rounded: Tensor, inputs: Inputs) -> Tensor:
    """Mean squared error of each output [out] that rounding a matrix [out, in] makes."""
    difference = matrix - rounded
    damped = ((difference @ inputs.moments) * difference).sum(dim=1)
    return damped - difference.square() @ inputs.damping


def compensate(matrix: np.ndarray, inputs: Inputs) -> Quantised:
    """A matrix float32 [out, in] in 4 bits, with no row's output further off than plain rounding leaves it."""
    exact = torch.from_numpy(np.ascontiguousarray(matrix))
    nearest = quantise(matrix, "int4")
    if not np.isfinite(nearest.scales).all():
        return nearest
    scales = _first_scales(exact, inputs)
    codes = _round_in_turn(exact, scales, inputs)
    for _ in range(_PASSES):
        scales = _fit_scales(exact, codes, scales, inputs)
        codes = _descend(exact, codes, scales, inputs)
    plain = torch.from_numpy(widened(nearest))
    worse = output_errors(exact, _product(codes, scales), inputs) >= output_errors(exact, plain, inputs)
    found = pack(np.ascontiguousarray(codes.to(torch.int8).numpy()), scales.numpy().astype(np.float16))
    found.codes[worse.numpy()] = nearest.codes[worse.numpy()]
    found.scales[worse.numpy()] = nearest.scales[worse.numpy()]
    return found


def _product(codes: Tensor, scales: Tensor) -> Tensor:
    """The matrix [out, in] of codes [out, in] and scales [out, in/32]."""
    return (codes.reshape(*scales.shape, GROUP) * scales[..., None]).reshape(codes.shape)


def _nearest(values: Tensor) -> Tensor:
    return torch.round(values).clamp_(-_LARGEST, _LARGEST)


def _first_scales(matrix: Tensor, inputs: Inputs) -> Tensor:
    """Scales [out, in/32] that suit each group by itself, its weights counting as their inputs are large."""
    groups = matrix.reshape(len(matrix), -1, GROUP)
    counts = inputs.moments.diagonal().reshape(-1, GROUP)
    largest = groups.abs().amax(dim=2)
    scales, least = torch.empty_like(largest), torch.full_like(largest, torch.inf)
    for part in _PARTS:
        tried = _storable(largest * (part / _LARGEST))
        errors = ((_nearest(groups / tried[..., None]) * tried[..., None] - groups).square() * counts).sum(dim=2)
        scales = torch.where(errors < least, tried, scales)
        least = torch.minimum(errors, least)
    return scales


def _storable(scales: Tensor) -> Tensor:
    return torch.from_numpy(storable(scales.numpy()).astype(np.float32))


def _round_in_turn(matrix: Tensor, scales: Tensor, inputs: Inputs) -> Tensor:
    """Codes [out, in], with what each column's rounding changes in the outputs passed on to the columns after it."""
    columns = matrix.t()[inputs.order].contiguous()  # [in, out]
    steps = scales.t()[inputs.order // GROUP]
    codes = torch.empty_like(columns)
    for start in range(0, len(columns), _BLOCK):
        stop = min(start + _BLOCK, len(columns))
        passed = torch.empty_like(columns[start:stop])
        for k in range(start, stop):
            codes[k] = _nearest(columns[k] / steps[k])
            passed[k - start] = (columns[k] - codes[k] * steps[k]) / inputs.factor[k, k]
            columns[k:stop] -= torch.outer(inputs.factor[k, k:stop], passed[k - start])
        columns[stop:] -= inputs.factor[start:stop, stop:].t() @ passed
    found = torch.empty_like(codes)
    found[inputs.order] = codes
    return found.t()


def _fit_scales(matrix: Tensor, codes: Tensor, scales: Tensor, inputs: Inputs) -> Tensor:
    """Scales [out, in/32]: each in turn the best for the outputs, given the codes and the other scales."""
    scales = scales.clone()
    residual = (matrix - _product(codes, scales)) @ inputs.moments
    for group in range(scales.shape[1]):
        here = slice(group * GROUP, (group + 1) * GROUP)
        of_group = codes[:, here]
        slope = (of_group * residual[:, here]).sum(dim=1)
        curvature = ((of_group @ inputs.moments[here, here]) * of_group).sum(dim=1)
        wanted = scales[:, group] + slope / curvature.clamp(min=1e-30)
        change = _storable(wanted) - scales[:, group]
        change[~((wanted > 0) & (2 * change * slope > change**2 * curvature))] = 0.0  # it would be worse once rounded
        scales[:, group] += change
        residual -= (change[:, None] * of_group) @ inputs.moments[here]
    return scales


def _descend(matrix: Tensor, codes: Tensor, scales: Tensor, inputs: Inputs) -> Tensor:
    """Codes [out, in]: each in turn the best for the outputs, given the scales and the other codes."""
    columns, steps, moments = codes.t().contiguous(), scales.t(), inputs.moments
    residual = ((matrix - _product(codes, scales)) @ moments).t().contiguous()
    for start in range(0, len(columns), _BLOCK):
        stop = min(start + _BLOCK, len(columns))
        changes = torch.empty_like(columns[start:stop])
        for k in range(start, stop):
            step = steps[k // GROUP]
            better = _nearest(columns[k] + residual[k] / (moments[k, k].clamp(min=1e-30) * step))
            changes[k - start] = (better - columns[k]) * step
            columns[k] = better
            residual[start:stop] -= torch.outer(moments[start:stop, k], changes[k - start])
        residual[:start] -= moments[:start, start:stop] @ changes
        residual[stop:] -= moments[stop:, start:stop] @ changes
    return columns.t()
