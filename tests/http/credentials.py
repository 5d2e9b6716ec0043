"""Credentials made by hand, so that any part of them can be wrong: nothing here is shared with what verifies them."""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tierstore.admission.authentication import Access
from tierstore.admission.keys import KeyDirectory, verifying_key
from tierstore.clock import MICROS_PER_SECOND, SystemClock, UnixMicros

NOW_SECONDS = 1_800_000_000
"""When the tests of credentials take place: their edges are met exactly."""
ALL = ("object.read", "object.write", "object.delete")
LEEWAY_SECONDS = 10


class StandingClock(SystemClock):
    """A clock whose wall time stands still until it is moved; durations and waits are real."""

    def __init__(self) -> None:
        self.seconds: float = NOW_SECONDS

    def now(self) -> UnixMicros:
        return round(self.seconds * MICROS_PER_SECOND)


def b64(content: bytes | Mapping[str, Any]) -> str:
    """Base64url without padding, of bytes or of JSON."""
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@dataclass
class Signer:
    """A key pair, and what is signed with it."""

    kid: str
    private: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    @property
    def public_pem(self) -> str:
        """What the server is given."""
        public = self.private.public_key()
        return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    def token(
        self,
        claims: Mapping[str, Any] | bytes | None = None,
        header: Mapping[str, Any] | bytes | None = None,
        sign: Callable[[bytes], bytes] | None = None,
        **changed: Any,
    ) -> str:
        """A good token, with claims that are ``changed`` (None: left out), or with parts that are given as a whole."""
        if claims is None:
            claims = {name: value for name, value in (good_claims() | changed).items() if value is not None}
        if header is None:
            header = {"alg": "EdDSA", "kid": self.kid, "typ": "JWT"}
        signed = f"{b64(header)}.{b64(claims)}"
        return f"{signed}.{b64((sign or self.private.sign)(signed.encode()))}"

    def presigned(
        self,
        path: str,
        *,
        method: str = "GET",
        query: str = "",
        timestamp: str | None = None,
        duration: object = 600,
        kid: str | None = None,
        early_seconds: float = 0,
    ) -> str:
        """The target of a pre-signed request; ``early_seconds`` is how long before its timestamp it is now."""
        moment = datetime.fromtimestamp(NOW_SECONDS, UTC) + timedelta(seconds=early_seconds)
        stamp = timestamp if timestamp is not None else moment.isoformat().replace("+00:00", "Z")
        named = f"os_kid={kid or self.kid}&os_timestamp={stamp}&os_duration={duration}"
        query = f"{query}&{named}" if query else named
        return f"{path}?{query}&os_sig={self.signature(method, path, query)}"

    def signature(self, method: str, path: str, query: str) -> str:
        """Of a request, by the protocol's rule."""
        pairs = [pair.partition("=") for pair in query.split("&") if pair]
        lowered = sorted(f"{name.lower()}{equals}{value}" for name, equals, value in pairs)
        text = f"{method}\n{path}\n{'&'.join(lowered)}"
        return b64(self.private.sign(text.encode("latin-1")))


def good_claims() -> dict[str, Any]:
    """What permits everything in ``testing/org=1``, for a minute."""
    return {
        "exp": NOW_SECONDS + 60,
        "res": {"os:usecase": "testing", "org": "1"},
        "permissions": list(ALL),
    }


def access_of(*signers: Signer, permissions: Sequence[str] = ALL, enforce: bool = True) -> Access:
    """What lets a server take what these have signed."""
    keys = [verifying_key(signer.kid, [signer.public_pem], permissions) for signer in signers]
    return Access(enforce=enforce, keys=KeyDirectory(keys), leeway_seconds=LEEWAY_SECONDS)
