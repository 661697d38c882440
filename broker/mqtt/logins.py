"""Users of a broker: a device's name is its id; a server's user may use all topics, or those of one job."""

from __future__ import annotations

import secrets

from fedspzo.device_runtime.errors import BrokerError
from fedspzo.device_runtime.protocol.topics import valid_id

#: May read and write every topic of the project.
SERVER_USER = "server"
_PREFIX = f"{SERVER_USER}-"
#: Takes back the presence of devices whose rights are taken away; no job can be named so that its login is this.
OPERATOR = _PREFIX


def server_login(job: str) -> str:
    """The login of a server that has one job's topics alone. Raises BrokerError when the job cannot have one."""
    login = _PREFIX + job
    if not valid_id(job) or not valid_id(login):
        raise BrokerError(
            "job.name-too-long",
            f"'{job}' cannot name a job whose broker has logins; use up to 57 letters, digits, '-' and '_'",
        )
    return login


def job_of(login: str) -> str | None:
    """The job whose topics alone a server's login has; None when it is another login."""
    return login[len(_PREFIX) :] if login.startswith(_PREFIX) else None


def new_password() -> str:
    """A random one, of letters, digits, ``-`` and ``_``."""
    return secrets.token_urlsafe(24)


def check_name(name: str) -> None:
    """Raise BrokerError when a name cannot be a user's."""
    if not valid_id(name):
        raise BrokerError(
            "access.user-name", f"'{name}' is not a valid user name; use up to 64 letters, digits, '-' and '_'"
        )


def check_device(name: str) -> None:
    """Raise BrokerError when a name cannot be a device's, or is kept for servers."""
    check_name(name)
    if name == SERVER_USER or job_of(name) is not None:
        raise BrokerError(
            "access.server-name", f"'{name}' is the name of a server; give the device a name with another beginning"
        )


def check_server(login: str, job: str) -> None:
    """Raise BrokerError when a login is for another job's server, whose messages would reach nobody."""
    if job_of(login) not in (None, job):
        raise BrokerError(
            "access.other-job",
            f"the login '{login}' is for the job '{job_of(login)}', not '{job}'; give that name with --job",
        )
