"""Rights of devices and the server at a RabbitMQ broker: each has a user that can do what it needs, and no more.

User name, device and client id are one name. A device writes only its own ``up`` and ``state``, and reads only its own
``down``, ``round`` and ``result``, of any job. docs/rabbitmq.md says what RabbitMQ enforces of it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import shlex
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedspzo.broker.mqtt.logins import SERVER_USER, check_name, job_of
from fedspzo.device_runtime.errors import BrokerError
from fedspzo.device_runtime.protocol.topics import Topics

#: Most bytes that wait for one client; a server's has one message of each device.
QUEUE_BYTES = 1 << 28
_EXCHANGE = "amq.topic"
_TIMEOUT_S = 300.0
# Regular expressions. They end in \z, as $ would let a line feed follow. RabbitMQ matches topics with a dot for each /
# and an asterisk for each +.
_ID = r"[A-Za-z0-9_-]+"
_ANY_ID = rf"(\*|{_ID})"


@dataclass(frozen=True)
class Rights:
    """What a user may do: patterns for the names of its queues, and of the topics that it writes and reads."""

    queues: str
    write: str
    read: str


def rights(name: str, jobs: Sequence[str] = ()) -> Rights:
    """What the user of this name may do: a server has every topic of the project or of its job, a device its own.

    Args:
        name: of the user.
        jobs: those in which a device may take part; none for any. With any, it can have RabbitMQ retain messages for as
            many jobs as it likes.

    Raises:
        BrokerError: the name cannot be a user's, or a job cannot have one of these names.
    """
    for named in jobs:
        Topics(named)
    check_name(name)
    queues = rf"^mqtt-subscription-{name}qos[01]\z"  # RabbitMQ makes these for the subscriptions of a client id
    if name == SERVER_USER:
        return Rights(queues, write=r"^fl\.v1\.", read=r"^fl\.v1\.")
    if job := job_of(name):
        return Rights(queues, write=rf"^fl\.v1\.{job}\.", read=rf"^fl\.v1\.{job}\.")
    own = f"({'|'.join(jobs)})" if jobs else _ID
    return Rights(
        queues,
        write=rf"^fl\.v1\.{own}\.(up|state)\.{name}\z",
        read=rf"^fl\.v1\.{_ANY_ID}\.(down\.{name}|round|result)\z",
    )


@dataclass(frozen=True)
class RabbitMQ:
    """The users of a broker, over rabbitmqctl; a cluster has them at every node.

    Attributes:
        command: rabbitmqctl, as it is called; with ``-n NODE``, say.
        vhost: virtual host that MQTT uses.
    """

    command: Sequence[str]
    vhost: str = "/"

    def users(self) -> frozenset[str]:
        """Names that have a login. Raises BrokerError when rabbitmqctl failed."""
        return frozenset(self._list("user", "list_users"))

    def set_passwords(self, passwords: Mapping[str, str], jobs: Sequence[str] = ()) -> None:
        """Make users, or give them other passwords and rights, with one call of rabbitmqctl.

        Args:
            passwords: by name.
            jobs: as for :func:`rights`.

        Raises:
            BrokerError: a name cannot be a user's, or rabbitmqctl failed.
        """
        wanted = {name: rights(name, jobs) for name in passwords}
        definitions = {
            "users": [_user(name, password) for name, password in passwords.items()],
            "permissions": [self._permission(name, right) for name, right in wanted.items()],
            "topic_permissions": [self._topic_permission(name, right) for name, right in wanted.items()],
            "policies": [self._policy()],
        }
        self._run("import_definitions", stdin=json.dumps(definitions))

    def remove_users(self, names: Iterable[str]) -> list[str]:
        """Remove users, end their connections, and delete what waits for them.

        Returns:
            Those that had a login.

        Raises:
            BrokerError: rabbitmqctl failed.
        """
        users = self.users()
        gone = [name for name in dict.fromkeys(names) if name in users]
        for name in gone:
            self._run("delete_user", name)
        queues = self._list("name", "list_queues", "--vhost", self.vhost) if gone else []
        for name in gone:
            for queue in (f"mqtt-subscription-{name}qos{level}" for level in (0, 1)):
                if queue in queues:
                    self._run("delete_queue", "--vhost", self.vhost, queue)
        return gone

    def _policy(self) -> dict[str, Any]:
        """What waits for a client takes a bounded amount of memory; the oldest goes first, and is sent again."""
        return {
            "name": "fedspzo",
            "vhost": self.vhost,
            "pattern": "^mqtt-subscription-",
            "apply-to": "queues",
            "definition": {"max-length-bytes": QUEUE_BYTES, "overflow": "drop-head"},
            "priority": 0,
        }

    def _permission(self, name: str, rights: Rights) -> dict[str, str]:
        # To bind a queue to the exchange takes writing the queue and reading the exchange.
        also_exchange = rf"{rights.queues}|^{re.escape(_EXCHANGE)}\z"
        return {
            "user": name,
            "vhost": self.vhost,
            "configure": rights.queues,
            "write": also_exchange,
            "read": also_exchange,
        }

    def _topic_permission(self, name: str, rights: Rights) -> dict[str, str]:
        return {
            "user": name,
            "vhost": self.vhost,
            "exchange": _EXCHANGE,
            "write": rights.write,
            "read": rights.read,
        }

    def _list(self, column: str, *arguments: str) -> list[str]:
        """One column of what a command of rabbitmqctl lists."""
        output = self._run(*arguments, "--quiet", "--formatter", "json")
        try:
            return [str(row[column]) for row in json.loads(output)]
        except (ValueError, TypeError, KeyError):
            raise BrokerError(
                "broker.not-rabbitmqctl",
                f"'{shlex.join(self.command)}' does not answer as rabbitmqctl does; correct what --rabbitmq names",
            ) from None

    def _run(self, *arguments: str, stdin: str = "") -> str:
        try:
            done = subprocess.run(
                [*self.command, *arguments], input=stdin, capture_output=True, text=True, timeout=_TIMEOUT_S
            )
        except OSError as error:
            raise BrokerError(
                "broker.rabbitmqctl-missing",
                f"'{self.command[0]}' cannot be run ({error.strerror}); install rabbitmq-server, or correct what"
                " --rabbitmq names",
            ) from None
        except subprocess.TimeoutExpired:
            raise BrokerError(
                "broker.rabbitmqctl-timeout",
                f"rabbitmqctl {arguments[0]} took more than {_TIMEOUT_S:g} s; check that the node runs",
            ) from None
        if done.returncode:
            lines = [line.strip() for line in (done.stderr + done.stdout).splitlines()]
            reason = next((line for line in lines if line not in ("", "Error:")), "it gives no reason")
            raise BrokerError(
                "broker.rabbitmqctl-failed", f"rabbitmqctl {arguments[0]} failed: {reason}; run rabbitmqctl status"
            )
        return done.stdout


def _user(name: str, password: str) -> dict[str, Any]:
    """A user as RabbitMQ stores it: with a salted hash of the password."""
    salt = secrets.token_bytes(4)
    digest = hashlib.sha256(salt + password.encode()).digest()
    return {
        "name": name,
        "password_hash": base64.b64encode(salt + digest).decode(),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": "",
    }
