"""Where Android's framework comes from: a folder that is named, or Maven repositories; what is said without either."""

from __future__ import annotations

import io
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import android_framework
import pytest
from android_framework import Framework, NoFramework, fetch_artifacts, find_framework


class Repository(BaseHTTPRequestHandler):
    """Has everything: a zip file with a manifest, resources and the path that was asked for."""

    def do_GET(self) -> None:
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            for name in ("AndroidManifest.xml", "resources.arsc", "classes.jar"):
                archive.writestr(name, self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(content.getvalue())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def repository() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Repository) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_artifacts_of_maven_repositories_are_laid_out_as_the_archive(tmp_path: Path, repository: str) -> None:
    fetch_artifacts(tmp_path, {"central": f"{repository}/c", "google": f"{repository}/g"})
    found = Framework(tmp_path)
    assert len(found.test_jars) == 44
    assert len(found.libraries) == 46
    assert found.r8.exists()
    with zipfile.ZipFile(found.stubs) as stubs:
        path = "/c/org/robolectric/android-all/15-robolectric-13954326/android-all-15-robolectric-13954326.jar"
        assert stubs.read("classes.jar").decode() == path
    with zipfile.ZipFile(found.resources) as package:
        assert package.namelist() == ["AndroidManifest.xml", "resources.arsc"]
    (sdk,) = (tmp_path / "sdk").iterdir()
    assert sdk.name == "android-all-instrumented-15-robolectric-13954326-i7.jar"
    (core,) = (jar for jar in found.test_jars if "androidx.test-core" in jar.name)
    assert core.read_text() == "/g/androidx/test/core/1.7.0/core-1.7.0.aar", "the classes of an archive"


def test_the_list_has_what_the_archive_has() -> None:
    try:
        given = find_framework()
    except NoFramework as error:
        pytest.skip(str(error))
    listed = [line.split() for line in android_framework._ARTIFACTS.read_text().splitlines() if line[0] != "#"]
    for place, files in (("jars", given.test_jars), ("aars", given.libraries)):
        versions = {coordinates.partition("@")[0].split(":")[2] for where, _, coordinates in listed if where == place}
        assert len(files) == sum(where == place for where, *_ in listed)
        assert all(any(file.stem.endswith(f"-{version}") for version in versions) for file in files)


def test_without_either_both_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSPZO_ANDROID", str(tmp_path))
    monkeypatch.setattr(android_framework, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(
        android_framework, "_REPOSITORIES", {**dict.fromkeys(("central", "google"), "http://127.0.0.1:9")}
    )
    with pytest.raises(NoFramework, match="Maven Central cannot be reached.*set FEDSPZO_ANDROID to the folder"):
        find_framework()
    assert not list((tmp_path / "cache").iterdir())
