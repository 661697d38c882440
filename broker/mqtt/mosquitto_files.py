"""The files of a managed mosquitto: its configuration, and who may read and write which topic."""

from __future__ import annotations

from collections.abc import Iterable

from fedspzo.broker.mqtt.logins import OPERATOR, SERVER_USER, job_of

LOOPBACK = "127.0.0.1"

# `topic` lines without a user are for anonymous clients, so what all may read are patterns, though without a name in
# them (mosquitto warns of that). A subscription to anything is granted; what is delivered goes by these rights.
_RIGHTS = f"""\
# Written at every start: changes are lost.
pattern read fl/v1/+/round
pattern read fl/v1/+/result
pattern read fl/v1/+/down/%u
pattern write fl/v1/+/up/%u
pattern write fl/v1/+/state/%u

user {SERVER_USER}
topic readwrite fl/v1/#

user {OPERATOR}
topic readwrite fl/v1/+/state/+
"""
# What the patterns would give it as if it were a device is taken back.
_JOB_RIGHTS = """
user {login}
topic deny fl/v1/+/up/{login}
topic deny fl/v1/+/state/{login}
topic readwrite fl/v1/{job}/#
"""

# autosave_interval 1 saves every two seconds or so. A kill loses no more, and devices announce themselves again on
# connecting; autosave_on_changes would write and sync the whole file at every message.
# max_queued_messages holds what all devices send the server at once; beyond it, mosquitto drops.
# max_packet_size holds a message of wire.MAX_BYTES with its topic.
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


def rights(logins: Iterable[str]) -> str:
    """Text of the file of rights, given all logins."""
    jobs = {login: job for login in logins if (job := job_of(login))}
    return _RIGHTS + "".join(_JOB_RIGHTS.format(login=login, job=job) for login, job in jobs.items())


def configuration(port: int, public: bool, plain_port: int) -> str:
    """Text of mosquitto.conf, for mosquitto to be started in the folder with all the files.

    Args:
        port: of the TLS listener.
        public: whether it listens on every address, not only on 127.0.0.1.
        plain_port: of a listener without TLS on 127.0.0.1, or 0 for none.
    """
    text = _GENERAL + _LISTENER.format(place=port if public else f"{port} {LOOPBACK}") + _TLS
    if plain_port:
        text += _LISTENER.format(place=f"{plain_port} {LOOPBACK}")
    return text
