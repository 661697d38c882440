"""A managed mosquitto: TLS, a login for each device, rights by name, and what it retains on disk.

A state folder holds all of it: certificates, configuration, rights, hashed passwords and the broker's own data. The
process that starts mosquitto takes it along when it ends; any other may add and remove users meanwhile. Linux only.
Run it as a user of its own: mosquitto keeps the rights of whoever starts it, to read the files again while it runs.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from fedspzo.broker.mqtt.certificates import AUTHORITY, ensure_certificates
from fedspzo.broker.mqtt.logins import OPERATOR, SERVER_USER, check_name, new_password
from fedspzo.broker.mqtt.mosquitto_files import LOOPBACK, configuration, read_jobs, rights, write_jobs
from fedspzo.broker.mqtt.mosquitto_program import by_name, find, hash_passwords, prepare_child
from fedspzo.device_runtime.errors import BrokerError
from fedspzo.device_runtime.files import check_no_package, lock_folder, write_atomically
from fedspzo.device_runtime.link.access import Access
from fedspzo.device_runtime.link.connection import Link
from fedspzo.device_runtime.link.events import Received
from fedspzo.device_runtime.protocol.topics import Topics

log = logging.getLogger(__name__)

DEFAULT_PORT = 8883
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
#: Seconds within which mosquitto sends what is retained.
RETAINED_S = 1.0
#: Seconds that mosquitto has to read its files again.
RELOAD_S = 0.5
DAY_S = 86400.0
#: Users whose topics fit into one subscription.
TOGETHER = 200


class ManagedBroker:
    """A mosquitto in a state folder; a context manager that starts and stops it.

    Attributes:
        folder: the state folder.
        hosts: names and addresses in the certificate, the public one first; localhost and 127.0.0.1 always are.
        port: of the TLS listener.
    """

    def __init__(self, folder: Path, hosts: Sequence[str] = (), port: int = 0, plain_port: int = 0) -> None:
        """Describe a broker, without starting it.

        Args:
            folder: made at the first start.
            hosts: by default those of the last start, or localhost. With loopback names alone, only this machine can
                connect.
            port: by default the last start's, or 8883.
            plain_port: of a listener on 127.0.0.1 without TLS; by default there is no such listener.

        Raises:
            BrokerError: what the folder says of the last start is damaged.
        """
        self.folder = folder.resolve()
        last_hosts, last_port = self._load_settings()
        self.hosts = tuple(hosts) or last_hosts
        self.port = port or last_port
        self._plain_port = plain_port
        self._process: subprocess.Popen[str] | None = None
        self._lines: deque[str] = deque(maxlen=20)
        self._reader = threading.Thread(target=self._relay, daemon=True)

    @property
    def url(self) -> str:
        """By the first host."""
        host = self.hosts[0]
        return f"mqtts://[{host}]:{self.port}" if ":" in host else f"mqtts://{host}:{self.port}"

    @property
    def pid(self) -> int | None:
        """Process number of the mosquitto that runs in the folder, whoever started it."""
        with suppress(FileNotFoundError), (self.folder / "pid").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read())
        return None

    def start(self) -> None:
        """Start mosquitto, once, and wait until it answers. It ends with the calling thread, or at :meth:`close`.

        Raises:
            BrokerError: mosquitto is not installed, does not start, or runs in this folder already.
        """
        program = find("mosquitto")
        check_no_package(self.folder)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with lock_folder(self.folder, wait=True), (self.folder / "pid").open("a") as pid_file:
            try:
                # mosquitto inherits the lock, which so is held exactly as long as it runs.
                fcntl.flock(pid_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BrokerError(
                    "broker.already-running",
                    f"a broker already runs in {self.folder}; stop it, or choose another folder",
                ) from None
            self._write_files()
            self._process = subprocess.Popen(
                [program, "-c", "mosquitto.conf"],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,  # a Ctrl-C in the terminal is for the parent, which then stops the broker
                pass_fds=[pid_file.fileno()],
                # It would tell systemd itself that it has started, which is for this process to say.
                env={name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"},
                umask=0o077,
                preexec_fn=prepare_child(),
            )
            pid_file.truncate(0)
            pid_file.write(str(self._process.pid))
            pid_file.flush()
            self._reader.start()
            try:
                self._wait_until_it_answers(self._process)
            except BaseException:
                self.close()
                raise

    def wait(self) -> None:
        """Stay until mosquitto ends by itself, and renew its certificate in time.

        Raises:
            BrokerError: it has ended.
        """
        assert self._process is not None, "start() comes first"
        while True:
            try:
                self._process.wait(DAY_S)
            except subprocess.TimeoutExpired:
                try:
                    self.renew_certificate()
                except BrokerError as error:  # the old one is good for some weeks
                    log.warning("the certificate could not be renewed: %s", error)
            else:
                raise BrokerError(
                    "broker.mosquitto-ended",
                    f"mosquitto has ended: {self._complaint()}; correct that, and start it again",
                )

    def renew_certificate(self) -> None:
        """Make the server certificate again if less than 30 days remain, and let a running mosquitto take it."""
        if ensure_certificates(self.folder, self.hosts):
            self._reload()

    def close(self) -> None:
        """Stop what :meth:`start` started; harmless if it has ended."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._reader.join()

    def __enter__(self) -> ManagedBroker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_user(self, name: str, jobs: Sequence[str] = ()) -> Access:
        """:meth:`add_users` for one."""
        return self.add_users([name], jobs)[0]

    def add_users(self, names: Iterable[str], jobs: Sequence[str] = ()) -> list[Access]:
        """Give users a new random password each; a running mosquitto takes them at once, and drops who had another.

        Args:
            jobs: those in which devices may take part; none for any. With any, a device can have mosquitto retain
                messages for as many jobs as it likes.

        Raises:
            BrokerError: a name is not valid, or no broker was ever started in the folder.
        """
        passwords = {name: new_password() for name in names}
        self.set_passwords(passwords, jobs)
        return [Access(self.url, name, password, self.authority) for name, password in passwords.items()]

    def set_passwords(self, passwords: Mapping[str, str], jobs: Sequence[str] = ()) -> None:
        """:meth:`add_users` with passwords that are given: name → letters, digits, ``-`` and ``_``."""
        for name in passwords:
            check_name(name)
        for job in jobs:
            Topics(job)
        self.check_started()
        with lock_folder(self.folder, wait=True):
            others = {name: found for name, found in read_jobs(self.folder).items() if name not in passwords}
            write_jobs(self.folder, {**others, **({name: list(jobs) for name in passwords} if jobs else {})})
            self._write_users(self._read_users() | hash_passwords(passwords))

    def users(self) -> frozenset[str]:
        """Names that have a login. Raises BrokerError when no broker was ever started in the folder."""
        self.check_started()
        return frozenset(self._read_users())

    def server_access(self) -> Access:
        """The server's own access, by localhost; made the first time, and kept in the folder's ``server.json``."""
        path = self.folder / "server.json"
        access = Access.load(path) if path.exists() else self.add_user(SERVER_USER)
        access = replace(access, url=f"mqtts://localhost:{self.port}", authority=self.authority)
        access.save(path)
        return access

    def remove_users(self, names: Iterable[str]) -> list[str]:
        """Take users' rights away; a running mosquitto disconnects them, and job servers hear that they have gone.

        Returns:
            Those that had a login.

        Raises:
            BrokerError: no broker was ever started in the folder.
        """
        self.check_started()
        operator = Access(f"mqtts://localhost:{self.port}", OPERATOR, new_password(), self.authority)
        with lock_folder(self.folder, wait=True):
            users = self._read_users()
            gone = [name for name in dict.fromkeys(names) if users.pop(name, None) is not None]
            if not gone:
                return gone
            users |= hash_passwords({OPERATOR: operator.password})  # a new one each time, which nobody else knows
            write_jobs(
                self.folder, {other: jobs for other, jobs in read_jobs(self.folder).items() if other not in gone}
            )
            self._write_users(users)
        if self.pid is not None:
            try:
                for start in range(0, len(gone), TOGETHER):
                    self._take_back_presence(gone[start : start + TOGETHER], operator)
            except BrokerError as error:  # servers find out by their silence, within minutes
                log.warning("the presence of %s could not be taken back: %s", ", ".join(gone), error)
        return gone

    def _take_back_presence(self, names: Sequence[str], operator: Access) -> None:
        """Remove what users have retained: mosquitto does not publish the will of one that it turns out."""
        link = Link(operator, OPERATOR, [f"fl/v1/+/{kind}/{name}" for name in names for kind in ("state", "up")])
        link.connect()
        try:
            while (event := link.next(RETAINED_S)) is not None:
                if isinstance(event, Received) and event.payload:
                    link.publish(event.topic, b"", retain=True)
        finally:
            link.close()

    @property
    def authority(self) -> str:
        """Certificate of the authority, as PEM text."""
        return (self.folder / AUTHORITY).read_text()

    def check_started(self) -> None:
        if not (self.folder / "passwords").exists():
            raise BrokerError(
                "broker.not-a-state-folder",
                f"{self.folder} is not the state folder of a broker; start a broker there with fedspzo broker --state",
            )

    def _read_users(self) -> dict[str, str]:
        """Name → its line of the password file."""
        return by_name((self.folder / "passwords").read_text())

    def _write_users(self, users: dict[str, str]) -> None:
        self._write("acl", rights(users, read_jobs(self.folder)))
        self._write("passwords", "".join(f"{line}\n" for line in users.values()))
        self._reload()

    def _reload(self) -> None:
        pid = self.pid
        if pid is not None:
            os.kill(pid, signal.SIGHUP)
            time.sleep(RELOAD_S)  # a signal that comes while mosquitto reads the files is lost
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGHUP)

    def _load_settings(self) -> tuple[tuple[str, ...], int]:
        path = self.folder / "settings.json"
        if not path.exists():
            return ("localhost",), DEFAULT_PORT
        try:
            settings = json.loads(path.read_bytes())
            return tuple(map(str, settings["hosts"])), int(settings["port"])
        except (ValueError, TypeError, KeyError):
            raise BrokerError(
                "broker.settings-damaged", f"{path} is damaged; remove it, and start the broker with --host and --port"
            ) from None

    def _write_files(self) -> None:
        ensure_certificates(self.folder, self.hosts)
        self._write(
            "mosquitto.conf", configuration(self.port, not all(map(_is_loopback, self.hosts)), self._plain_port)
        )
        self._write("settings.json", json.dumps({"hosts": self.hosts, "port": self.port}))
        if not (self.folder / "passwords").exists():
            self._write("passwords", "")
        self._write("acl", rights(self._read_users(), read_jobs(self.folder)))

    def _write(self, name: str, text: str) -> None:
        write_atomically(self.folder / name, text.encode(), mode=0o600)

    def _wait_until_it_answers(self, process: subprocess.Popen[str]) -> None:
        """A handshake with the folder's certificate tells mosquitto from whoever else may have the port."""
        context = ssl.create_default_context(cafile=self.folder / AUTHORITY)
        end = time.monotonic() + START_TIMEOUT_S
        while process.poll() is None and time.monotonic() < end:
            with suppress(OSError), socket.create_connection((LOOPBACK, self.port), 1.0) as connection:
                context.wrap_socket(connection, server_hostname=LOOPBACK).close()
                return
            time.sleep(0.02)
        raise BrokerError(
            "broker.mosquitto-not-started",
            f"mosquitto did not start on port {self.port}: {self._complaint()}; correct that, or choose another --port",
        )

    def _relay(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                text = line.rstrip().partition(": ")[2]  # after the time
                self._lines.append(text)
                # It warns of settings that are meant so, at each reading of its files.
                log.log(
                    logging.DEBUG if text.startswith(("Warning", "OpenSSL")) else logging.INFO, "mosquitto: %s", text
                )

    def _complaint(self) -> str:
        """The last error that mosquitto logged, or its last words."""
        self._reader.join(1.0)
        lines = list(self._lines)
        errors = [line for line in lines if line.startswith("Error")]
        return (errors or lines or ["it says nothing"])[-1]


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
