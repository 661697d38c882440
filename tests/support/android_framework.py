"""Android's framework for the JVM, and the libraries of app and tests: found, and unpacked once into a cache.

``framework.tar.xz`` lies in the folder that ``FEDSPZO_ANDROID`` names, or in ``../shared/android`` beside the checkout.
Where it does not, the artifacts of ``android_artifacts.txt`` are fetched from Maven Central and Google.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from android_sdk import CACHE, rename_unless_there

ROOT = Path(__file__).resolve().parents[2]
VARIABLE, _FILE = "FEDSPZO_ANDROID", "framework.tar.xz"
_ARTIFACTS = Path(__file__).with_name("android_artifacts.txt")
_REPOSITORIES = {"central": "https://repo1.maven.org/maven2", "google": "https://dl.google.com/android/maven2"}
_TIMEOUT_S = 60.0
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
    """The framework, unpacked (20 s, 540 MB) or fetched the first time.

    Raises:
        NoFramework: it is nowhere.
    """
    given = os.environ.get(VARIABLE)
    archive = (Path(given) if given else _BESIDE) / _FILE
    if archive.is_file():
        return Framework(_once(archive.read_bytes(), lambda folder: _unpack(archive, folder)))
    try:
        return Framework(_once(_ARTIFACTS.read_bytes(), lambda folder: fetch_artifacts(folder, _REPOSITORIES)))
    except OSError as error:
        raise NoFramework(
            f"Android's framework is not at {archive}, and Maven Central cannot be reached ({error}): set {VARIABLE} to"
            f" the folder that holds {_FILE}, or go online"
        ) from None


def _once(content: bytes, make: Callable[[Path], None]) -> Path:
    """A folder of the cache that is named after what it is made of; it appears whole or not at all."""
    target = CACHE / f"framework-{hashlib.sha256(content).hexdigest()[:12]}"
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as made:
            make(Path(made) / "all")
            rename_unless_there(Path(made) / "all", target)
    return target


def _unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(folder)  # it has but files and folders


def fetch_artifacts(folder: Path, repositories: dict[str, str]) -> None:
    """Lay out what ``framework.tar.xz`` has, from Maven repositories (some 500 MB). Raises OSError."""
    for line in _ARTIFACTS.read_text().splitlines():
        if not line.startswith("#"):
            place, repository, coordinates = line.split()
            name, _, kind = coordinates.partition("@")
            group, artifact, version = name.split(":")
            file = f"{artifact}-{version}.{kind or 'jar'}"
            url = f"{repositories[repository]}/{group.replace('.', '/')}/{artifact}/{version}/{file}"
            with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
                content = answer.read()
            _lay(folder, place, group, file, content)


def _lay(folder: Path, place: str, group: str, file: str, content: bytes) -> None:
    """Put an artifact where it belongs; of some, only what is needed."""
    if place == "stubs":
        target = Framework(folder).stubs
    elif place == "framework":
        target = Framework(folder).resources
    elif place == "tools":
        target = Framework(folder).r8
    else:  # two are called junit
        target = folder / place / f"{group}-{file}"
    target.parent.mkdir(parents=True, exist_ok=True)
    if place == "framework":
        with zipfile.ZipFile(io.BytesIO(content)) as whole, zipfile.ZipFile(target, "w") as package:
            for name in ("AndroidManifest.xml", "resources.arsc"):
                package.writestr(name, whole.read(name))
    elif place == "jars" and file.endswith(".aar"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            target.with_suffix(".jar").write_bytes(archive.read("classes.jar"))
    elif place == "sdk":  # Robolectric looks for it by its name
        target.with_name(file).write_bytes(content)
    else:
        target.write_bytes(content)
