"""The broker's certificates: its own authority, which devices trust, and a server certificate signed by it.

A folder keeps ``ca.pem`` (public), ``ca.key`` (signs; needed only when a server certificate is made) and ``server.pem``
(the server's certificate and key in one file, so that they change together). While the authority is changed, ``ca.pem``
has two certificates, of which the first one's key signs; the other is that of the next authority, whose key is
``ca.key.next`` so long, or then that of the last one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from enum import Enum
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedspzo.device_runtime.errors import BrokerError
from fedspzo.device_runtime.files import move_into_place, write_atomically

AUTHORITY, AUTHORITY_KEY, NEXT_KEY, SERVER = "ca.pem", "ca.key", "ca.key.next", "server.pem"

_AUTHORITY_VALID = timedelta(days=3650)
_SERVER_VALID = timedelta(days=397)
_RENEW_BEFORE = timedelta(days=30)
#: Certificates are valid from a day ago, for devices whose clock is slow.
_SLOW_CLOCK = timedelta(days=1)
_ALWAYS = ("localhost", "127.0.0.1")
_HOST_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")


def ensure_certificates(folder: Path, hosts: Sequence[str], now: datetime | None = None) -> bool:
    """Make what is missing; make the server certificate again for other hosts or when less than 30 days remain.

    Args:
        folder: where they lie; it must exist.
        hosts: names and addresses by which the server is reached, in addition to localhost and 127.0.0.1.
        now: the time; by default, the clock's.

    Returns:
        Whether there is a new server certificate.

    Raises:
        BrokerError: a host's name is not one, or a file is damaged or missing.
    """
    now = now or datetime.now(timezone.utc)
    names = [_general_name(host) for host in dict.fromkeys((*hosts, *_ALWAYS))]
    if not (folder / AUTHORITY).exists():
        _make_authority(folder, now)
    try:
        authority = x509.load_pem_x509_certificate((folder / AUTHORITY).read_bytes())
        if _is_good(folder / SERVER, authority, names, now):
            return False
        key = load_pem_private_key((folder / AUTHORITY_KEY).read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != authority.public_key():
            raise ValueError
    except FileNotFoundError as error:
        raise _missing(error) from None
    except (ValueError, x509.ExtensionNotFound):
        raise _damaged(folder) from None
    _make_server(folder, names, authority, key, now)
    return True


class Step(Enum):
    """One of the three steps by which a folder's authority is changed."""

    ADD = "add"
    USE = "use"
    DROP = "drop"


def next_step(folder: Path) -> Step:
    """Where a change of the authority stands, also one that was broken off. Raises BrokerError as below."""
    certificates, key = _load_authorities(folder)
    if len(certificates) == 1:
        return Step.ADD
    return Step.USE if (folder / NEXT_KEY).exists() or key == certificates[1].public_key() else Step.DROP


def take_step(folder: Path, step: Step) -> None:
    """Add another authority, or have it sign in the old one's place, or leave the old one out. Each can be repeated.

    What the new authority is to sign is made by :func:`ensure_certificates`.

    Raises:
        BrokerError: a file is damaged or missing.
    """
    certificates, _ = _load_authorities(folder)
    pems = [certificate.public_bytes(Encoding.PEM) for certificate in certificates]
    if step is Step.ADD:
        key, new = _new_authority(datetime.now(timezone.utc))
        write_atomically(folder / NEXT_KEY, _key_pem(key), 0o600)
        pems.append(new)
    elif step is Step.USE:
        if (folder / NEXT_KEY).exists():
            move_into_place(folder / NEXT_KEY, folder / AUTHORITY_KEY)
        pems.reverse()
    else:
        pems = pems[:1]
    write_atomically(folder / AUTHORITY, b"".join(pems), 0o644)


def _load_authorities(folder: Path) -> tuple[list[x509.Certificate], object]:
    """The certificates of authorities, and the public half of the key that signs."""
    try:
        certificates = x509.load_pem_x509_certificates((folder / AUTHORITY).read_bytes())
        return certificates, load_pem_private_key((folder / AUTHORITY_KEY).read_bytes(), None).public_key()
    except FileNotFoundError as error:
        raise _missing(error) from None
    except ValueError:
        raise _damaged(folder) from None


def _missing(error: FileNotFoundError) -> BrokerError:
    return BrokerError(
        "broker.certificate-missing",
        f"{error.filename} is missing, and a new certificate needs it; restore it from a backup",
    )


def _damaged(folder: Path) -> BrokerError:
    return BrokerError(
        "broker.certificate-damaged",
        f"a certificate in {folder} is damaged; restore it, or remove {AUTHORITY} and {SERVER} and enroll again",
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        pass
    try:
        name = host.encode("idna").decode()
    except ValueError:
        name = ""
    if not _HOST_NAME.fullmatch(name):
        raise BrokerError(
            "broker.host", f"'{host}' is neither a host name nor an address; write one such as broker.example.org"
        )
    return x509.DNSName(name)


def _is_good(path: Path, authority: x509.Certificate, names: Sequence[x509.GeneralName], now: datetime) -> bool:
    """Whether there is a server certificate by this authority, for these names, for long enough."""
    if not path.exists():
        return False
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return (
        certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value == _issued_by(authority)
        and set(alternatives) == set(names)
        and now < certificate.not_valid_after_utc - _RENEW_BEFORE
    )


def _make_authority(folder: Path, now: datetime) -> None:
    key, certificate = _new_authority(now)
    write_atomically(folder / AUTHORITY_KEY, _key_pem(key), 0o600)
    write_atomically(folder / AUTHORITY, certificate, 0o644)


def _new_authority(now: datetime) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    """A key, and its certificate in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "FedSPZO broker authority")])
    certificate = (
        _builder(name, name, key, now, now + _AUTHORITY_VALID)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(sign_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return key, certificate.public_bytes(Encoding.PEM)


def _make_server(
    folder: Path,
    names: Sequence[x509.GeneralName],
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    now: datetime,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "FedSPZO broker")])
    end = min(now + _SERVER_VALID, authority.not_valid_after_utc)
    certificate = (
        _builder(name, authority.subject, key, now, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(_issued_by(authority), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    write_atomically(folder / SERVER, certificate.public_bytes(Encoding.PEM) + _key_pem(key), 0o600)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SLOW_CLOCK)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _issued_by(authority: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
