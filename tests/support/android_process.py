"""The app as a process of its own, without Android: Java's part is played by lines of JSON on standard input.

Only the app and the stand-ins for Java's classes are put on the path; the runtime is where PYTHONPATH says.

Each line is ``[command, argument…]`` for :class:`fedspzo_app.app.App`; each gives one line back.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [
    str(HERE / "android_fakes"),
    str(HERE.parents[1] / "android_demo" / "app" / "src" / "main" / "python"),
]

import base64  # noqa: E402
import hashlib  # noqa: E402
import hmac  # noqa: E402
import json  # noqa: E402
import secrets  # noqa: E402

from android.content import Context  # noqa: E402
from fedspzo_app.main import create  # noqa: E402


class Keystore:
    """A vault whose key lies outside the app's folder, as the phone's does; a stand-in for AES-GCM, and no match."""

    def __init__(self, file: Path) -> None:
        if not file.exists():
            file.write_bytes(secrets.token_bytes(32))
        self._key = file.read_bytes()

    def seal(self, text: str) -> str:
        nonce = secrets.token_bytes(16)
        hidden = self._hide(nonce, text.encode())
        return base64.b64encode(nonce + self._tag(nonce + hidden) + hidden).decode()

    def open(self, text: str) -> str:
        sealed = base64.b64decode(text)
        nonce, tag, hidden = sealed[:16], sealed[16:48], sealed[48:]
        if not hmac.compare_digest(tag, self._tag(nonce + hidden)):
            raise ValueError("altered, or another key")
        return self._hide(nonce, hidden).decode()

    def _hide(self, nonce: bytes, text: bytes) -> bytes:
        stream = hashlib.shake_256(self._key + nonce).digest(len(text))
        return bytes(a ^ b for a, b in zip(text, stream, strict=True))

    def _tag(self, text: bytes) -> bytes:
        return hmac.digest(self._key, text, "sha256")


class Listener:
    """What Java would tell the screen by."""

    changes = 0

    def changed(self) -> None:
        self.changes += 1


def main() -> None:
    folder = Path(sys.argv[1])
    app = create(str(folder / "no_backup"), Context(folder / "phone.json"), Keystore(folder / "keystore"))
    listener = Listener()
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        if name == "start":
            arguments = [listener]
        print(getattr(app, name)(*arguments), flush=True)


if __name__ == "__main__":
    main()
