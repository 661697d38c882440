"""How long tests wait for what must happen: until it happens, or until only a hang explains that it did not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

#: Seconds after which a wait gives up. Nothing here takes a tenth of it on two busy cores, and a wait ends as soon as
#: what it waits for happens, so that it costs time only where a test fails. Emulators and slower boards may set more.
PATIENCE_S = float(os.environ.get("TEST_PATIENCE_S", "600"))
#: Seconds after which a whole test is ended. A test that hangs fails in one of its waits first, which says where.
TEST_S = 3 * PATIENCE_S


def wait_until(condition: Callable[[], object], describe: Callable[[], object] = str) -> None:
    """Wait until a condition holds. Raises AssertionError, with a description if one is given, when it never does."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"it did not happen within {PATIENCE_S:g} s: {describe()}"
        time.sleep(0.02)
