"""Silences the libraries that the export uses: they report every pass, and what they could not load."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator

from fedspzo.device_runtime.errors import ExportError


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the converters' and engines' chatter (Python logging, warnings, C++ on standard error) from the screen."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    saved = os.dup(2)
    with contextlib.ExitStack() as stack:
        # Python's streams too: a progress display may have put its own in their place.
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        stack.enter_context(warnings.catch_warnings())
        nowhere = stack.enter_context(open(os.devnull, "wb"))
        warnings.simplefilter("ignore")
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            logging.disable(level)


@contextlib.contextmanager
def in_transformers(model: str) -> Iterator[None]:
    """What transformers raises about a model becomes an ExportError, and what it prints is not seen."""
    try:
        with quiet():
            yield
    except ExportError:
        raise
    except Exception as error:  # whatever a model's code may raise
        reason = " ".join((str(error) or type(error).__name__).split())[:200]
        raise ExportError(
            "export.transformers-fails",
            f"transformers does not load or run {model} ({reason}); check that config.json belongs to the weights, or"
            " get the model again",
        ) from error
