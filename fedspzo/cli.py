"""``fedspzo COMMAND …``: finds the command's module, and turns an error of the project into one line and status 1."""

from __future__ import annotations

import argparse
import importlib
import logging
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from fedspzo.device_runtime.errors import FedSPZOError
from fedspzo.device_runtime.log import written_log

log = logging.getLogger(__name__)

#: Command → what it does. Each is a module of ``fedspzo.commands``, which imports what it needs only when it runs.
COMMANDS = {
    "export": "make a bundle from a Hugging Face model",
    "broker": "run an MQTT broker",
    "enroll": "give devices logins at the broker, or take them away",
    "server": "run the rounds of a job",
    "simulate": "run the rounds of a job with virtual devices",
    "plan": "propose settings for a model, its data and a fleet",
    "status": "show the state of a job",
    "forget": "free the name of a device that lost its key",
    "fetch": "get a job's bundle from its server",
    "device": "take part in a job with the data in a file",
    "demo": "run everything on this machine, and show that the model improves",
    "bench": "measure what a device's work costs on this machine, beside physical bounds",
    "energy": "measure the joules of a device's work, by its sensors or an external meter",
    "inspect": "show what is in a bundle and what a step will cost",
    "evaluate": "evaluate the model of a run on a file, before and after training",
    "predict": "ask the model of a run",
    "materialize": "write the model of a run as a Hugging Face checkpoint",
}
#: Those that run until they are told to end.
SERVING = ("broker", "server", "device")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="fedspzo", description="Federated fine-tuning of language models with forward passes only."
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    words = sys.argv[1:] if arguments is None else arguments
    chosen = next((word for word in words if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary)
        if name == chosen:
            module = importlib.import_module(f"fedspzo.commands.{name}")
            subparser.description = module.__doc__
            module.configure(subparser)
            subparser.set_defaults(run=module.run)
    options = parser.parse_args(words)
    serving = options.command in SERVING
    signal.signal(signal.SIGTERM, _end_well if serving else _break_off)
    how = (options.verbose, options.json, options.log_file) if serving else ()
    try:
        with written_log(serving, *how):
            try:
                options.run(options)
            except (FedSPZOError, OSError) as error:
                kind = getattr(error, "kind", "")
                log.error("fedspzo %s: %s", options.command, error, extra={"kind": kind})
                return 1
    except OSError as error:
        parser.error(f"the log cannot be written: {error}")
    except KeyboardInterrupt:
        return 130
    return 0


def _end_well(number: int, frame: FrameType | None) -> None:
    """A polite request to end unwinds the program, so that connections are closed."""
    raise SystemExit(0)


def _break_off(number: int, frame: FrameType | None) -> None:
    """The same where there was something to be finished: whoever waits for the result learns that it is missing."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
