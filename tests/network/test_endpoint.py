"""The HTTP endpoint and downloads from it: uvicorn on the loopback interface, cut connections, altered files, TLS."""

from __future__ import annotations

import datetime
import functools
import hashlib
import http.client
import http.server
import ipaddress
import json
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from patience import PATIENCE_S, TEST_S, wait_until
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from refusals import raises

from fedspzo.broker.rounds.anomalies import Record
from fedspzo.broker.server import http as endpoint
from fedspzo.broker.server.census import Census, Group
from fedspzo.broker.server.evaluation import Evaluated
from fedspzo.broker.server.http import serve
from fedspzo.broker.server.metrics import make_registry
from fedspzo.broker.server.status import ServerStatus
from fedspzo.broker.server.upkeep import Upkeep
from fedspzo.cli import main
from fedspzo.device_runtime.device import catch_up, transfer
from fedspzo.device_runtime.device.download import download, fetch_bundle, read
from fedspzo.device_runtime.device.transfer import DownloadError
from fedspzo.device_runtime.files import lock_folder
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import MANIFEST, WEIGHTS
from fedspzo.device_runtime.protocol.messages import Offer
from fedspzo.device_runtime.protocol.signing import PIN, read_pin, write_pin
from fedspzo.device_runtime.step.scores import Evaluation

KEY = bytes(range(32))


@pytest.fixture
def served(bundle_folder: Path, tmp_path: Path) -> Bundle:
    """A bundle of the test's own, with its server's key and a file that is none of its."""
    folder = tmp_path / "served"
    shutil.copytree(bundle_folder, folder)
    write_pin(folder, KEY)
    (folder / "notes.txt").write_text("private")
    return Bundle(folder)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries follow each other at once."""
    monkeypatch.setattr(transfer, "FIRST_WAIT_S", 0.01)


def serving(
    bundle: Bundle, snapshots: Callable[[], Mapping[int, Path]] = dict, tls: tuple[Path, Path] | None = None
) -> AbstractContextManager[str]:
    return serve(bundle, CollectorRegistry(), snapshots, tls=tls)


def ask(url: str, path: str, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    """One request as it stands; ``_`` in a header's name is ``-``."""
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE_S)) as connection:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response, response.read()


class CuttingProxy:
    """Passes connections on, and ends each of the first ``cuts`` after ``limit`` bytes of the answer.

    Attributes:
        requests: heads of the requests, in order.
        passed: bytes of answers, with their heads.
    """

    def __init__(self, target: str, cuts: int, limit: int) -> None:
        parts = urlsplit(target)
        self._target, self._cuts, self._limit = (parts.hostname, parts.port), cuts, limit
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[str] = []
        self.passed = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> CuttingProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            limit = self._limit if len(self.requests) < self._cuts else 1 << 62
            with client, socket.create_connection(self._target) as server:
                request = client.recv(1 << 16)
                self.requests.append(request.decode())
                server.sendall(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
                while limit and (piece := server.recv(min(limit, 1 << 14))):
                    client.sendall(piece)
                    limit -= len(piece)
                    self.passed += len(piece)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Python's own server of a folder, which knows neither ranges nor entity tags."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def handling(handler: Callable[..., http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """Another HTTP server."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:  # type: ignore[arg-type]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"lock"}


def test_a_bundle_arrives_whole_and_what_is_there_stays(served: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "device"
    seen: list[tuple[str, int, int]] = []
    with serving(served) as url:
        first = fetch_bundle(url, folder, on_progress=lambda *event: seen.append(event))
        again = fetch_bundle(url + "/", folder)
        (folder / WEIGHTS).write_bytes(b"damaged")
        mended = fetch_bundle(url, folder)
    files = served.manifest.files
    assert first.bundle.identity == served.identity
    assert names(folder) == {*files, MANIFEST, PIN}
    assert read_pin(folder) == KEY
    assert first.received == sum((served.folder / name).stat().st_size for name in files)
    assert {name for name, done, total in seen if done == total} == set(files)
    assert again.received == 0
    assert mended.received == (served.folder / WEIGHTS).stat().st_size


def test_the_bundle_changes(served: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "device"
    with serving(served) as url:
        fetch_bundle(url, folder)
    record = json.loads((served.folder / MANIFEST).read_text())
    record["model"]["name"] = "another"
    (served.folder / MANIFEST).write_text(json.dumps(record))
    with serving(Bundle(served.folder)) as url:
        fetched = fetch_bundle(url, folder)
    assert fetched.bundle.manifest.model["name"] == "another"
    assert fetched.received == 0


@pytest.mark.usefixtures("quick")
def test_a_download_goes_on_after_cuts(served: Bundle, tmp_path: Path) -> None:
    size = (served.folder / WEIGHTS).stat().st_size
    with serving(served) as url, CuttingProxy(url, cuts=3, limit=size // 4) as proxy:
        received = download(f"{proxy.url}/bundle/{WEIGHTS}", tmp_path / "file", served.manifest.files[WEIGHTS])
    assert (tmp_path / "file").read_bytes() == (served.folder / WEIGHTS).read_bytes()
    assert received == size
    assert proxy.passed < size + 4 * 1000
    tag = f'"{served.manifest.files[WEIGHTS]}"'
    assert len(proxy.requests) == 4
    assert "range:" not in proxy.requests[0].lower()
    assert all("Range: bytes=" in request and f"If-Range: {tag}" in request for request in proxy.requests[1:])


@pytest.mark.usefixtures("quick")
def test_a_download_goes_on_in_another_run(served: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size, file = (served.folder / WEIGHTS).stat().st_size, tmp_path / "device" / WEIGHTS
    with serving(served) as url, CuttingProxy(url, cuts=99, limit=size // 2) as proxy, monkeypatch.context() as patch:
        patch.setattr(transfer, "ATTEMPTS", 1)
        # Small files come through, and the cut comes in the first large one.
        with raises("download.failed", proxy.url, "check the URL and the network"):
            fetch_bundle(proxy.url, file.parent)
    parts = [path for path in file.parent.iterdir() if path.suffix == ".part"]
    assert len(parts) == 1
    there = sum(path.stat().st_size for path in file.parent.iterdir() if path.name in served.manifest.files)
    there += parts[0].stat().st_size
    assert not (file.parent / MANIFEST).exists()
    with serving(served) as url:  # another port, another process as far as HTTP can tell
        fetched = fetch_bundle(url, file.parent)
    assert fetched.received == sum((served.folder / name).stat().st_size for name in served.manifest.files) - there
    assert names(file.parent) == {*served.manifest.files, MANIFEST, PIN}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("tail", ["", "+", "-"])
def test_a_part_of_another_version_is_not_gone_on_with(
    served: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tail: str
) -> None:
    """Longer than the new version, shorter, or complete: it makes no difference."""
    old, new = os.urandom(300_000), os.urandom({"": 300_000, "+": 400_000, "-": 100_000}[tail])
    snapshot = tmp_path / "snapshot"
    snapshot.write_bytes(old)
    with serving(served, lambda: {7: snapshot}) as url:
        with CuttingProxy(url, cuts=99, limit=200_000) as proxy, monkeypatch.context() as patch:
            patch.setattr(transfer, "ATTEMPTS", 1)
            with pytest.raises(DownloadError):
                download(f"{proxy.url}/snapshot/7", tmp_path / "file")
        assert (tmp_path / "file.part").stat().st_size > 190_000
        (tmp_path / "beside").write_bytes(new)
        (tmp_path / "beside").replace(snapshot)
        assert download(f"{url}/snapshot/7", tmp_path / "file") == len(new)
    assert (tmp_path / "file").read_bytes() == new
    assert not list(tmp_path.glob("file.*"))


def test_a_part_that_is_complete_needs_no_byte(served: Bundle, tmp_path: Path) -> None:
    """As a kill between the last byte and the renaming leaves it."""
    digest = served.manifest.files[WEIGHTS]
    shutil.copy(served.folder / WEIGHTS, tmp_path / "file.part")
    (tmp_path / "file.part.etag").write_text(f'"{digest}"')
    with serving(served) as url:
        assert download(f"{url}/bundle/{WEIGHTS}", tmp_path / "file", digest) == 0
    assert (tmp_path / "file").read_bytes() == (served.folder / WEIGHTS).read_bytes()


def test_a_file_that_was_altered_is_refused(served: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "device"
    weights = bytearray((served.folder / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (served.folder / WEIGHTS).write_bytes(weights)
    with serving(served) as url, raises("download.altered", WEIGHTS):
        fetch_bundle(url, folder)
    assert not names(folder) & {MANIFEST, WEIGHTS, f"{WEIGHTS}.part", f"{WEIGHTS}.part.etag"}
    with raises("bundle.not-a-bundle"):
        Bundle(folder)


@pytest.mark.parametrize("more", [-1, 1, 1 << 26])
def test_a_file_of_another_size_is_not_read(served: Bundle, tmp_path: Path, more: int) -> None:
    size = (served.folder / WEIGHTS).stat().st_size
    record = json.loads((served.folder / MANIFEST).read_text())
    (served.folder / MANIFEST).write_text(json.dumps({**record, "sizes": {WEIGHTS: size}}))
    os.truncate(served.folder / WEIGHTS, size + more)
    seen: list[int] = []
    with serving(served) as url, raises("download.other-size", WEIGHTS, f"{size + more} bytes", f"{size} were", "try"):
        fetch_bundle(url, tmp_path / "device", on_progress=lambda name, done, _: seen.append(done * (name == WEIGHTS)))
    assert not any(seen)
    assert not [name for name in names(tmp_path / "device") if name.startswith(WEIGHTS)]


class Boasts(Handler):
    """Announces a number of bytes, the path, and gives three."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", self.path[1:])
        if self.path == "/7":
            self.send_header("ETag", '"seven"')
        self.end_headers()
        self.wfile.write(b"abc")


@pytest.mark.usefixtures("quick")
def test_only_what_can_be_gone_on_with_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "ATTEMPTS", 1)
    with handling(Boasts) as url:
        with raises("download.no-room", str(1 << 60), tmp_path, "make room"):
            download(f"{url}/{1 << 60}", tmp_path / "file")
        with raises("download.failed"):
            download(f"{url}/8", tmp_path / "file")
        assert not list(tmp_path.iterdir())
        with raises("download.failed"):
            download(f"{url}/7", tmp_path / "file")
        assert names(tmp_path) == {"file.part", "file.part.etag"}
        with raises("download.other-size", "7 bytes", "6"):
            download(f"{url}/7", tmp_path / "file", size=6)
    assert not list(tmp_path.iterdir())


def test_a_snapshot_that_the_journal_overtakes_leaves_nothing(
    served: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catch_up, "_TRIAL_S", 0.0)
    snapshot, pace = served.folder / WEIGHTS, catch_up.Pace()
    pace.applied(1, 0.01)
    with serving(served, lambda: {7: snapshot}) as url:
        offer = Offer(7, bytes(32), snapshot.stat().st_size, f"{url}/snapshot/7")
        assert not pace.fetch(offer, 1, tmp_path / "offered", "")
    assert names(tmp_path) == {"served"}


@pytest.mark.parametrize("name", ["../escaped", "server.pub", "Manifest.json", "/tmp/escaped", ".hidden", "a/b", ""])
def test_a_manifest_cannot_name_other_files(served: Bundle, tmp_path: Path, name: str) -> None:
    root = tmp_path / "static"
    (root / "bundle").mkdir(parents=True)
    record = json.loads((served.folder / MANIFEST).read_text())
    record["files"][name] = hashlib.sha256(b"").hexdigest()
    (root / "bundle" / MANIFEST).write_text(json.dumps(record))
    with (
        handling(functools.partial(Handler, directory=str(root))) as url,
        raises("download.foreign-file", f"'{name}'"),
    ):
        fetch_bundle(url, tmp_path / "device")
    assert names(tmp_path / "device") == set()


def test_another_servers_bundle_is_refused(served: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "device"
    folder.mkdir()
    write_pin(folder, bytes(32))
    with serving(served) as url, raises("bundle.other-server"):
        fetch_bundle(url, folder)
    assert names(folder) == {PIN}


def test_a_folder_in_use_is_left_alone(served: Bundle, tmp_path: Path) -> None:
    with serving(served) as url, lock_folder(tmp_path / "device"), raises("state.in-use"):
        fetch_bundle(url, tmp_path / "device")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/bundle",
        "/bundle/",
        "/bundle/notes.txt",
        "/bundle/nothing",
        f"/bundle/{MANIFEST}/",
        "/bundle/..",
        "/bundle/../notes.txt",
        "/bundle/..%2fserved%2fnotes.txt",
        "/bundle/%2e%2e/served/manifest.json",
        "/bundle/%2Fetc%2Fpasswd",
        f"/bundle/.%2f{MANIFEST}",
        "/bundle/manifest.json%00",
        "//etc/passwd",
        "/snapshot/",
        "/snapshot/8",
        "/snapshot/07",
        "/snapshot/9",
        "/snapshot/" + "9" * 9000,
        "/docs",
    ],
)
def test_nothing_else_is_given_out(served: Bundle, tmp_path: Path, path: str) -> None:
    (tmp_path / "s").write_bytes(b"s")
    with serving(served, lambda: {7: tmp_path / "s", 9: tmp_path / "removed"}) as url:
        response, content = ask(url, path)
    assert (response.status, content) == (404, b"Not Found")


def test_ranges_and_entity_tags(served: Bundle) -> None:
    whole, path = (served.folder / WEIGHTS).read_bytes(), f"/bundle/{WEIGHTS}"
    tag = f'"{served.manifest.files[WEIGHTS]}"'
    with serving(served) as url:
        response, content = ask(url, path)
        assert (response.status, content) == (200, whole)
        assert response.headers["ETag"] == tag
        assert response.headers["Accept-Ranges"] == "bytes"
        assert "Server" not in response.headers
        response, content = ask(url, path, "HEAD")
        assert (response.status, content, response.headers["Content-Length"]) == (200, b"", str(len(whole)))
        response, content = ask(url, path, Range="bytes=10-", If_Range=tag)
        assert (response.status, content) == (206, whole[10:])
        assert response.headers["Content-Range"] == f"bytes 10-{len(whole) - 1}/{len(whole)}"
        response, content = ask(url, path, Range="bytes=10-19")
        assert (response.status, content) == (206, whole[10:20])
        response, content = ask(url, path, Range="bytes=10-", If_Range='"another"')
        assert (response.status, content) == (200, whole)
        response, _ = ask(url, path, Range=f"bytes={len(whole)}-", If_Range=tag)
        assert (response.status, response.headers["Content-Range"]) == (416, f"bytes */{len(whole)}")
        response, _ = ask(url, path, "POST")
        assert response.status == 405
        manifest = (served.folder / MANIFEST).read_bytes()
        response, content = ask(url, f"/bundle/{MANIFEST}")
        assert (content, response.headers["ETag"]) == (manifest, f'"{hashlib.sha256(manifest).hexdigest()}"')
        assert ask(url, f"/bundle/{PIN}")[1] == (served.folder / PIN).read_bytes()
        assert ask(url, "/healthz")[1] == b"ok"


def test_a_snapshot_is_not_replaced_under_a_download(served: Bundle, tmp_path: Path) -> None:
    old, new = (os.urandom(1 << 20) * 32 for _ in range(2))  # more than fits into the buffers of a connection
    snapshot = tmp_path / "snapshot"
    snapshot.write_bytes(old)
    with serving(served, lambda: {7: snapshot}) as url:
        with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE_S)) as connection:
            connection.request("GET", "/snapshot/7")
            response = connection.getresponse()
            start = response.read(1000)
            (tmp_path / "beside").write_bytes(new)
            (tmp_path / "beside").replace(snapshot)
            assert start + response.read() == old
        response, content = ask(url, "/snapshot/7", Range="bytes=1000-", If_Range=response.headers["ETag"])
    assert (response.status, content) == (200, new)


def test_metrics(served: Bundle) -> None:
    counts = {"results accepted": 3, "plans declined": 1, "digests differing": 1}
    status = ServerStatus(
        round=12, results=1, asked=4, ready=2, known=9, counts=counts, bytes_sent=779, bytes_received=194,
        loss=0.5, loss_uncertainty=0.25, seconds=3.0, measured_joules=60.5, estimated_joules=7.0,
        records={"a": Record(contrary=5, noted=3), "b": Record(grouped=2, noted=3)}, rounds=40, closed_at=1e9,
        journal_bytes=310, evaluated=Evaluated(10, Evaluation(0.75, {"accuracy": 0.5}, 4)),
        best=Evaluated(5, Evaluation(0.625, {"accuracy": 0.75}, 4)), privacy=(1.5, 8.0),
        census=Census({"0.3": 2}, {"lab": Group(2, 1, 30, 7, 8)}, (30.0, 7200.0)),
    )  # fmt: skip
    upkeep = Upkeep(10**6, 10**7, 10**4, {"https": 2e9})
    with serve(served, make_registry(lambda: status, lambda: upkeep), dict) as url:
        response, content = ask(url, "/metrics")
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(content.decode())
        for sample in family.samples
    }
    assert samples == {
        ("fedspzo_results_total", "accepted"): 3,
        ("fedspzo_results_total", "late"): 0,
        ("fedspzo_results_total", "refused"): 0,
        ("fedspzo_results_total", "declined"): 1,
        ("fedspzo_payload_bytes_total", "sent"): 779,
        ("fedspzo_payload_bytes_total", "received"): 194,
        ("fedspzo_messages_dropped_total",): 0,
        ("fedspzo_digests_differing_total",): 1,
        ("fedspzo_anomalies_total", "large"): 0,
        ("fedspzo_anomalies_total", "contrary"): 5,
        ("fedspzo_devices_accused",): 0,
        ("fedspzo_devices_expelled",): 0,
        ("fedspzo_devices_noted",): 1,
        ("fedspzo_joules", "measured"): 60.5,
        ("fedspzo_joules", "estimated"): 7.0,
        ("fedspzo_round",): 12,
        ("fedspzo_open_results",): 1,
        ("fedspzo_open_asked",): 4,
        ("fedspzo_devices_ready",): 2,
        ("fedspzo_devices_known",): 9,
        ("fedspzo_loss",): 0.5,
        ("fedspzo_loss_uncertainty",): 0.25,
        ("fedspzo_round_seconds",): 3,
        ("fedspzo_job_rounds",): 40,
        ("fedspzo_finished",): 0,
        ("fedspzo_round_closed_timestamp_seconds",): 1e9,
        ("fedspzo_journal_bytes",): 310,
        ("fedspzo_held_out_round",): 10,
        ("fedspzo_held_out_loss",): 0.75,
        ("fedspzo_held_out_score", "accuracy"): 0.5,
        ("fedspzo_best_round",): 5,
        ("fedspzo_best_loss",): 0.625,
        ("fedspzo_best_score", "accuracy"): 0.75,
        ("fedspzo_privacy_epsilon_spent",): 1.5,
        ("fedspzo_privacy_epsilon_budget",): 8,
        ("fedspzo_devices", "0.3"): 2,
        ("fedspzo_group_devices_known", "lab"): 2,
        ("fedspzo_group_devices_ready", "lab"): 1,
        ("fedspzo_group_results_total", "lab"): 30,
        ("fedspzo_group_payload_bytes_total", "received", "lab"): 7,
        ("fedspzo_group_payload_bytes_total", "sent", "lab"): 8,
        **{
            ("fedspzo_device_unheard_seconds_bucket", limit): 1 if float(limit) < 7200 else 2
            for limit in ("60", "150", "600", "3600", "21600", "86400", "604800", "2.592e+06", "+Inf")
        },
        ("fedspzo_device_unheard_seconds_gcount",): 2,
        ("fedspzo_device_unheard_seconds_gsum",): 7230,
        ("fedspzo_disk_free_bytes",): 1e6,
        ("fedspzo_disk_bytes",): 1e7,
        ("fedspzo_state_bytes",): 1e4,
        ("fedspzo_certificate_expiry_timestamp_seconds", "https"): 2e9,
    }


def certify(folder: Path, name: str) -> tuple[Path, tuple[Path, Path]]:
    """An authority's certificate, and a certificate for 127.0.0.1 by it with its key."""
    now = datetime.datetime.now(datetime.timezone.utc)

    def make(
        subject: str, public: ec.EllipticCurvePublicKey, issuer: str, signer: ec.EllipticCurvePrivateKey
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
            )
        )  # fmt: skip

    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    top = (
        make(name, authority.public_key(), name, authority)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(authority, hashes.SHA256())
    )
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    leaf = (
        make("server", key.public_key(), name, authority)
        .add_extension(address, critical=False)
        .sign(authority, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    paths = [folder / f"{name}-{part}.pem" for part in ("authority", "certificate", "key")]
    paths[0].write_bytes(top.public_bytes(encoding))
    paths[1].write_bytes(leaf.public_bytes(encoding))
    paths[2].write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )  # fmt: skip
    return paths[0], (paths[1], paths[2])


def test_tls(served: Bundle, tmp_path: Path) -> None:
    authority, tls = certify(tmp_path, "one")
    other, _ = certify(tmp_path, "other")
    with serving(served, tls=tls) as url:
        assert url.startswith("https://127.0.0.1:")
        assert fetch_bundle(url, tmp_path / "device", authority.read_text()).bundle.identity == served.identity
        for wrong in ("", other.read_text()):
            with raises("download.untrusted", "check the URL and the authority"):
                read(f"{url}/healthz", 10, wrong)
        with raises("download.untrusted"):
            read(url.replace("127.0.0.1", "localhost") + "/healthz", 10, authority.read_text())
        with raises("download.authority-over-http", "write https"):
            read(url.replace("https", "http"), 10, authority.read_text())
        with raises("download.authority"):
            read(url, 10, "no certificate")
    with (
        raises("server.certificate", "give a certificate and its own key"),
        serving(served, tls=(authority, tls[1])),
    ):
        pass
    with raises("server.certificate", "give a certificate and its own key"), serving(served, tls=(tmp_path, tls[1])):
        pass


def test_a_renewed_certificate_is_shown(
    served: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a restart; one that cannot be used changes nothing."""
    monkeypatch.setattr(endpoint, "RENEWED_S", 0.01)
    authority, tls = certify(tmp_path, "one")
    other, renewed = certify(tmp_path, "other")

    def healthy(trusted: Path) -> bool:
        try:
            return read(f"{url}/healthz", 10, trusted.read_text()) == b"ok"
        except DownloadError:
            return False

    with serving(served, tls=tls) as url:
        assert healthy(authority)
        tls[1].write_text("half of a file")
        wait_until(lambda: "the old one stays" in caplog.text)
        assert healthy(authority)
        for old, new in zip(tls, renewed, strict=True):
            shutil.copy(new, old)
        wait_until(lambda: healthy(other))
        assert not healthy(authority)


def test_a_port_that_is_taken(served: Bundle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            raises("server.http-port-in-use", f"127.0.0.1:{port}", "choose another port"),
            serve(served, CollectorRegistry(), dict, port=port),
        ):
            pass


def test_silent_and_slow_clients_are_hung_up_on(
    served: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "REQUEST_S", 0.3)
    monkeypatch.setattr(endpoint, "STALL_S", int(TEST_S))
    (tmp_path / "snapshot").write_bytes(bytes(32 << 20))
    with serving(served, lambda: {1: tmp_path / "snapshot"}) as url:
        address = (urlsplit(url).hostname, urlsplit(url).port)
        with socket.create_connection(address, timeout=PATIENCE_S) as silent:
            silent.sendall(b"GET /healthz HTT")
            assert silent.recv(1) == b""
        slow = socket.create_connection(address, timeout=PATIENCE_S)
        slow.sendall(b"GET /snapshot/1 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert slow.recv(100)
    # The endpoint has ended here, although the client has not read what it was sent.
    slow.close()


@pytest.mark.usefixtures("quick")
def test_a_server_that_ignores_ranges(tmp_path: Path) -> None:
    content = os.urandom(500_000)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "file").write_bytes(content)
    with (
        handling(functools.partial(Handler, directory=str(tmp_path / "root"))) as url,
        CuttingProxy(url, cuts=2, limit=300_000) as proxy,
    ):
        (tmp_path / "file.part").write_bytes(b"something from long ago")
        (tmp_path / "file.part.etag").write_text('"old"')
        received = download(f"{proxy.url}/file", tmp_path / "file", hashlib.sha256(content).hexdigest())
    assert (tmp_path / "file").read_bytes() == content
    assert received > len(content)
    assert "Range: bytes=23-" in proxy.requests[0]


class Answers(Handler):
    """Answers a path such as /503 with that status, the first two times; then it is ``there``."""

    seen = 0

    def do_GET(self) -> None:
        Answers.seen += 1
        there = self.path == "/503" and Answers.seen > 2
        self.send_response(200 if there else int(self.path[1:]))
        self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        if self.path != "/200":
            self.send_header("Content-Length", "5" if there else "0")
        self.end_headers()
        self.wfile.write(b"there" if there else b"")


@pytest.mark.usefixtures("quick")
def test_what_a_server_may_answer(tmp_path: Path) -> None:
    Answers.seen = 0
    with handling(Answers) as url:
        assert read(f"{url}/503", 5) == b"there"
        with raises("download.too-large", "5 bytes", "4"):
            read(f"{url}/503", 4)
        with raises("download.missing", "/404", "check the URL"):
            download(f"{url}/404", tmp_path / "file")
        with raises("download.moved", "'http://127.0.0.1:1/elsewhere'"):
            download(f"{url}/302", tmp_path / "file")
        with raises("download.refused", "403 Forbidden"):
            download(f"{url}/403", tmp_path / "file")
        with raises("download.failed", "502 Bad Gateway", "try again later"):
            download(f"{url}/502", tmp_path / "file")
        with raises("download.no-length"):
            download(f"{url}/200", tmp_path / "file")
        with raises("download.unwritable", "choose another folder"):
            download(f"{url}/503", tmp_path / "none" / "file")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", ["host:80", "ftp://host/", "http://", "http://user:password@host/", "http://[::1", "x"])
def test_a_url_must_be_one(url: str) -> None:
    with raises("download.url", "https://host:8443"):
        read(url, 10)


@pytest.mark.usefixtures("quick")
def test_the_command(served: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(served) as url:
        assert main(["fetch", url, "--out", str(tmp_path / "device")]) == 0
    assert f"bundle {served.identity.hex()[:16]} in {tmp_path / 'device'}: " in capsys.readouterr().out
    assert main(["fetch", url, "--out", str(tmp_path / "device")]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"fedspzo fetch: {url}/bundle/{MANIFEST} cannot be downloaded (Connection refused); ")
    assert error.endswith("[download.failed]")
