"""Silence for the libraries that export drives: they report every pass, and what they could not load."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the converters' and engines' chatter (Python logging, warnings, C++ on standard error) from the screen."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    sys.stderr.flush()
    saved = os.dup(2)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), open(os.devnull, "wb") as nowhere:
        warnings.simplefilter("ignore")
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            logging.disable(level)
