"""What can be a key of the directory, and what is refused, without repeating it."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.http.credentials import ALL, Signer
from tierstore.admission.keys import KeyDirectory, new_key_pair, private_key_of, public_key_of, verifying_key
from tierstore.errors import InvalidRequest, Unauthenticated
from tierstore.limits import KEY_VERSIONS_MAX


def _pem(key: PublicKeyTypes) -> str:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def test_a_new_pair_fits_together() -> None:
    """What the private half signs, the public one verifies; two pairs differ."""
    (private, public), (_, other) = new_key_pair(), new_key_pair()
    signature = private_key_of(private).sign(b"text")
    assert verifying_key("kid", [public.decode()], ALL).verifies(signature, b"text")
    assert not verifying_key("kid", [public.decode()], ALL).verifies(signature, b"texT")
    assert not verifying_key("kid", [other.decode()], ALL).verifies(signature, b"text")


def test_other_keys_are_refused() -> None:
    """Only Ed25519 public keys: no other kind, no private key, no text that is none; messages do not repeat it."""
    private, public = (pem.decode() for pem in new_key_pair())
    for pem, reason in (
        (private, "private key"),
        (_pem(rsa.generate_private_key(65537, 2048).public_key()), "another kind"),
        (_pem(ec.generate_private_key(ec.SECP256R1()).public_key()), "another kind"),
        (_pem(ed448.Ed448PrivateKey.generate().public_key()), "another kind"),
        ("", "PEM"),
        ("hello", "PEM"),
        (public[:60], "PEM"),
        (public.replace("PUBLIC", "CERTIFICATE"), "PEM"),
    ):
        with pytest.raises(InvalidRequest, match=reason) as refused:
            public_key_of(pem)
        assert not any(line in str(refused.value) for line in pem.splitlines() if line)
    with pytest.raises(InvalidRequest, match="private key in PEM"):
        private_key_of(public.encode())


def test_a_key_has_versions_and_permissions() -> None:
    """No version, too many, or no permission: refused."""
    pem = Signer("kid").public_pem
    for pems, permissions in (((), ALL), ((pem,) * (KEY_VERSIONS_MAX + 1), ALL), ((pem,), ())):
        with pytest.raises(InvalidRequest):
            verifying_key("kid", pems, permissions)


def test_keys_are_found_by_their_exact_id() -> None:
    """No other spelling of an id finds a key."""
    directory = KeyDirectory([verifying_key("kid", [Signer("kid").public_pem], ALL)])
    assert directory.find("kid").kid == "kid"
    for kid in ("KID", "kid ", "", "kid\x00", "./kid", "ki"):
        with pytest.raises(Unauthenticated):
            directory.find(kid)
