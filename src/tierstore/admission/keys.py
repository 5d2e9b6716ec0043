"""The key directory: which keys may sign tokens and URLs, and what each may grant at most.

Guarantees: only Ed25519 public keys are taken, from PEM text that an operator gave; a key is found by its exact id in a
table in memory, so that whatever a caller writes for an id names one of these keys, or none. Does not: read files, or
hold anything secret; a private key that is given by mistake is refused, and not repeated in the message.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from tierstore.errors import InvalidRequest, Unauthenticated
from tierstore.limits import KEY_VERSIONS_MAX
from tierstore.types.permissions import Permission

KID_CHARACTERS_MAX = 128


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """One key of the directory: its versions, any of which may have signed, and what it may grant."""

    kid: str
    versions: tuple[Ed25519PublicKey, ...]
    max_permissions: frozenset[Permission]

    def verifies(self, signature: bytes, signed: bytes) -> bool:
        """Whether ``signature`` is one of this key for ``signed``."""
        return any(_verifies(version, signature, signed) for version in self.versions)


def _verifies(version: Ed25519PublicKey, signature: bytes, signed: bytes) -> bool:
    try:
        version.verify(signature, signed)
    except InvalidSignature:
        return False
    return True


class KeyDirectory:
    """The keys that are valid now. Immutable."""

    def __init__(self, keys: Sequence[VerifyingKey] = ()) -> None:
        self._keys: Mapping[str, VerifyingKey] = {key.kid: key for key in keys}

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, kid: str) -> VerifyingKey:
        """The key with this id. Raises `Unauthenticated`."""
        key = self._keys.get(kid)
        if key is None:
            raise Unauthenticated("the key that signed this is not known here")
        return key


def verifying_key(kid: str, pems: Sequence[str], permissions: Sequence[str]) -> VerifyingKey:
    """A key as settings have it: PEM texts of its versions, names of permissions. Raises `InvalidRequest`."""
    if not pems:
        raise InvalidRequest("has no public key: name a file in files, or give its text in public_keys")
    if len(pems) > KEY_VERSIONS_MAX:
        raise InvalidRequest(f"has more than {KEY_VERSIONS_MAX} public keys")
    if not permissions:
        raise InvalidRequest("may grant nothing: max_permissions is empty; to revoke a key, take it out")
    versions = tuple(public_key_of(pem) for pem in pems)
    return VerifyingKey(kid, versions, frozenset(Permission(permission) for permission in permissions))


def public_key_of(pem: str) -> Ed25519PublicKey:
    """Read a public key in PEM (RFC 7468, RFC 8410). Raises `InvalidRequest`, which does not repeat the text."""
    if "PRIVATE KEY" in pem:
        raise InvalidRequest("is a private key, which a server must not have; give it the public one, and keep that")
    if pem.count("-----BEGIN ") > 1:  # all but the first would be passed over
        raise InvalidRequest("has more than one key in one text; give each its own, in files or public_keys")
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise InvalidRequest("is no public key in PEM; tierstore keys generate makes one") from None
    if not isinstance(key, Ed25519PublicKey):
        raise InvalidRequest("is a public key of another kind; only Ed25519 keys are used")
    return key


def private_key_of(pem: bytes) -> Ed25519PrivateKey:
    """Read an unencrypted private key in PEM. Raises `InvalidRequest`, which does not repeat the text."""
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise InvalidRequest("is no unencrypted private key in PEM; tierstore keys generate makes one") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidRequest("is a private key of another kind; only Ed25519 keys are used")
    return key


def new_key_pair() -> tuple[bytes, bytes]:
    """A new private key (PKCS #8), and its public half, both in PEM. Randomness is the library's own."""
    private = Ed25519PrivateKey.generate()
    return (
        private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    )
