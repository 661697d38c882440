"""How to reach a broker: its URL, a user's name and password, and the authority that signed its certificate."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from fedspzo.device_runtime.errors import BrokerError
from fedspzo.device_runtime.files import write_atomically

if TYPE_CHECKING:
    from fedspzo.device_runtime.link.client import Will
    from fedspzo.device_runtime.link.connection import Link
    from fedspzo.device_runtime.link.events import Events

_KEEP, _PACKET = "session=keep", re.compile("packet=([1-9][0-9]{2,8})")
_DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}


@dataclass(frozen=True)
class Access:
    """What one client needs to connect.

    Attributes:
        url: ``mqtt://host[:port]``, or with ``mqtts``, ``ws``, ``wss``; without name and password. With
            ``?session=keep`` the broker keeps the client's session while it is away, which a cluster may need; with
            ``?packet=BYTES`` it takes no larger packet; in MQTT 5, brokers say that themselves. An ``&`` joins both.
        user: name at the broker, or "" for none.
        password: of the user.
        authority: PEM text of the certificate authority to trust, or "" for those of the system.
    """

    url: str
    user: str = ""
    password: str = field(default="", repr=False)
    authority: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        """Raises BrokerError when the URL is not one of a broker."""
        try:
            usable = self.scheme in _DEFAULT_PORTS and bool(self.host) and self.port > 0
            usable = usable and "@" not in urlsplit(self.url).netloc
            usable = usable and all(said == _KEEP or _PACKET.fullmatch(said) for said in self._said)
        except ValueError:
            usable = False
        if not usable:
            shown = re.sub("//.*@", "//", self.url)
            raise BrokerError("access.url", f"'{shown}' is not the URL of a broker; write one as mqtt://host:1883")

    @classmethod
    def parse(cls, url: str) -> Access:
        """From ``mqtt://[user:password@]host[:port]``. Raises BrokerError when it is not a broker's URL."""
        scheme, separator, rest = url.partition("://")
        place = re.split("[/?]", rest, maxsplit=1)[0]
        path = rest[len(place) :]
        login, _, place = place.rpartition("@")
        user, _, password = login.partition(":")
        return cls(f"{scheme}{separator}{place}{path}", unquote(user), unquote(password))

    @classmethod
    def load(cls, path: Path) -> Access:
        """Read a file that :meth:`save` wrote. Raises BrokerError when it is not one."""
        try:
            return cls.from_json(path.read_bytes(), str(path))
        except OSError as error:
            reason = error.strerror
        raise BrokerError(
            "access.unreadable", f"{path} cannot be read ({reason}); make one at the broker with: fedspzo enroll"
        )

    @classmethod
    def from_json(cls, content: bytes | str, name: str) -> Access:
        """From what :meth:`save` wrote. Raises BrokerError, which calls it by a name, when it is something else."""
        try:
            fields: Any = json.loads(content)
            if not all(isinstance(value, str) for value in fields.values()):
                raise TypeError
            return cls(**fields)
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise BrokerError(
                "access.not-an-access-file",
                f"{name} is not an access file; make one at the broker with: fedspzo enroll",
            ) from None

    def save(self, path: Path) -> None:
        """Write a file that only its owner may read; it appears whole or not at all."""
        write_atomically(path, json.dumps(asdict(self), indent=2).encode() + b"\n", mode=0o600)

    def link(
        self, client_id: str, subscriptions: Sequence[str], will: Will | None = None, events: Events | None = None
    ) -> Link:
        """See :meth:`fedspzo.device_runtime.link.transport.Transport.link`."""
        from fedspzo.device_runtime.link.connection import Link  # which knows this module

        return Link(self, client_id, subscriptions, will, events)

    @property
    def scheme(self) -> str:
        """``mqtt``, ``mqtts``, ``ws`` or ``wss``."""
        return urlsplit(self.url).scheme

    @property
    def host(self) -> str:
        """Name or address, in ASCII."""
        return (urlsplit(self.url).hostname or "localhost").encode("idna").decode()

    @property
    def port(self) -> int:
        """TCP port."""
        return urlsplit(self.url).port or _DEFAULT_PORTS[self.scheme]

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted and the broker shows a certificate."""
        return self.scheme in ("mqtts", "wss")

    @property
    def websockets(self) -> bool:
        """Whether MQTT travels in websocket frames."""
        return self.scheme in ("ws", "wss")

    @property
    def keeps_session(self) -> bool:
        """Whether the broker keeps the session while the client is away."""
        return _KEEP in self._said

    @property
    def packet_bytes(self) -> int:
        """The largest packet that the broker takes, as the URL says; 0 where it does not."""
        return next((int(found[1]) for said in self._said if (found := _PACKET.fullmatch(said))), 0)

    @property
    def _said(self) -> list[str]:
        """What the URL says after its question mark."""
        query = urlsplit(self.url).query
        return query.split("&") if query else []

    @property
    def path(self) -> str:
        """Path that a websocket asks for."""
        return urlsplit(self.url).path or "/mqtt"

    @property
    def place(self) -> str:
        """The URL as people are told of it: scheme, host and port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"
