"""A Raspberry Pi 5's power chip, through ``vcgencmd pmic_read_adc``: rails that have both a current and a voltage."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable

from fedspzo.device_runtime.energy.source import POWER, Facts, Gap

NAME = "pi5"
COMMAND = ("vcgencmd", "pmic_read_adc")
#: W: a dozen rails' steps of about 1 mA and 1 mV; s between conversions, and the scale's uncertainty: all assumed.
_RESOLUTION_W, _PERIOD_S, _GAIN = 0.01, 0.1, 0.03
_LINE = re.compile(r"^\s*(\w+)_([AV]) (?:current|volt)\(\d+\)=(-?[\d.]+)[AV]\s*$", re.MULTILINE)


class Pmic:
    """What the power chip delivers. See :class:`fedspzo.device_runtime.energy.source.Source`."""

    name = NAME

    def __init__(self, ask: Callable[[], str]) -> None:
        """Read once, by what ``ask`` gives of the command's words. Raises Gap when the board has no such chip."""
        self._ask = ask
        self.read()
        self.facts = Facts(
            POWER, _RESOLUTION_W, _PERIOD_S, _GAIN, "the rails of the board's power chip",
            (
                "it sees neither the power chip's own losses nor what hangs on 5 V (USB devices, fan)",
                f"its scale is taken to be right to {_GAIN:.0%}, which its maker does not state",
            ),
        )  # fmt: skip

    def read(self) -> float:
        """See ``Source``."""
        text = self._ask()
        watts = add_rails(text)
        if watts is None:
            said = " ".join(text.split())[:80]
            raise Gap(f"'{' '.join(COMMAND)}' tells of no rails ('{said}'); a Raspberry Pi 4 has no current sensing")
        return watts


def ask_firmware() -> str:
    """What the command says. Raises Gap when it cannot be run."""
    try:
        done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = error.strerror if isinstance(error, OSError) else "no answer within 5 s"
        raise Gap(f"{COMMAND[0]} cannot be run ({reason})") from None
    return done.stdout + done.stderr


def add_rails(text: str) -> float | None:
    """Watts of the rails that have both a current and a voltage; None when there are none."""
    found = {(rail, kind): float(number) for rail, kind, number in _LINE.findall(text)}
    pairs = [(found[rail, "A"], found[rail, "V"]) for rail, kind in found if kind == "A" and (rail, "V") in found]
    return sum(amperes * volts for amperes, volts in pairs) if pairs else None


def find_pmic(ask: Callable[[], str] = ask_firmware) -> Pmic | str:
    """The power chip, or why it cannot be read."""
    try:
        return Pmic(ask)
    except Gap as gap:
        return str(gap)
