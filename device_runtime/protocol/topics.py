"""Names of jobs and devices, and the topics that they use."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fedspzo.device_runtime.errors import BrokerError

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def valid_id(text: str) -> bool:
    """Whether a text can name a job or a device: a level of a topic at every broker."""
    return _ID.fullmatch(text) is not None


@dataclass(frozen=True)
class Topics:
    """Topic names of one job. A device writes only ``up`` and ``state`` of its own."""

    job: str

    def __post_init__(self) -> None:
        """Raises BrokerError when the job's name cannot stand in a topic."""
        if not valid_id(self.job):
            raise BrokerError(
                "job.name", f"'{self.job}' is not a valid job name; use up to 64 letters, digits, '-' and '_'"
            )

    @property
    def round(self) -> str:
        """Server → all: that it is there, and at which round."""
        return f"fl/v1/{self.job}/round"

    @property
    def result(self) -> str:
        """Server → all: journal entries, and the end of the job."""
        return f"fl/v1/{self.job}/result"

    def up(self, device: str) -> str:
        """Device → server."""
        return f"fl/v1/{self.job}/up/{device}"

    def down(self, device: str) -> str:
        """Server → device: plans, acknowledgements, entries that it missed."""
        return f"fl/v1/{self.job}/down/{device}"

    def state(self, device: str) -> str:
        """Retained presence of a device."""
        return f"fl/v1/{self.job}/state/{device}"
