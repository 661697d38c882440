"""What the console shows of a server that runs in this process, and does there beside changing the job's settings."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedspzo.broker.server.backup import back_up, last_backup
from fedspzo.broker.server.blocking import block, unblock
from fedspzo.broker.server.budgets import CutOff
from fedspzo.broker.server.console.enrolling import Enrolling
from fedspzo.broker.server.console.recent_log import RecentLog
from fedspzo.broker.server.labels import put_on, take_off
from fedspzo.broker.server.member_tables import read_blocked
from fedspzo.broker.server.state_folder import DATABASE, reading
from fedspzo.broker.server.window import Window
from fedspzo.device_runtime.errors import FedSPZOError, StateError
from fedspzo.device_runtime.log import several

log = logging.getLogger(__name__)

#: What can be done to devices.
ACTS = BLOCK, UNBLOCK, LABEL, UNLABEL = ("block", "unblock", "label", "unlabel")


@dataclass(frozen=True)
class Running:
    """A server.

    Attributes:
        certificate: the file of the one that HTTPS shows.
    """

    window: Window
    log: RecentLog
    devices: DeviceControls
    enrolling: Enrolling
    backups: Backups
    certificate: Path | None = None


class DeviceControls:
    """Blocks and labels devices; any thread may call."""

    def __init__(self, folder: Path, cut_off: CutOff | None = None) -> None:
        """``cut_off`` takes logins away; None where the server cannot."""
        self._folder, self._cut_off = folder, cut_off

    @property
    def cuts_off(self) -> bool:
        """Whether the logins of devices that are blocked are taken away."""
        return self._cut_off is not None

    def act(self, who: str, act: str, names: Sequence[str], label: str = "") -> dict[str, Any]:
        """Do something to devices.

        Args:
            who: the name of a login.
            act: one of :data:`ACTS`.

        Returns:
            changed: devices that were not so before.
            logins: how many logins were taken away; None where nobody tried.
            problem: why logins could not be taken away, "" where they could.

        Raises:
            FedSPZOError: a name or label is wrong, or the disk refuses; then nothing has changed.
        """
        if act == BLOCK:
            return self._block(who, names)
        if act == UNBLOCK:
            with reading(self._folder) as connection:
                blocked = set(read_blocked(connection)).intersection(names)
            unblock(self._folder, sorted(blocked), who)
            changed = len(blocked)
            log.info("'%s' lets %s in again", who, several(changed, "device"))
        elif act == LABEL:
            changed = put_on(self._folder, names, label, who)
        else:
            changed = take_off(self._folder, names, label, who)
        return {"changed": changed, "logins": None, "problem": ""}

    def _block(self, who: str, names: Sequence[str]) -> dict[str, Any]:
        """First at the server, so that no round asks one whose login has gone."""
        changed, logins, problem = block(self._folder, names, who=who), None, ""
        log.info("'%s' blocks %s", who, several(changed, "device"))
        if self._cut_off is not None:
            try:
                logins = len(self._cut_off(names))
            except (FedSPZOError, OSError) as error:
                problem = str(error)
                log.warning("the logins of blocked devices could not be taken away: %s", error)
        return {"changed": changed, "logins": logins, "problem": problem}


class Backups:
    """Makes the last backup again, in the folder that somebody on the server's machine has chosen; any thread may call.

    A browser chooses no folder: only where a backup is, another one is made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._began: float | None = None
        self._problem = ""

    def now(self) -> dict[str, Any]:
        """For how many seconds a backup is being made, None where none is; and why the last one failed."""
        began = self._began
        return {"seconds": None if began is None else time.monotonic() - began, "problem": self._problem}

    def start(self, who: str) -> None:
        """Begin to make one, on a thread of its own.

        Raises:
            StateError: one is being made, or there is no earlier one to replace.
        """
        with reading(self._folder) as connection:
            last = last_backup(connection)
        if last is None:
            raise StateError(
                "state.never-backed-up",
                f"{self._folder} has no backup yet; make one with fedspzo server backup on the server's machine",
            )
        target = Path(last.folder)
        if not (target / DATABASE).is_file():
            raise StateError(
                "state.backup-gone",
                f"{target} has no backup any more; see that its disk is there, or make a backup with fedspzo server"
                " backup on the server's machine",
            )
        with self._lock:
            if self._began is not None:
                raise StateError("state.backup-running", "a backup is being made; wait until it is there")
            self._began, self._problem = time.monotonic(), ""
        threading.Thread(target=self._make, args=(who, target), name="backup", daemon=True).start()

    def _make(self, who: str, target: Path) -> None:
        try:
            last = back_up(self._folder, target, who)
            log.info("'%s' has backed up the journal up to round %d to %s", who, last, target)
        except (FedSPZOError, OSError) as error:
            self._problem = str(error)
            log.warning("the backup failed: %s", error)
        finally:
            self._began = None
