"""How much memory a process may take: whether the frozen base then streams from files, and which branches part."""

from __future__ import annotations

import logging
import re

from fedspzo.device_runtime.engines.protocol import ENGINES, STREAMING, Engine, create_engine
from fedspzo.device_runtime.errors import EngineError
from fedspzo.device_runtime.model.manifest import Manifest
from fedspzo.device_runtime.platform.memory import available_bytes
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.cost import forecast_inference, forecast_memory
from fedspzo.device_runtime.step.runner import Batch, Forward

log = logging.getLogger(__name__)

ALL, AUTO = "all", "auto"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(k|M|G)B?", re.ASCII)
_UNITS = {"k": 10**3, "M": 10**6, "G": 10**9}
#: Part of the free memory that a base may take: a step takes more, and other programs some.
_PART = 0.7


def parse_memory(text: str) -> int | None:
    """Bytes, or None for no limit. Raises EngineError when it is neither a size, nor ``all``, nor ``auto``."""
    if text == ALL:
        return None
    if text == AUTO:
        free = available_bytes()
        return None if free is None else int(_PART * free)
    if (found := _SIZE.fullmatch(text.strip())) is None or float(found[1]) == 0:
        raise EngineError("option.memory", f"--memory is {text!r:.40}; give a size such as 300MB, or all, or auto")
    return int(float(found[1]) * _UNITS[found[2]])


def streams_within(manifest: Manifest, engine: str, memory: str) -> int | None:
    """Bytes that a process shall keep to, if the frozen base then streams from files; None where it does not.

    Raises:
        EngineError: ``memory`` is no size, or what is given does not do for an engine that keeps all in memory.
    """
    limit = parse_memory(memory)
    kept, streamed = (forecast_inference(manifest, engine, way).total for way in (False, True))
    if limit is None or kept <= limit or engine not in ENGINES or (memory == AUTO and engine not in STREAMING):
        return None
    if engine not in STREAMING:
        raise EngineError(
            "engine.keeps-all",
            f"the engine '{engine}' keeps the whole model in memory, some {kept / 1e6:,.0f} MB, and --memory is"
            f" {memory}; use the engine '{STREAMING[0]}', or --memory {ALL}",
        )
    if streamed > limit and memory != AUTO:
        log.warning(
            "this bundle takes about %.0f MB at least, more than --memory %s; give more", streamed / 1e6, memory
        )
    return limit if streamed < kept else None  # where all weights are trained, nothing can stream


def open_engine(manifest: Manifest, engine: str, threads: int, memory: str) -> Engine:
    """The engine of that name, which streams a bundle's frozen base where ``memory`` asks for it.

    Raises:
        EngineError: as :func:`streams_within` and ``create_engine``.
    """
    return create_engine(engine, threads, streams_within(manifest, engine, memory))


def fitting_groups(forward: Forward[Replica], batch: Batch, plan: Plan) -> list[int]:
    """Numbers of branches that may go through a graph together: 1, and those with which a step fits into memory."""
    cut = tuple((block.stop, block.fanout) for block in plan.blocks)
    kind = batch.shape.batch, batch.shape.length, plan.sides, cut
    if kind not in forward.fitting:
        forward.fitting[kind] = _fitting(forward, batch, plan)
    return forward.fitting[kind]


def _fitting(forward: Forward[Replica], batch: Batch, plan: Plan) -> list[int]:
    groups, within = sorted(forward.groups(batch)), forward.within

    def bytes_of_a_step() -> int:
        found = forecast_memory(forward.manifest, batch.shape, plan, forward.format, True, groups)
        return found.total + found.frozen  # the first step makes the packed files, each of them in memory

    while within is not None and len(groups) > 1 and bytes_of_a_step() > within:
        groups.pop()
    return groups
