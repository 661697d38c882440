"""Lowering in two thirds of the time: what Python and torch would do over and over is done rarely."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

import torch
from torch._export import utils

#: Objects that lowering may make between two of Python's garbage collections.
_COLLECT_AFTER = 100_000
#: Torch's function that makes Python objects of all its composite operators. It is internal, so it may be missing.
_MAKE_OPERATORS = "_materialize_cpp_cia_ops"
_COMPOSITE = "CompositeImplicitAutograd"


@contextlib.contextmanager
def faster() -> Iterator[None]:
    """While graphs are lowered, see :func:`_few_collections` and :func:`_operators_once`."""
    with _few_collections(), _operators_once():
        yield


@contextlib.contextmanager
def _few_collections() -> Iterator[None]:
    """Collect garbage rarely: lowering makes millions of objects that live on, and looking through them takes a fifth
    of its time."""
    thresholds = gc.get_threshold()
    gc.set_threshold(_COLLECT_AFTER, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


@contextlib.contextmanager
def _operators_once() -> Iterator[None]:
    """Look for composite operators only where some were registered: torch looks for them some thousand times a bundle,
    once for each library of operators at each decomposition, and takes a sixth of its time for that."""
    make = getattr(utils, _MAKE_OPERATORS, None)
    if make is None:
        yield
        return
    known: list[str] = []

    def make_new() -> None:
        registered = torch._C._dispatch_get_registrations_for_dispatch_key(_COMPOSITE)
        if registered != known:
            make()
            known[:] = registered

    setattr(utils, _MAKE_OPERATORS, make_new)
    try:
        yield
    finally:
        setattr(utils, _MAKE_OPERATORS, make)
