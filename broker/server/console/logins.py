"""Logins for the console: names, roles and hashed passwords, in a file that the state folder's owner alone can read."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from fedspzo.device_runtime.errors import StateError
from fedspzo.device_runtime.files import write_atomically

FILE = "console.json"
#: What a login may do: see everything, or change the job too.
ROLES = LOOK, OPERATE = ("look", "operate")
#: scrypt's cost, block size and threads (RFC 7914): 16 MiB and some 50 ms for each password that is tried.
_COST, _BLOCK, _THREADS = 1 << 14, 8, 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


@dataclass(frozen=True)
class Login:
    """A person or program that the console lets in.

    Attributes:
        role: one of :data:`ROLES`.
        salt, hash: of its password, in hexadecimal digits.
    """

    role: str
    salt: str
    hash: str

    def admits(self, password: str) -> bool:
        """Whether a password is the login's."""
        return hmac.compare_digest(_hash(password, self.salt), self.hash)


#: Stands for a name that is unknown, so that its password takes as long to refuse; nothing has this hash.
NOBODY = Login(LOOK, "00" * 16, "")


class Logins:
    """The logins of a state folder; a change of the file counts at once."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._stamp: tuple[int, int] | None = None
        self._known: Mapping[str, Login] = {}

    def __call__(self) -> Mapping[str, Login]:
        """Name → login.

        Raises:
            StateError: others can read the file, or it is damaged.
        """
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return {}
        if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise StateError(
                "state.logins-readable", f"{self.path} can be read by others than its owner; chmod 600 {self.path}"
            )
        if (stamp := (found.st_mtime_ns, found.st_ino)) != self._stamp:
            try:
                record = json.loads(self.path.read_text(encoding="utf-8"))
                self._known = {name: Login(**login) for name, login in record.items()}
            except (ValueError, TypeError, AttributeError):
                raise StateError(
                    "state.logins-damaged",
                    f"{self.path} is damaged; remove it, and make the logins again with fedspzo console login",
                ) from None
            self._stamp = stamp
        return self._known

    def add(self, name: str, role: str) -> str:
        """Make a login, or give a known one another password and role; returns the password.

        Raises:
            StateError: the name is not one, or the file cannot be used.
        """
        if not _NAME.fullmatch(name):
            raise StateError(
                "state.login-name", f"'{name}' is no name for a login; give up to 64 letters, digits, and . _ @ -"
            )
        password, salt = secrets.token_urlsafe(15), secrets.token_hex(16)
        self._write({**self(), name: Login(role, salt, _hash(password, salt))})
        return password

    def remove(self, name: str) -> None:
        """Take a login away. Raises StateError where there is no such login."""
        known = dict(self())
        if known.pop(name, None) is None:
            raise StateError("state.no-such-login", f"{self.path} has no login '{name}'; there are {sorted(known)}")
        self._write(known)

    def _write(self, logins: Mapping[str, Login]) -> None:
        record = {name: asdict(login) for name, login in sorted(logins.items())}
        write_atomically(self.path, (json.dumps(record, indent=1) + "\n").encode())


def _hash(password: str, salt: str) -> str:
    hashed = hashlib.scrypt(
        password.encode(), salt=bytes.fromhex(salt), n=_COST, r=_BLOCK, p=_THREADS, maxmem=1 << 26, dklen=32
    )
    return hashed.hex()
