"""What a user may choose of the demo: the options of ``fedspzo demo``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fedspzo.device_runtime.errors import FedSPZOError
from fedspzo.device_runtime.protocol.topics import valid_id


@dataclass(frozen=True)
class Settings:
    """Of one run; each field's metadata says what it is."""

    name: str = field(default="demo", metadata={"help": "name of the run; its folder is runs/NAME"})
    rounds: int = field(default=60, metadata={"help": "rounds to run"})
    devices: int = field(default=8, metadata={"help": "device processes"})
    cohort: int = field(default=4, metadata={"help": "devices asked in a round"})
    seeds: str = field(default="shared", metadata={"help": "directions", "choices": ("shared", "device")})
    engine: str = field(default="litert", metadata={"help": "litert, executorch or torch"})
    feedback: bool = field(
        default=False, metadata={"help": "users only accept or reject what they are shown; no device has labels"}
    )
    seed: int = field(default=0, metadata={"help": "of data and job"})

    def __post_init__(self) -> None:
        """Raises FedSPZOError when a number is not positive, or the name cannot be a folder's."""
        if min(self.rounds, self.devices, self.cohort) < 1:
            raise FedSPZOError("demo.not-positive", "--rounds, --devices and --cohort are positive; correct these")
        if not valid_id(self.name):
            raise FedSPZOError(
                "demo.run-name", f"'{self.name}' is not a valid run name; use up to 64 letters, digits, '-' and '_'"
            )

    @property
    def folder(self) -> Path:
        """Where the run is kept."""
        return Path("runs") / self.name
