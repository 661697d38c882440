"""What the rounds gave on this phone, for the screen: a line for each in a file, so that a kill loses at most one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fedspzo.device_runtime.files import write_atomically

#: Rounds that are kept when the file is opened.
SHOWN = 500


@dataclass(frozen=True)
class Round:
    """One round that this phone took part in.

    Attributes:
        round: its number.
        loss: the mean loss on this phone's examples.
        counted: whether the server counted it.
        bytes_up, bytes_down: of messages since the round before.
        joules: that its work took, above idle; None where nothing measured them.
    """

    round: int
    loss: float
    counted: bool
    bytes_up: int
    bytes_down: int
    joules: float | None


class History:
    """The rounds so far, the last of them at the end."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._rounds = _read(file)[-SHOWN:]
        if file.exists():  # without old rounds and a line that a kill cut off
            write_atomically(file, "".join(map(_line, self._rounds)).encode())

    def add(self, round: Round) -> None:
        """Keep one more round; the last one again, as after a restart, changes nothing."""
        if self._rounds and self._rounds[-1].round == round.round:
            return
        self._rounds.append(round)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(_line(round))

    @property
    def rounds(self) -> Sequence[Round]:
        """All that are kept."""
        return tuple(self._rounds)


def _line(round: Round) -> str:
    return json.dumps(asdict(round)) + "\n"


def _read(file: Path) -> list[Round]:
    rounds = []
    try:
        for line in file.read_text(encoding="utf-8").splitlines():
            rounds.append(Round(**json.loads(line)))
    except (OSError, ValueError, TypeError):  # no history yet, or its last line was cut off
        pass
    return rounds
