"""What a model shows a person, and the line that is kept of it and of what they did with it."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedspzo.device_runtime.data.feedback import ACCEPTED, CORRECTED, PROBABILITY, REWARD, ROUND, SCORES, SHOWN
from fedspzo.device_runtime.errors import DataError
from fedspzo.device_runtime.files import open_private


@dataclass(frozen=True)
class Suggestion:
    """One answer that is shown.

    Attributes:
        shown: the label, or the text.
        probability: with which it was chosen.
        scores: label → its probability by the model, the likeliest first; empty for a text.
        round: the journal position of the model.
    """

    shown: str
    probability: float
    scores: Mapping[str, float]
    round: int

    def record(self, fields: Mapping[str, str], reward: float | None = None, corrected: str = "") -> dict[str, Any]:
        """The line of data, once the person has reacted: by a reward, or by saying what is right."""
        reward = ACCEPTED if corrected == self.shown else reward
        reaction: dict[str, Any] = {REWARD: reward} if corrected in ("", self.shown) else {CORRECTED: corrected}
        scores = {SCORES: {name: round(share, 4) for name, share in self.scores.items()}} if self.scores else {}
        return {**fields, SHOWN: self.shown, **reaction, PROBABILITY: self.probability, **scores, ROUND: self.round}


def suggest(scores: Mapping[str, float], round: int, explore: float = 0.0, seed: int | None = None) -> Suggestion:
    """The likeliest label; or with probability ``explore`` any of them, each alike.

    Args:
        scores: label → probability, the likeliest first.
        seed: of the draw; None for another each time.

    Raises:
        DataError: ``explore`` is no probability.
    """
    if not 0 <= explore <= 1:
        raise DataError("option.explore", f"explore is {explore:g}; give a probability from 0 to 1")
    names, draw = list(scores), random.Random(seed)
    shown = draw.choice(names) if draw.random() < explore else names[0]
    probability = explore / len(names) + (1 - explore) * (shown == names[0])
    return Suggestion(shown, probability, scores, round)


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add a line to a file that its owner alone can read. Raises DataError when that fails."""
    line = json.dumps(record, ensure_ascii=False) + "\n"
    try:
        unended = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
        with open_private(path, "a") as file:
            file.write("\n" * unended + line)
    except OSError as error:
        raise DataError("data.unwritable", f"{path} cannot be written ({error.strerror}); choose another") from None
