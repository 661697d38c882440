"""The entry point that Java calls: one :class:`App` for the life of the process; what it returns is text or JSON."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from fedspzo_app.app import App
from fedspzo_app.phone import Phone


def create(folder: str, context: Any, vault: Any) -> App:
    """The app over its private folder.

    Args:
        folder: app-private and not backed up; everything that the app keeps is in it.
        context: ``android.content.Context``, from which battery, network and temperature are read.
        vault: seals texts with a key of the Android Keystore: ``seal(text) -> text`` and ``open(text) -> text``.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    return App(Path(folder), Phone(context), vault)
