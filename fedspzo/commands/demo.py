"""Run everything on this machine: export, broker, server and devices as processes, until the model has improved."""

from __future__ import annotations

import argparse

from fedspzo.demo.settings import Settings
from fedspzo.options.fields import add_options, given


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    add_options(parser, Settings)


def run(options: argparse.Namespace) -> None:
    """Run the demo."""
    settings = Settings(**given(options, Settings))
    from fedspzo.demo.run import run_demo

    run_demo(settings)
