"""The options that say what a job's rounds are like, from its fields, a method and a file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from fedspzo.broker.rounds.job import Job, check_job
from fedspzo.broker.rounds.methods import METHODS, SIMULATED, FirstOrder, Method, choose_method
from fedspzo.broker.rounds.private import NO_PRIVACY, OF_NOISE, check_given
from fedspzo.broker.rounds.settings import check_value
from fedspzo.device_runtime.errors import PlanError
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.options.fields import add_options, given

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: What cuts and perturbs the network, for commands that look at one step.
STEP = ("split", "fanouts", "scales", "learning_rates", "sides")


def add_job_options(
    parser: argparse.ArgumentParser, methods: Mapping[str, Method | FirstOrder] = METHODS, **defaults: Any
) -> None:
    """A file of settings, a method to choose, and each setting; ``defaults`` are those that differ from a job's."""
    add_config_option(parser)
    add_method_option(parser, methods, "neither here nor in the file")
    add_options(parser, Job, **defaults)


def add_method_option(
    parser: argparse.ArgumentParser, methods: Mapping[str, Method | FirstOrder], where: str = "not here"
) -> None:
    """A method to choose, which sets what is given ``where``."""
    parser.add_argument(
        "--method", action=_Once, metavar="NAME[:P]",
        help=f"a published method with P directions, which sets what is given {where}: "
        + "; ".join(f"{name} ({method.title})" for name, method in methods.items()),
    )  # fmt: skip


def add_config_option(parser: argparse.ArgumentParser) -> None:
    """The file of a job's settings."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE",
        help="a job's settings in TOML, such as fanouts = [1, 16]; options that are given here win",
    )  # fmt: skip


def make_job(options: argparse.Namespace, methods: Mapping[str, Method | FirstOrder] = METHODS, **defaults: Any) -> Job:
    """The job that the options describe; sets ``options.method`` to the method's name.

    What is given wins over the file, the file over the method, and the method over ``defaults`` and the job's own.

    Raises:
        PlanError: a setting has a wrong type, is out of its range or contradicts another; or the file cannot be read.
    """
    settings = read_settings(options.config) if options.config else {}
    own: dict[str, Any] = {}
    chosen = settings.pop("method", None)
    chosen = getattr(options, "method", None) or chosen
    if chosen is not None:
        options.method, own = choose_method(chosen, methods)
    settings |= given(options, Job)
    job = Job(**{**defaults, **own, **settings})
    if "privacy" not in settings and job.privacy == NO_PRIVACY:  # whatever their values
        check_given([name for name in OF_NOISE if name in settings])
    return job


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a job's file: fields of the job, and ``method``.

    Raises:
        PlanError: the file cannot be read, or has an unknown key or a value of a wrong type or out of its range.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PlanError(
            "job.file-unreadable",
            f"{path} cannot be read as TOML ({getattr(error, 'strerror', error)}); correct it, or the path",
        ) from None
    known = {setting.name: setting for setting in fields(Job) if "help" in setting.metadata}
    for name, value in found.items():
        if name == "method":
            if not isinstance(value, str):
                raise PlanError("job.wrong-type", f"{path}: method is a word, not {value!r}")
            continue
        if name not in known:
            raise PlanError(
                "job.unknown-setting", f"{path}: '{name}' is no setting of a job; there are method, {', '.join(known)}"
            )
        try:
            found[name] = check_value(known[name], value)
        except PlanError as error:
            raise PlanError(error.kind, f"{path}: {error}") from None
    return found


def make_step(options: argparse.Namespace, bundle: Bundle, names: tuple[str, ...] = STEP) -> Job:
    """A job of which one step is looked at, as a method, if there is one, and the options of these names say.

    Sets ``options.method`` to the method's name. Raises PlanError as :func:`choose_method` and :func:`check_job` do.
    """
    own: dict[str, Any] = {}
    if getattr(options, "method", None) is not None:
        options.method, own = choose_method(options.method, SIMULATED)
    return check_job(Job(**{**own, **given(options, Job, names)}), bundle)


class _Once(argparse.Action):
    """An option that may be given once."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option_string} can be given once: its settings and another's do not mix")
        setattr(namespace, self.dest, values)
