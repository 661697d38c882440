"""Work in a thread of its own, with what it returns or raises kept for whoever waits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def in_background(work: Callable[[], T], name: str) -> Future[T]:
    """Run something in a thread that does not keep the program alive."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # raised where somebody waits
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
