"""The one exception tree of the project: each message is a sentence that names the thing and the cure."""

from __future__ import annotations


class FedSPZOError(Exception):
    """Anything that went wrong and that a user can act on; commands print it and exit with status 1, or 78.

    Attributes:
        kind: what the cause is, for programs: ``job.quorum-above-cohort``. docs/errors.md lists them all.
    """

    def __init__(self, kind: str, text: str) -> None:
        """``text`` is one sentence that names the thing and, after a semicolon, the cure."""
        super().__init__(text)
        self.kind = kind

    def __reduce__(self) -> tuple[type[FedSPZOError], tuple[str, str]]:
        """Another process gets it whole."""
        return type(self), (self.kind, str(self))


class BundleError(FedSPZOError):
    """A bundle is missing, damaged, of another version, or lacks what was asked of it."""


class EngineError(FedSPZOError):
    """An engine is not installed, or refused a graph or its inputs."""


class DataError(FedSPZOError):
    """A data file or a task does not say what it should."""


class ExportError(FedSPZOError):
    """A model cannot be exported."""


class StateError(FedSPZOError):
    """A state folder (journal, snapshot) is damaged, in use, or belongs to another job."""


class MessageError(FedSPZOError):
    """Bytes received are not a valid message of this protocol version."""


class PlanError(FedSPZOError):
    """A plan contradicts itself or the bundle."""


class BrokerError(FedSPZOError):
    """A broker cannot be reached, started, or refuses the connection."""


class EnrolmentError(FedSPZOError):
    """A device cannot be enrolled by an invitation for many."""


class EnergyError(FedSPZOError):
    """Energy cannot be measured: there is no sensor, or it contradicts itself, or a meter's log does not fit."""


def install_hint(extra: str) -> str:
    """The cure where a package is missing: how to install an extra. The project is on no index; say so here alone."""
    return f"in a clone of FedSPZO, run: pip install '.[{extra}]'"
