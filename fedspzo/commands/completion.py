"""Print what makes a shell complete fedspzo's commands and options: eval "$(fedspzo completion bash)"."""

from __future__ import annotations

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="for which it is")


def run(options: argparse.Namespace) -> None:
    """Print it; the shell then calls fedspzo itself, which answers by argcomplete."""
    from argcomplete.shell_integration import shellcode

    print(shellcode(["fedspzo"], shell=options.shell))
