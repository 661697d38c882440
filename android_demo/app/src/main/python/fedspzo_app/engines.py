"""The engine for a bundle: LiteRT by its C library, or where the bundle has no graphs for it, ExecuTorch by Java."""

from __future__ import annotations

from fedspzo.device_runtime.engines.protocol import Engine, create_engine
from fedspzo.device_runtime.model.bundle import Bundle


def choose_engine(bundle: Bundle, threads: int) -> Engine:
    """An engine that runs the bundle's graphs.

    Raises:
        EngineError: the app lacks the library.
    """
    if "executorch" in bundle.formats and "litert" not in bundle.formats:
        from fedspzo_app import executorch_java

        return executorch_java.create(threads)
    return create_engine("litert", threads)
