"""``fedspzo COMMAND …``: imports the one command that runs, and turns its errors into one line and status 1.

Status 0: done, or a server or device was asked to end. 1: an error, in one line that ends with its kind. 2: the command
line is wrong, or empty, which shows the help. 78: an error of a command that serves which does not pass by itself, such
as a server's refusal of a device. 130: interrupted. 141: nobody reads the output any more. 143: SIGTERM interrupted
unfinished work.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import select
import signal
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from fedspzo import __version__
from fedspzo.device_runtime.errors import FedSPZOError, install_hint
from fedspzo.device_runtime.files import cure
from fedspzo.device_runtime.log import written_log

log = logging.getLogger(__name__)

#: Command → what it does. Each is a module of ``fedspzo.commands``, which imports what it needs only when it runs.
COMMANDS = {
    "export": "make a bundle from a Hugging Face model",
    "broker": "run an MQTT broker",
    "broker rotate": "change the broker's certificate authority without losing a device",
    "enroll": "give devices logins at the broker, or take them away",
    "invite": "make an invitation by which many devices get logins, or take it back",
    "admit": "admit or refuse devices that ask by an invitation",
    "certify": "certify devices' keys with an enrolment key that stays offline",
    "server": "run the rounds of a job",
    "server backup": "copy the state folder of a server that runs or not",
    "server repair": "put right what is damaged in a server's journal",
    "server rotate": "give a stopped server another key, which devices follow",
    "server adopt": "take entries that a server lacks from devices or a backup",
    "simulate": "run the rounds of a job with virtual devices",
    "plan": "propose settings for a model, its data and a fleet",
    "privacy": "show what the noise of a job promises",
    "privacy attack": "try attacks on what devices send, with sentences of your own",
    "status": "show the state of a job",
    "block": "keep devices out, by login, name and key",
    "console": "show jobs in the browser: a server's, or state folders",
    "console login": "make a login for a server's console, or take it away",
    "forget": "free the name of a device that lost its key",
    "fetch": "get a job's bundle from its server",
    "device": "take part in a job with the data in a file",
    "device rotate": "give a stopped device another key, by which it stays the same device",
    "demo": "run everything on this machine, and show that the model improves",
    "bench": "measure what a device's work costs on this machine, beside physical bounds",
    "energy": "measure the joules of a device's work, by its sensors or an external meter",
    "inspect": "show what is in a bundle and what a step will cost",
    "evaluate": "evaluate the model of a run on a file, before and after training",
    "predict": "ask the model of a run",
    "materialize": "write the model of a run as a Hugging Face checkpoint",
    "completion": "print what makes a shell complete these commands and their options",
}
#: Those that run until they are told to end.
SERVING = ("broker", "server", "device", "console")
#: Status where nobody reads the output: as of a program that SIGPIPE has ended.
_UNREAD = 128 + signal.SIGPIPE
#: Status of what serves and is no use to start again before a person has done something: sysexits' EX_CONFIG.
_FINAL = 78
#: Kinds of errors, or how they begin, that may pass by themselves.
_PASSING = (
    *("broker.", "download.", "state.in-use", "state.database-unusable", "state.snapshot-unwritable"),
    *("state.unusable", "state.unwritable", "enrolment.unreachable", "server.http-port-in-use"),
    *("state.database-refuses", "state.lease-lost", "state.runs-elsewhere"),
)
#: Commands that need an extra as a whole; else package → the extra that brings it.
NEEDED = {"export": "export", "materialize": "export", "demo": "demo"}
EXTRAS = {
    **dict.fromkeys(("transformers", "safetensors", "litert_torch", "ai_edge_quantizer", "torchao"), "export"),
    **dict.fromkeys(("amqtt", "prometheus_client", "segno", "starlette", "uvicorn"), "server"),
    **dict.fromkeys(("datasets", "pyarrow"), "data"),
    "ai_edge_litert": "litert",
    "argcomplete": "completion",
    "dp_accounting": "privacy",
    "executorch": "executorch",
    "matplotlib": "demo",
    "ray": "ray",
    "rich": "demo",
    "tflite_runtime": "tflite",
    "torch": "torch",
}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line: the usage of a command with forty options is in the way."""

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """As argparse does, also where nobody reads the help to its end."""
        super().exit(_UNREAD if _is_unread() else status, message)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    words = _join(list(sys.argv[1:] if arguments is None else arguments))
    completing = "_ARGCOMPLETE" in os.environ
    typed = _join(os.environ["COMP_LINE"].split()[1:]) if completing else words
    parser = make_parser([word for word in typed if not word.startswith("-")][:1])
    if completing:
        import argcomplete

        argcomplete.autocomplete(parser)
    if not words:
        parser.print_help(sys.stderr)
        return 2
    options, unknown = parser.parse_known_args(words)
    if unknown:
        more = [f"fedspzo {name}" for name in COMMANDS if name.startswith(f"{options.command} ")]
        hint = f"; beside fedspzo {options.command} there is {', '.join(more)}" if more else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    serving = options.command in SERVING
    signal.signal(signal.SIGTERM, _end_well if serving else _break_off)
    how = (options.verbose, options.json, options.log_file) if serving else ()
    try:
        with written_log(serving, *how):
            try:
                options.run(options)
                print(end="", flush=True)  # here, where an error can still be told
            except (FedSPZOError, ModuleNotFoundError, OSError) as error:
                if isinstance(error, BrokenPipeError) and _is_unread():
                    return _UNREAD
                if isinstance(error, ModuleNotFoundError):
                    error = _missing(options.command, error)
                text = f"{error}; {cure(error)}" if isinstance(error, OSError) else error
                log.error("fedspzo %s: %s", options.command, text, extra={"kind": getattr(error, "kind", "")})
                final = isinstance(error, FedSPZOError) and not error.kind.startswith(_PASSING)
                return _FINAL if final and serving else 1
    except OSError as error:
        parser.error(f"the log {options.log_file} cannot be written ({error.strerror}); {cure(error)}")
    except KeyboardInterrupt:
        return 130
    return 0


def _is_unread() -> bool:
    """Whether who read the standard output has gone, as head does; if so, the rest of it goes nowhere."""
    with suppress(OSError):  # a full disk is another matter
        print(end="", flush=True)
    try:
        output = sys.stdout.fileno()
    except (AttributeError, OSError):  # the process has no standard output
        return False
    poll = select.poll()
    poll.register(output, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)  # for the flush when the interpreter ends
    return True


def _join(words: list[str]) -> list[str]:
    """The words with a command of two as one."""
    both = " ".join(words[:2])
    return [both, *words[2:]] if both in COMMANDS else words


def make_parser(commands: Collection[str]) -> argparse.ArgumentParser:
    """What reads the command line, with the options of some commands."""
    parser = _Parser(prog="fedspzo", description="Federated fine-tuning of language models with forward passes only.")
    parser.add_argument("--version", action="version", version=f"fedspzo {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary)
        if name in commands:
            module = importlib.import_module(f"fedspzo.commands.{name.replace(' ', '_')}")
            subparser.description = module.__doc__
            module.configure(subparser)
            subparser.set_defaults(run=module.run)
    return parser


def _missing(command: str, error: ModuleNotFoundError) -> FedSPZOError:
    """What to install. Raises the error again when no extra brings the module: that is a defect."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        raise error
    extra = NEEDED.get(command, EXTRAS[package])
    return FedSPZOError(
        "install.missing-package", f"this needs {package}, which is not installed; {install_hint(extra)}"
    )


def _end_well(number: int, frame: FrameType | None) -> None:
    """A polite request to end unwinds the program, so that connections are closed."""
    raise SystemExit(0)


def _break_off(number: int, frame: FrameType | None) -> None:
    """The same where there was something to be finished: whoever waits for the result learns that it is missing."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
