"""What a device tells the program that runs it."""

from __future__ import annotations

from dataclasses import dataclass

from fedspzo.device_runtime.protocol.messages import Result


@dataclass(frozen=True)
class Started:
    """The device has read its state and its examples, and connects.

    Attributes:
        name: its id.
        round: the last round that its replica has applied.
        examples: how many there are.
    """

    name: str
    round: int
    examples: int


@dataclass(frozen=True)
class Acknowledged:
    """The server has acknowledged a result.

    Attributes:
        result: what was measured.
        counted: whether it counts in its round, or came too late.
        rounds: that the job has at most; 0 where the server has not said so.
    """

    result: Result
    counted: bool
    rounds: int = 0

    def __str__(self) -> str:
        """In words for people."""
        of = f" of {self.rounds}" if self.rounds else ""
        return f"round {self.result.round}{of}: {'counted' if self.counted else 'too late'}"


@dataclass(frozen=True)
class Declined:
    """The device cannot carry out a plan, and the server does not ask it again soon.

    Attributes:
        round: the plan's.
        reason: why, for the device's owner: it may tell of the examples.
    """

    round: int
    reason: str


@dataclass(frozen=True)
class Waiting:
    """The device hears nothing from its server, or hears it again.

    Attributes:
        reason: what the device waits for, for how long already, and what the cause may be; "" when it waits no more.
    """

    reason: str


@dataclass(frozen=True)
class Finished:
    """The job has ended.

    Attributes:
        round: its last round.
    """

    round: int


Event = Started | Acknowledged | Declined | Waiting | Finished
