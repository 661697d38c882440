"""Who is let into the console: passwords are tried a few at a time, and a session lasts a working day at most."""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from starlette.exceptions import HTTPException

from fedspzo.broker.server.console.logins import LOOK, NOBODY, OPERATE, Login

#: Seconds that a session lasts, and that it lasts unused.
SESSION_S, UNUSED_S = 12 * 3600.0, 3600.0
#: Sessions at a time; the oldest goes.
MOST_SESSIONS = 1000
#: Wrong passwords of an address before it has to wait, and the longest wait in seconds.
FREE_TRIES, LONGEST_S = 5, 60.0
#: Addresses that wrong passwords are remembered of.
MOST_ADDRESSES = 10_000
#: Passwords that are hashed at a time: each takes 16 MiB and a core.
AT_A_TIME = 2
#: Name of who comes by a link instead of a login.
GUEST = "link"


@dataclass
class Session:
    """Somebody who is in.

    Attributes:
        name, login: see :class:`fedspzo.broker.server.console.logins.Logins`.
        csrf: what a request that changes something must show.
        began, used: seconds, by the gate's clock.
    """

    name: str
    login: Login
    began: float
    used: float
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    @property
    def operates(self) -> bool:
        """Whether it may change the job."""
        return self.login.role == OPERATE

    def is_of(self, token: str) -> bool:
        """Whether a request shows the session's token."""
        return hmac.compare_digest(token.encode(), self.csrf.encode())


class Gate:
    """Lets people in; all methods may be called by any thread.

    Attributes:
        link: a secret that lets its holder look, without a login; "" for none.
    """

    def __init__(
        self,
        logins: Callable[[], Mapping[str, Login]],
        link: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.link = link
        self._logins, self._clock = logins, clock
        self._guest = Login(LOOK, "", secrets.token_hex())
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        #: Address → tries by name, and when the next may be: who has one login clears no tries at another.
        self._wrong: OrderedDict[str, tuple[Counter[str], float]] = OrderedDict()
        self._lock, self._hashing = threading.Lock(), threading.Semaphore(AT_A_TIME)

    @property
    def empty(self) -> bool:
        """Whether nobody can come in, for want of logins."""
        return not self.link and not self._logins()

    def enter(self, name: str, password: str, address: str) -> str:
        """Let somebody in by a password; returns the secret of the session.

        Raises:
            HTTPException: 403 where name or password is wrong, 429 where an address has to wait.
        """
        with self._lock:
            tries, next_try = self._wrong.get(address, (Counter(), 0.0))
            wait = next_try - self._clock()
            if wait > 0:
                raise HTTPException(
                    429, f"too many wrong passwords; wait {wait:.0f} s", {"Retry-After": str(max(1, round(wait)))}
                )
            # Counted before the password is hashed: tries side by side are tries too.
            tries[name] += 1
            beyond = tries.total() - FREE_TRIES
            wait = min(LONGEST_S, 2.0**beyond) if beyond >= 0 else 0.0
            self._wrong[address] = own = tries, self._clock() + wait
            self._wrong.move_to_end(address)
            while len(self._wrong) > MOST_ADDRESSES:
                self._wrong.popitem(last=False)
        login = self._logins().get(name, NOBODY)
        with self._hashing:
            right = login.admits(password)
        if not right:
            raise HTTPException(403, "name or password is wrong")
        with self._lock:
            del tries[name]
            if self._wrong.get(address) is own:  # or wrong ones came meanwhile, and their wait stays
                self._wrong[address] = tries, next_try
        return self._begin(name, login)

    def enter_by_link(self, secret: str) -> str:
        """Let the holder of the link look; returns the secret of the session. Raises HTTPException for another."""
        if not self.link or not hmac.compare_digest(secret.encode(), self.link.encode()):
            raise HTTPException(403, "this link is not valid any more; take the one that fedspzo console prints")
        return self._begin(GUEST, self._guest)

    def find(self, secret: str) -> Session | None:
        """The session of a secret; None where it is over, or its login was changed or taken away."""
        now = self._clock()
        with self._lock:
            session = self._sessions.get(secret)
            if session is None:
                return None
            login = self._guest if session.login is self._guest else self._logins().get(session.name)
            if login != session.login or now > min(session.began + SESSION_S, session.used + UNUSED_S):
                del self._sessions[secret]
                return None
            session.used = now
            return session

    def leave(self, secret: str) -> None:
        """End a session."""
        with self._lock:
            self._sessions.pop(secret, None)

    def _begin(self, name: str, login: Login) -> str:
        secret, now = secrets.token_urlsafe(32), self._clock()
        with self._lock:
            self._sessions[secret] = Session(name, login, now, now)
            while len(self._sessions) > MOST_SESSIONS:
                self._sessions.popitem(last=False)
        return secret
