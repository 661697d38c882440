"""Settings from Flower's configurations: those of a run, and those of a node."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import NoReturn

from fedspzo.device_runtime.errors import PlanError

Value = bool | int | float | str


class Settings(argparse.ArgumentParser):
    """The options that a table of a configuration may have, by the names that they have on the command line."""

    def __init__(self, table: str) -> None:
        """``table`` is the name of the table in a run's configuration."""
        super().__init__(prog=table, add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise PlanError instead of ending the process."""
        raise PlanError("flower.setting", f"the table '{self.prog}' of the run's configuration: {message}; correct it")

    def read(self, run: Mapping[str, Value], node: Mapping[str, Value] | None = None) -> argparse.Namespace:
        """The options of a run; what a node's own configuration says wins, as far as it is an option.

        Raises:
            PlanError: an option is unknown or missing, or its value is not one.
        """
        given = {key.removeprefix(f"{self.prog}."): run[key] for key in run if key.startswith(f"{self.prog}.")}
        given |= {key: value for key, value in (node or {}).items() if f"--{key}" in self._option_string_actions}
        words = [
            f"--{key}" if value is True else f"--{key}={value}" for key, value in given.items() if value is not False
        ]
        return self.parse_args(words)
