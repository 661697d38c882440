"""What a job leaves behind besides its journal."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from fedspzo.device_runtime.protocol.messages import Report


@dataclass
class Outcome:
    """What a finished job leaves behind besides the journal.

    Attributes:
        digest: of the server's replica after the last round.
        reports: device → its report.
        counts: what happened how often (results accepted, late, refused; messages dropped).
    """

    digest: bytes = b""
    reports: dict[str, Report] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
