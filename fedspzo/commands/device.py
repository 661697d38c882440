"""Take part in a job: follow its journal, and answer its plans with measurements on the examples in a file."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from fedspzo.device_runtime.model.modes import MODES
from fedspzo.options.broker import add_broker_options, make_access
from fedspzo.options.energy import add_price_option, add_root_option
from fedspzo.options.log import add_log_options
from fedspzo.options.memory import add_memory_option

if TYPE_CHECKING:
    from fedspzo.device_runtime.link.invitation import Invitation
    from fedspzo.device_runtime.platform.conditions import Limits

DATA_HELP = (
    "labelled examples: JSON lines, .csv, .tsv or .parquet, or a data set as hub:NAME:SPLIT, hub:NAME:CONFIG:SPLIT"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    add_broker_options(parser)
    parser.add_argument(
        "--invitation", type=Path, metavar="FILE",
        help="what fedspzo invite made, in place of --access and --job: the server makes this device's login",
    )  # fmt: skip
    parser.add_argument("--state", type=Path, required=True, metavar="DIR", help="where this device keeps its state")
    parser.add_argument("--data", required=True, metavar="FILE", help=DATA_HELP)
    parser.add_argument(
        "--id", help="the device's id (default: its name at the broker, or a random one kept in the state folder)"
    )
    parser.add_argument("--engine", default="litert", help="litert, executorch, torch or tflite (%(default)s)")
    parser.add_argument(
        "--afresh",
        action="store_true",
        help="forget everything except the device's id and key, and start at the bundle's weights",
    )
    parser.add_argument(
        "--least", default=MODES[0], choices=MODES,
        help="take part only where the server sees no more than this: each device's scalars (robust, the default), sums"
        " of groups of devices (groups), or one sum (secure)",
    )  # fmt: skip
    parser.add_argument(
        "--show-key", action="store_true",
        help="print the device's line for the server's --admit file and for fedspzo certify, and end",
    )  # fmt: skip
    parser.add_argument(
        "--certificate", metavar="CERTIFICATE",
        help="what fedspzo certify has printed for the device, or a file with it, perhaps among others'; needed once,"
        " where the bundle names an enrolment key",
    )  # fmt: skip
    parser.add_argument(
        "--privacy-budget", type=_positive, default=math.inf, metavar="E",
        help="answer only plans with noise, and only until all jobs together have cost ε = E (at δ = 1e-5) of the data",
    )  # fmt: skip
    parser.add_argument(
        "--ledger",
        type=Path,
        metavar="FILE",
        help="what was given away of the data (default: FILE.spent.json beside them)",
    )
    limits = parser.add_argument_group("when to take part", "outside these limits the device only follows the journal")
    limits.add_argument("--min-battery", type=float, default=0.0, metavar="PERCENT", help="needs at least this charge")
    limits.add_argument(
        "--max-temperature", type=float, default=math.inf, metavar="CELSIUS", help="highest temperature of any sensor"
    )
    limits.add_argument("--only-charging", action="store_true", help="only while connected to power")
    limits.add_argument(
        "--only-unmetered", action="store_true", help="not over a modem or a network that NetworkManager calls metered"
    )
    energy = parser.add_argument_group("energy", "joules are kept by round in the state folder, see fedspzo energy")
    energy.add_argument(
        "--energy", metavar="SOURCE", help="one of those that fedspzo energy sources lists, or auto: the first"
    )
    energy.add_argument(
        "--energy-idle",
        type=float,
        default=10.0,
        metavar="S",
        help="seconds to stay idle at the start and the end (%(default)s)",
    )
    add_root_option(energy)
    add_price_option(energy)
    add_log_options(parser)
    parser.add_argument("--threads", type=int, default=1, help="threads of the engine and for weights (%(default)s)")
    add_memory_option(parser)
    parser.add_argument(
        "--ahead",
        action="store_true",
        help="perturb the next stage's weights while the engine runs: faster if a core is free, takes more memory",
    )


def run(options: argparse.Namespace) -> None:
    """Run until the job ends, or say by which key the device is known."""
    from fedspzo.device_runtime.device.device import Device
    from fedspzo.device_runtime.device.enrolment import enrol
    from fedspzo.device_runtime.device.events import Acknowledged, Event, Finished, Started
    from fedspzo.device_runtime.errors import BrokerError
    from fedspzo.device_runtime.model.bundle import Bundle
    from fedspzo.device_runtime.platform.systemd import ServiceManager
    from fedspzo.device_runtime.privacy.certificates import CERTIFICATE_BYTES
    from fedspzo.device_runtime.replica.state import read_identity
    from fedspzo.options.energy import make_source
    from fedspzo.options.hexadecimal import read_hex

    invitation = _read_invitation(options)
    if options.show_key and not (options.access or options.broker):
        access = None
    else:
        access = enrol(options.state, invitation, options.id) if invitation else make_access(options)
    if access and options.access and options.id not in (None, access.user):
        raise BrokerError(
            "option.id-beside-access",
            f"{options.access} is the access of '{access.user}', which is then the device's id; leave out --id",
        )
    device = options.id or (access.user if access else "") or None
    if access is None or options.show_key:
        name, key = read_identity(options.state, device)
        print(name, key.hex(), flush=True)
        return
    given = options.certificate is not None
    certificates = read_hex("--certificate", options.certificate, CERTIFICATE_BYTES) if given else []
    limits, manager = make_limits(options), ServiceManager()

    def observe(event: Event) -> None:
        if isinstance(event, Started):
            manager.say(f"STATUS=round {event.round}")
        elif isinstance(event, Acknowledged):
            manager.say(f"STATUS={event}")
        elif isinstance(event, Finished):
            manager.say(f"STATUS=finished at round {event.round}")
        else:
            manager.say(f"STATUS={event.reason or 'the server is heard again'}")

    running = Device(
        Bundle(options.bundle),
        access,
        options.state,
        options.data,
        job=invitation.job if invitation else options.job,
        name=device,
        engine=options.engine,
        threads=options.threads,
        memory=options.memory,
        ahead=options.ahead,
        afresh=options.afresh,
        limits=limits,
        least=options.least,
        certificates=certificates,
        budget=options.privacy_budget,
        ledger=options.ledger,
        energy=make_source(options, lambda: running.flops()),
        idle_s=options.energy_idle if options.energy else 0.0,
        observe=observe,
        alive=manager.alive,
    )
    running.run()


def _read_invitation(options: argparse.Namespace) -> Invitation | None:
    """The invitation for many that the options name. Raises BrokerError where they also name a broker."""
    from fedspzo.device_runtime.errors import BrokerError
    from fedspzo.device_runtime.link.invitation import Invitation

    if options.invitation is None:
        return None
    invitation = Invitation.load(options.invitation)
    if options.access or options.broker or options.job not in ("default", invitation.job):
        raise BrokerError(
            "option.beside-invitation",
            f"{options.invitation} has the broker and the job '{invitation.job}'; leave out --access, --broker and"
            " --job",
        )
    return invitation


def make_limits(options: argparse.Namespace) -> Limits:
    """The limits that the options describe. Raises StateError when this machine cannot keep them."""
    from fedspzo.device_runtime.errors import StateError
    from fedspzo.device_runtime.platform.conditions import Limits, read_conditions

    if not 0 <= options.min_battery <= 100:
        raise StateError(
            "option.min-battery", f"--min-battery is {options.min_battery:g}; give a percentage from 0 to 100"
        )
    if math.isnan(options.max_temperature):
        raise StateError("option.max-temperature", "--max-temperature is not finite; give a number of °C")
    if options.max_temperature < math.inf and math.isnan(read_conditions().temperature_c):
        raise StateError(
            "option.no-temperature-sensor",
            "this machine has no temperature sensor under /sys/class; leave out --max-temperature",
        )
    return Limits(options.min_battery / 100, options.max_temperature, options.only_charging, options.only_unmetered)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not number > 0:
        raise argparse.ArgumentTypeError(f"it is a positive number, not '{text}'")
    return number
