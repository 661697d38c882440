"""The app as a process of its own, without Android: Java's part is played by lines of JSON on standard input.

Each line is ``[command, argument…]`` for :class:`fedspzo_app.app.App`; each gives one line back.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
sys.path[:0] = [
    str(HERE / "android_fakes"),
    str(REPOSITORY / "android_demo" / "app" / "src" / "main" / "python"),
    str(REPOSITORY),
]

import base64  # noqa: E402
import json  # noqa: E402

from android.content import Context  # noqa: E402
from cryptography.fernet import Fernet  # noqa: E402
from fedspzo_app.main import create  # noqa: E402


class Keystore:
    """A vault whose key lies outside the app's folder, as the phone's does."""

    def __init__(self, file: Path) -> None:
        if not file.exists():
            file.write_bytes(Fernet.generate_key())
        self._cipher = Fernet(file.read_bytes())

    def seal(self, text: str) -> str:
        return base64.b64encode(self._cipher.encrypt(text.encode())).decode()

    def open(self, text: str) -> str:
        return self._cipher.decrypt(base64.b64decode(text)).decode()


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
