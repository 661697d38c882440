"""Invitations: a login as one line that fits a QR code."""

from __future__ import annotations

import base64
import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from refusals import raises

from fedspzo.broker.mqtt.certificates import AUTHORITY, ensure_certificates
from fedspzo.broker.mqtt.mosquitto import ManagedBroker
from fedspzo.broker.mqtt.mosquitto_program import installed
from fedspzo.cli import main
from fedspzo.device_runtime.errors import BrokerError
from fedspzo.device_runtime.link.access import Access
from fedspzo.device_runtime.link.invitation import QR_BYTES, SCHEME, Invitation
from fedspzo.device_runtime.protocol.enrolment import Request
from fedspzo.device_runtime.protocol.signing import Signer


def test_an_invitation_comes_back_whole_and_fits_a_qr_code(tmp_path: Path) -> None:
    ensure_certificates(tmp_path, ["broker.example.org"])
    authority = (tmp_path / AUTHORITY).read_text()
    access = Access("mqtts://broker.example.org:8883", "phone-1", "x" * 32, authority)
    text = Invitation(access, "job-2").text()
    assert text.startswith(SCHEME)
    assert len(text) < QR_BYTES / 3
    for copied in (text, f" {text[:50]}\n{text[50:]}\n", text.removeprefix(SCHEME)):
        assert Invitation.parse(copied) == Invitation(access, "job-2")
    plain = Invitation(Access("mqtt://127.0.0.1:1883"))
    assert Invitation.parse(plain.text()) == plain
    offering = Invitation(access, "job-2", "https://server.example.org:8443")
    assert Invitation.parse(offering.text()) == offering
    assert len(offering.text()) < len(text) + 50


def test_an_invitation_for_many_has_a_token_in_place_of_a_login(tmp_path: Path) -> None:
    many = Invitation(Access("mqtts://host"), "job-2", "https://server.example.org:8443", "t" * 43)
    file = tmp_path / "hall.invitation"
    file.write_text(many.text() + "\n")
    assert Invitation.load(file) == many
    assert many.token not in repr(many)
    file.write_text(Invitation(Access("mqtt://host", "a", "b")).text())
    with raises("access.invitation-of-one", "hall.invitation", "--access"):
        Invitation.load(file)
    with raises("access.invitation-unreadable", "none cannot be read"):
        Invitation.load(tmp_path / "none")
    file.write_bytes(b"\xff\x00")
    with raises("access.invitation", "fedspzo invite"):
        Invitation.load(file)


@given(st.binary(max_size=200) | st.from_regex(rb'\{"token": ("x"|3), "key": .{0,20}\}'))
def test_whatever_is_sent_to_enrol_is_refused_in_a_sentence(body: bytes) -> None:
    with raises("enrolment.request", "fedspzo device --invitation"):
        Request.parse(body)


def test_a_request_to_enrol_is_good_for_one_invitation_job_name_and_password(tmp_path: Path) -> None:
    request = Request.make("token", "job", "name", Signer(tmp_path / "key"), "p" * 43)
    assert Request.parse(request.encode()) == request
    request.check("job")
    changed = (replace(request, token="other"), replace(request, name="other"), replace(request, password="q" * 43))
    for wrong, job in ((request, "other"), *((each, "job") for each in changed)):
        with raises("enrolment.signature", "for this job"):
            wrong.check(job)


def test_what_is_no_invitation_is_refused_in_a_sentence(tmp_path: Path) -> None:
    text = Invitation(Access("mqtt://host", "a", "b")).text()
    for damaged in ("", text[:-4], text[:20], SCHEME + "AAAA", "https://example.org", SCHEME + "!!" + text[10:]):
        with raises("access.invitation", "scan or copy again"):
            Invitation.parse(damaged)
    with raises("access.authority"):
        Invitation(Access("mqtts://host", authority="-----BEGIN NONSENSE-----")).text()
    with raises("access.invitation-version", "version 4", "update it"):
        Invitation.parse(SCHEME + "hgRhdWF1YXCAYWo")


@given(st.binary(max_size=40))
@example(b"\x81" * 100_000)  # arrays in arrays
@example(base64.b64decode("javascript+alert1A==", altchars=b"+/"))  # tags that name what is not there
def test_whatever_is_scanned_gives_an_invitation_or_that_sentence(record: bytes) -> None:
    with contextlib.suppress(BrokerError):
        Invitation.parse(SCHEME + base64.urlsafe_b64encode(record).decode())


def test_nested_json_is_no_access_file() -> None:
    with raises("access.not-an-access-file"):
        Access.from_json('{"a":' * 100_000, "this text")


@pytest.mark.skipif(not installed(), reason="mosquitto is not installed")
def test_enroll_prints_invitations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("segno")
    with ManagedBroker(tmp_path / "broker") as _:
        pass
    options = ["--broker", str(tmp_path / "broker"), "--out", str(tmp_path), "--qr", "--job", "j"]
    assert main(["enroll", "phone-1", *options]) == 0
    *_, code, text = capsys.readouterr().out.splitlines()
    assert set(code) <= set(" ▀▄█\033[0123456789;m")
    assert Invitation.parse(text) == Invitation(Access.load(tmp_path / "phone-1.json"), "j")
    assert main(["enroll", "phone-1", *options, "--bundle-url", "https://server.example.org:8443"]) == 0
    assert Invitation.parse(capsys.readouterr().out.splitlines()[-1]).bundle_url == "https://server.example.org:8443"
    assert main(["enroll", "phone-2", *options, "--bundle-url", "server.example.org"]) == 1
    assert "'server.example.org' is not a URL to download from" in capsys.readouterr().err
    assert not (tmp_path / "phone-2.json").exists(), "nobody is enrolled before all is right"
