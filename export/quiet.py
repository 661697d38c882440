"""Silences the libraries that the export uses: they report every pass, and what they could not load."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator


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
