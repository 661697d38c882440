"""The files of a managed mosquitto: its configuration, and who may read and write which topic."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fedspzo.broker.mqtt.logins import OPERATOR, SERVER_USER, job_of
from fedspzo.device_runtime.errors import BrokerError
from fedspzo.device_runtime.files import write_atomically

LOOPBACK = "127.0.0.1"
#: Bytes of memory that mosquitto may have.
MEMORY_BYTES = 1 << 30
#: Device → the jobs that its login is for.
_JOBS = "jobs.json"

# `topic` lines without a user are for anonymous clients, so what all may read are patterns, though without a name in
# them (mosquitto warns of that). A subscription to anything is granted; what is delivered goes by these rights.
_RIGHTS = f"""\
# Written at every start: changes are lost.
pattern read fl/v1/+/round
pattern read fl/v1/+/result
pattern read fl/v1/+/down/%u

user {SERVER_USER}
topic readwrite fl/v1/#

user {OPERATOR}
topic readwrite fl/v1/+/state/+
topic readwrite fl/v1/+/up/+
"""
_JOB_RIGHTS = """
user {login}
topic readwrite fl/v1/{job}/#
"""
# What a device may write the broker may have to retain: with a pattern for all jobs it could fill the memory.
_DEVICE_RIGHTS = """
topic write fl/v1/{job}/up/{login}
topic write fl/v1/{job}/state/{login}
"""

# autosave_interval 1 saves every two seconds or so. A kill loses no more, and devices announce themselves again on
# connecting; autosave_on_changes would write and sync the whole file at every message.
# max_queued_messages holds what all devices send the server at once; beyond it, mosquitto drops.
# max_packet_size holds a message of wire.MAX_BYTES with its topic.
# memory_limit: beyond it, clients that need more are disconnected. Devices can have it retain far less.
# max_connections: as many as the process may open files.
# user: what it is when started by root; other users cannot change it.
_GENERAL = """\
# Written at every start: changes are lost.
allow_anonymous false
allow_zero_length_clientid false
password_file passwords
acl_file acl
persistence true
autosave_interval 1
persistent_client_expiration 1d
max_queued_messages 10000
max_inflight_messages 100
max_packet_size 70000
memory_limit {memory}
max_keepalive 300
set_tcp_nodelay true
sys_interval 0
log_dest stderr
log_type error
log_type warning
log_type notice
log_timestamp_format %Y-%m-%dT%H:%M:%S
user root
"""
_LISTENER = """
listener {place}
max_connections -1
use_username_as_clientid true
"""
_TLS = """\
certfile server.pem
keyfile server.pem
tls_version tlsv1.2
"""


def read_jobs(folder: Path) -> dict[str, list[str]]:
    """Device → the jobs that its login is for; those that are not there have any. Raises BrokerError when damaged."""
    path = folder / _JOBS
    try:
        return dict(json.loads(path.read_bytes())) if path.exists() else {}
    except (ValueError, TypeError):
        raise BrokerError(
            "broker.jobs-damaged", f"{path} is damaged; restore it from a backup, or remove it and enroll again"
        ) from None


def write_jobs(folder: Path, jobs: Mapping[str, Sequence[str]]) -> None:
    """Write what :func:`read_jobs` reads."""
    write_atomically(folder / _JOBS, json.dumps(jobs).encode())


def rights(logins: Iterable[str], jobs: Mapping[str, Sequence[str]]) -> str:
    """Text of the file of rights.

    Args:
        logins: all of them.
        jobs: device → the jobs that its login is for; one that is not there is for any.
    """
    text = _RIGHTS
    for login in logins:
        if job := job_of(login):
            text += _JOB_RIGHTS.format(login=login, job=job)
        elif login not in (SERVER_USER, OPERATOR):
            text += f"\nuser {login}" + "".join(
                _DEVICE_RIGHTS.format(login=login, job=job) for job in jobs.get(login, "+")
            )
    return text


def configuration(port: int, public: bool, plain_port: int) -> str:
    """Text of mosquitto.conf, for mosquitto to be started in the folder with all the files.

    Args:
        port: of the TLS listener.
        public: whether it listens on every address, not only on 127.0.0.1.
        plain_port: of a listener without TLS on 127.0.0.1, or 0 for none.
    """
    text = (
        _GENERAL.format(memory=MEMORY_BYTES) + _LISTENER.format(place=port if public else f"{port} {LOOPBACK}") + _TLS
    )
    if plain_port:
        text += _LISTENER.format(place=f"{plain_port} {LOOPBACK}")
    return text
