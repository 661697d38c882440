"""Android's framework for the JVM, and the libraries of app and tests: found, and unpacked once into a cache.

``framework.tar.xz`` lies in the folder that ``FEDSPZO_ANDROID`` names, or in ``../shared/android`` beside the checkout.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from android_sdk import CACHE, rename_unless_there

ROOT = Path(__file__).resolve().parents[2]
VARIABLE, _FILE = "FEDSPZO_ANDROID", "framework.tar.xz"
_BESIDE = ROOT.parent / "shared" / "android"


class NoFramework(Exception):
    """The framework's files cannot be had; the sentence says what to do."""


@dataclass(frozen=True)
class Framework:
    """Where the files lie.

    Attributes:
        folder: with ``sdk/`` (what Robolectric runs), ``jars/`` (class path of tests), ``aars/`` (Material and
            AndroidX), ``tools/`` (D8 and R8), ``framework/`` (resources to link with).
    """

    folder: Path

    @property
    def stubs(self) -> Path:
        """Android's public classes, to compile against."""
        return self.folder / "jars" / "android-35-stubs.jar"

    @property
    def resources(self) -> Path:
        """Android's own resources, to link with."""
        return self.folder / "framework" / "framework-34.apk"

    @property
    def r8(self) -> Path:
        """D8 and R8."""
        return self.folder / "tools" / "r8-8.13.2.jar"

    @property
    def test_jars(self) -> list[Path]:
        """What tests need besides the app: JUnit, Robolectric, androidx.test."""
        return sorted(set((self.folder / "jars").glob("*.jar")) - {self.stubs})

    @property
    def libraries(self) -> list[Path]:
        """The app's own: Material and AndroidX, archives and plain jars."""
        return sorted((self.folder / "aars").iterdir())


def find_framework() -> Framework:
    """The framework, unpacked the first time (20 s, 540 MB).

    Raises:
        NoFramework: it is nowhere.
    """
    given = os.environ.get(VARIABLE)
    archive = (Path(given) if given else _BESIDE) / _FILE
    if not archive.is_file():
        raise NoFramework(
            f"Android's framework is not at {archive}, and Maven Central cannot be reached: set {VARIABLE} to the"
            f" folder that holds {_FILE}"
        )
    with archive.open("rb") as file:
        name = hashlib.sha256(file.read()).hexdigest()[:12]
    target = CACHE / f"framework-{name}"
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as made:
            with tarfile.open(archive) as tar:
                tar.extractall(Path(made) / "unpacked")  # it has but files and folders
            rename_unless_there(Path(made) / "unpacked", target)
    return Framework(target)
