"""The record by which devices know each other's keys: signed by its owner, for one job and one bundle."""

from __future__ import annotations

from fedspzo.device_runtime.errors import MessageError
from fedspzo.device_runtime.privacy.certificates import is_certified
from fedspzo.device_runtime.protocol.agreement import key_agreement
from fedspzo.device_runtime.protocol.masked import Partner
from fedspzo.device_runtime.protocol.signing import KEY_BYTES, SIGNATURE_BYTES, Scope, Signer, check

#: Comes before the key that is signed; no message begins like it.
PURPOSE = b"fedspzo agreement key "


def sign_partner(signer: Signer, agreement: bytes, job: str, bundle: bytes, certificate: bytes) -> Partner:
    """A device's record, with its public key of X25519."""
    signed = signer.sign(PURPOSE + agreement, Scope(job, bundle))
    return Partner(signer.public, agreement, signed[-SIGNATURE_BYTES:], certificate)


def check_partner(partner: Partner, job: str, bundle: bytes, enrolment: bytes) -> None:
    """Raise MessageError unless the owner of a record's first key has signed the second, for a job and a bundle, and
    others can agree on secrets with it.

    Args:
        enrolment: the key that has certified the first one; empty where the bundle names none.
    """
    if (len(partner.key), len(partner.agreement), len(partner.signature)) != (KEY_BYTES, KEY_BYTES, SIGNATURE_BYTES):
        raise MessageError("partner.keys", "it does not have two keys and a signature")
    if len(partner.certificate) != (SIGNATURE_BYTES if enrolment else 0) or (
        enrolment and not is_certified(partner.key, partner.certificate, enrolment)
    ):
        raise MessageError(
            "partner.not-certified",
            "its key has no certificate of the bundle's enrolment key, or one that the bundle does not ask for",
        )
    check(PURPOSE + partner.agreement + partner.signature, Scope(job, bundle), partner.key)
    try:
        key_agreement().private_key(bytes(KEY_BYTES)).agree(partner.agreement)  # a bad key is bad for all alike
    except ValueError:
        raise MessageError(
            "partner.no-secret", "its agreement key is of low order, so that nobody has a secret with it"
        ) from None
