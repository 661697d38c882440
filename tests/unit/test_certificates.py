"""Certificates of devices' keys: what makes them, who believes them, and where they are asked for."""

from __future__ import annotations

import shutil
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import raises, refused

from fedspzo.broker.rounds.job import Job, plan_round
from fedspzo.broker.server.devices import Member, Roster
from fedspzo.broker.server.outbox import Outbox
from fedspzo.broker.server.store import ServerStore
from fedspzo.broker.server.summing import Summing
from fedspzo.cli import main
from fedspzo.device_runtime.device.masking import Masker
from fedspzo.device_runtime.link.connection import Link
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.privacy.certificates import (
    CERTIFICATE,
    PURPOSE,
    certify,
    is_certified,
    keep_certificate,
    read_certificate,
)
from fedspzo.device_runtime.privacy.partners import check_partner, sign_partner
from fedspzo.device_runtime.protocol.codec import encode, fingerprint
from fedspzo.device_runtime.protocol.masked import Group, Inquiry, Masked, Partner, Partners, Ready
from fedspzo.device_runtime.protocol.messages import Result
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.protocol.signatures import ByLibrary, InPython, scheme
from fedspzo.device_runtime.protocol.signing import KEY_BYTES, Signer
from fedspzo.device_runtime.protocol.topics import Topics
from fedspzo.device_runtime.replica.state import DeviceState, read_identity
from fedspzo.export.network.target import Target
from fedspzo.options.hexadecimal import read_hex

ENROLMENT, OTHER = scheme().private_key(bytes(range(32))), scheme().private_key(bytes(32))
DEVICE = scheme().private_key(bytes(range(1, 33))).public
#: The certificate of that device's key by that enrolment key: a format too.
VECTOR = (
    "79b5562e8fe654f94078b112e8a98ba7901f853ae695bed7e0e3910bad049664"
    "9762dc9015520a0ff8536e732f4ee0542a56aed8cea88563726135f2103c761b"
    "4652fb0592ce50c805bc850a2be58e55152b095aa35b97c69e9dbf7ce75cb302"
)
secrets = st.binary(min_size=32, max_size=32)


def test_the_bytes_of_a_certificate() -> None:
    assert certify(ENROLMENT, DEVICE).hex() == VECTOR


@settings(max_examples=30, deadline=None)
@given(secrets, secrets, st.integers(0, 767))
def test_a_certificate_is_for_one_key_by_one_key(secret: bytes, device: bytes, bit: int) -> None:
    """With the library and without it; a flipped bit in it or in either key makes it worthless."""
    certificates = set()
    for by in (ByLibrary(), InPython()):
        enrolment, key = by.private_key(secret), by.private_key(device).public
        made = certify(enrolment, key)
        certificates.add(made)
        flipped = bytearray(made + enrolment.public)
        flipped[bit // 8] ^= 1 << bit % 8
        for text, wanted in ((made + enrolment.public, True), (bytes(flipped), False)):
            assert by.verify(text[96:], text[32:96], PURPOSE + text[:32]) is wanted
            assert is_certified(text[:32], text[32:96], text[96:]) is wanted
    assert len(certificates) == 1


def test_a_partner_without_the_enrolment_keys_certificate_is_refused(tmp_path: Path) -> None:
    signer, agreement, bundle = Signer(tmp_path / "key"), bytes(31) + b"2", bytes(range(32))

    def card(certificate: bytes) -> Partner:
        return sign_partner(signer, agreement, "job", bundle, certificate[KEY_BYTES:])

    check_partner(card(b""), "job", bundle, b"")
    check_partner(card(certify(ENROLMENT, signer.public)), "job", bundle, ENROLMENT.public)
    for wrong in (b"", certify(OTHER, signer.public), certify(ENROLMENT, DEVICE), bytes(96)):
        with raises("partner.not-certified", "enrolment key"):
            check_partner(card(wrong), "job", bundle, ENROLMENT.public)
    other = replace(card(certify(ENROLMENT, signer.public)), agreement=bytes(31) + b"1")
    with raises("message.wrong-signature"):
        check_partner(other, "job", bundle, ENROLMENT.public)


@pytest.mark.parametrize("point", [0, 1, 2**255 - 20, 2**255 - 19])
def test_a_partner_with_whom_nobody_can_agree_is_refused(tmp_path: Path, point: int) -> None:
    """The server refuses what devices do: otherwise the groups of such a device never become whole."""
    card = sign_partner(Signer(tmp_path / "key"), point.to_bytes(32, "little"), "job", bytes(32), b"")
    with raises("partner.no-secret", "its agreement key"):
        check_partner(card, "job", bytes(32), b"")


@pytest.fixture
def strict(pinned: Bundle, tmp_path: Path) -> Bundle:
    """A bundle that names the enrolment key."""
    folder = Path(shutil.copytree(pinned.folder, tmp_path / "strict"))
    replace(pinned.manifest, enrolment_key=ENROLMENT.public.hex()).write(folder)
    return Bundle(folder)


@pytest.fixture
def plan() -> Plan:
    job = replace(Job(cohort=4, quorum=4, batch=4), mode="secure")
    return plan_round(job.with_blocks((Block(3, 1, 0.25, 1e-3), Block(5, 4, 1.0, 1e-2))), 1)


def make_masker(bundle: Bundle, folder: Path, enrolment: object = ENROLMENT) -> Masker:
    _, key = read_identity(folder)
    if enrolment is not None:
        keep_certificate(folder, key, b"", [certify(enrolment, DEVICE), certify(enrolment, key)])  # type: ignore[arg-type]
    return Masker("default", DeviceState(folder, bundle))


def test_a_bundle_names_the_key_and_otherwise_has_the_identity_of_before(
    pinned: Bundle, strict: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "enrolment_key" not in (pinned.folder / "manifest.json").read_text()
    assert strict.identity != pinned.identity
    assert main(["inspect", str(strict.folder)]) == 0
    assert f"summed only with those that {ENROLMENT.public.hex()} certifies" in capsys.readouterr().out
    for wrong in ("00", "x" * 64, "AB" * 32, "00" * 33, "00" * 32 + "\n"):
        replace(strict.manifest, enrolment_key=wrong).write(strict.folder)
        with raises("bundle.manifest-damaged", "enrolment key"):
            Bundle(strict.folder)
    with raises("export.enrolment-key", "fedspzo certify"):
        Target(enrolment_key=bytes(64))


def test_a_device_without_a_certificate_masks_nothing_and_says_what_to_do(
    pinned: Bundle, strict: Bundle, plan: Plan, tmp_path: Path
) -> None:
    robust = plan_round(Job(batch=4).with_blocks(plan.blocks), 1)
    for name, enrolment, bundle, certified in (
        ("certified", ENROLMENT, strict, True),
        ("of-another-key", OTHER, strict, False),
        ("without", None, strict, False),
        ("where-none-is-asked-for", None, pinned, True),
    ):
        masker = make_masker(bundle, tmp_path / name, enrolment)
        key = masker._pairs.card.key.hex()
        assert masker.refusal(robust) == ""
        said = masker.refusal(plan)
        assert (said == "") is certified
        assert certified or (f"fedspzo certify --key FILE {key})" in said and "--certificate" in said)
        assert bool(masker._pairs.card.certificate) == (name in ("certified", "of-another-key"))


def test_a_device_masks_with_certified_ones_only(strict: Bundle, plan: Plan, tmp_path: Path) -> None:
    device, *others = (make_masker(strict, tmp_path / f"member-{n}") for n in range(4))
    intruder = make_masker(strict, tmp_path / "intruder", None)
    device.hold(plan, Result(1, fingerprint(plan), (1.0,) * plan.scalars, 0.5, 4, 0.25, b""))

    def join(*members: Masker) -> Masked | Inquiry | None:
        names = tuple(sorted(each._pairs.own for each in (device, *members)))
        asked = device.join(Group(1, fingerprint(plan), names))
        assert isinstance(asked, Inquiry)
        return device.learn(Partners(tuple(each._pairs.card for each in members if each._pairs.own in asked.members)))

    left = join(*others[:2], intruder)
    assert left == Inquiry((intruder._pairs.own,)), "the others' keys were taken, and nothing was masked"
    stolen = replace(intruder._pairs.card, certificate=others[0]._pairs.card.certificate)
    assert device.learn(Partners((stolen,))) is None
    assert isinstance(join(*others), Masked)


def test_the_server_introduces_certified_devices_only(strict: Bundle, plan: Plan, tmp_path: Path) -> None:
    good = make_masker(strict, tmp_path / "good")
    bad = make_masker(strict, tmp_path / "bad", OTHER)
    with ServerStore(tmp_path / "of-server", strict.identity) as store:
        outbox = Outbox(Link("mqtt://localhost", "server", []), Topics("default"), store, Roster(iter(())))

        def introduce(name: str, masker: Masker) -> None:
            card = masker._pairs.card
            summing = Summing(store, outbox, ENROLMENT.public)
            summing.introduce(Member(name, card.key), Ready(1, fingerprint(plan), b"", (card,)))

        introduce("good", good)
        with raises("partner.not-certified"):
            introduce("bad", bad)
        assert store.load_partners() == [("good", good._pairs.card)]


def test_a_record_without_a_certificate_has_the_bytes_of_before() -> None:
    plain = Partners((Partner(b"k", b"a", b"s"),))
    assert encode(plain).hex() == "83011681834 16b41614173".replace(" ", "")
    assert len(encode(replace(plain, partners=(Partner(b"k", b"a", b"s", bytes(64)),)))) == len(encode(plain)) + 66


def test_a_device_keeps_the_certificate_that_is_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    _, key = read_identity(folder)
    assert read_certificate(folder, key) == b""
    with raises("certificate.other-device", f"fedspzo certify --key FILE {key.hex()}"):
        keep_certificate(folder, key, ENROLMENT.public, [certify(ENROLMENT, DEVICE)])
    with raises("certificate.other-enrolment-key", ENROLMENT.public.hex(), key.hex()):
        keep_certificate(folder, key, ENROLMENT.public, [certify(OTHER, key)])
    assert not (folder / CERTIFICATE).exists()
    keep_certificate(folder, key, ENROLMENT.public, [certify(ENROLMENT, DEVICE), certify(ENROLMENT, key)])
    assert is_certified(key, read_certificate(folder, key), ENROLMENT.public)
    assert stat.S_IMODE((folder / CERTIFICATE).stat().st_mode) == 0o600
    assert read_certificate(folder, DEVICE) == b"", "of a state folder that had another key before"


def test_from_the_key_to_the_certificates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: object) -> list[str]:
        assert main(list(map(str, arguments))) == 0
        return capsys.readouterr().out.splitlines()

    secret = tmp_path / "enrolment.key"
    assert "[certificate.no-enrolment-key]" in refused(capsys, "certify", "--key", secret, DEVICE.hex())
    (public,) = run("certify", "--key", secret)
    assert [public] == run("certify", "--key", secret)
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    device = ("device", "x", "--data", "x", "--show-key", "--state")
    shown = [line for name in ("a", "b") for line in run(*device, tmp_path / name, "--id", name)]
    (tmp_path / "admitted").write_text("# ours\n\n" + "\n".join(shown) + "  # the second\n")
    lines = run("certify", "--key", secret, tmp_path / "admitted", DEVICE.hex())
    keys = [line.split()[1] for line in shown] + [DEVICE.hex()]
    for key, line in zip(keys, lines, strict=True):
        made = bytes.fromhex(line)
        assert made[:KEY_BYTES].hex() == key
        assert is_certified(made[:KEY_BYTES], made[KEY_BYTES:], bytes.fromhex(public))
    assert "and there is no such file; give" in refused(capsys, "certify", "--key", secret, tmp_path / "none")
    (tmp_path / "enrolment.pub").write_text(public + "\n")
    said = refused(capsys, "certify", "--key", tmp_path / "enrolment.pub", DEVICE.hex())
    assert "enrolment.pub is not an enrolment key" in said
    assert "[certificate.not-an-enrolment-key]" in said
    said = refused(capsys, "certify", "--key", tmp_path / "nowhere" / "k.key")
    assert f"there is no folder {tmp_path / 'nowhere'} " in said
    assert "partial" not in said
    (tmp_path / "admitted").write_text(f"# ours\n{shown[0]}\nb zz\n")
    assert "(line 3 does not)" in refused(capsys, "certify", "--key", secret, tmp_path / "admitted")


@pytest.mark.parametrize("content", ["", "# nothing\n", "00\n", f"{'00' * 32}\nzz\n", "\x00\n"])
def test_what_is_neither_hexadecimal_nor_a_file_of_it(content: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(content)
    with raises("option.not-hexadecimal", "--certificate", "64 hexadecimal digits"):
        read_hex("--certificate", str(tmp_path / "file"), 32)
    with raises("option.not-hexadecimal"):
        read_hex("--certificate", "\0", 32)
