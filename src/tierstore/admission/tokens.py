"""Tokens: signed statements of what their bearer may do (JWT, RFC 7519, with EdDSA, RFC 8037).

Guarantees: a token is taken only if its header says EdDSA, a key of the directory under exactly its ``kid`` signed it,
and it is valid now; whatever else its header says of keys or algorithms has no effect. Claims of the wrong type, and
repeated ones, are refused, never guessed at. Verified tokens are remembered by their SHA-256 digest until they expire,
in bounded number, so that a second request with the same token costs no signature; the memory lives as long as its
`TokenVerifier`, and a new directory of keys comes with a new one, so a key that was taken out is out at once.

Does not: tell where tokens come from in a request, or whether one suffices (`tierstore.admission.authentication`).
"""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tierstore.admission.encodings import decode_base64url, parse_object
from tierstore.admission.keys import KID_CHARACTERS_MAX, KeyDirectory, VerifyingKey
from tierstore.clock import MICROS_PER_SECOND, Clock
from tierstore.errors import Refusal, Unauthenticated, UnreadableCredentials
from tierstore.limits import Limits
from tierstore.types.ids import Scope
from tierstore.types.permissions import Permission

ALGORITHM = "EdDSA"
USECASE_CLAIM = "os:usecase"
ANY_VALUE = "*"

_PERMISSIONS: Mapping[str, Permission] = {permission.value: permission for permission in Permission}


@dataclass(frozen=True, slots=True)
class Grant:
    """What a verified token allows: permissions, within its key's, on the objects of a usecase and scopes."""

    kid: str
    usecase: str
    scopes: Mapping[str, str]
    permissions: frozenset[Permission]
    begins: float
    """Seconds since the Unix epoch, as ``expires``; the leeway is in both."""
    expires: float

    def covers(self, usecase: str, scopes: Sequence[Scope]) -> bool:
        """Whether it is for this usecase, and grants every one of the scopes, by its value or by `ANY_VALUE`."""
        if usecase != self.usecase:
            return False
        return all(self.scopes.get(scope.name) in (scope.value, ANY_VALUE) for scope in scopes)


class TokenVerifier:
    """Verifies tokens by one directory of keys, and remembers them."""

    def __init__(
        self,
        keys: KeyDirectory,
        *,
        audiences: Collection[str],
        issuers: Collection[str],
        leeway_seconds: float,
        clock: Clock,
        limits: Limits,
    ) -> None:
        self._keys = keys
        self._audiences = frozenset(audiences)
        self._issuers = frozenset(issuers)
        self._leeway_seconds = leeway_seconds
        self._clock = clock
        self._token_bytes_max = limits.token_bytes_max
        self._cached_max = limits.tokens_cached_max
        self._cached: OrderedDict[bytes, Grant] = OrderedDict()
        """By the SHA-256 digests of tokens, the least recently used first."""

    @property
    def cached(self) -> int:
        """How many tokens are remembered."""
        return len(self._cached)

    def verify(self, token: str) -> Grant:
        """What ``token`` grants. Raises `UnreadableCredentials`, and `Unauthenticated` with the key's id."""
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        now = self._clock.now() / MICROS_PER_SECOND
        grant = self._cached.get(digest)
        if grant is None:
            grant = self._cached[digest] = self._verify(token, now)
            if len(self._cached) > self._cached_max:
                self._cached.popitem(last=False)
        elif grant.begins <= now < grant.expires:
            self._cached.move_to_end(digest)
        elif now < grant.begins:  # the clock has been ahead
            raise _unauthenticated("the token is not valid yet", grant.kid)
        else:
            del self._cached[digest]
            raise _unauthenticated("the token has expired", grant.kid)
        return grant

    def _verify(self, token: str, now: float) -> Grant:
        if not token.isascii() or len(token) > self._token_bytes_max or token.count(".") != 2:
            raise UnreadableCredentials(f"a token is a JWT of at most {self._token_bytes_max} bytes: x.y.z")
        kid = _kid_of(token)
        try:
            key = self._keys.find(kid)
            claims = parse_object(_signed_payload(token, key), "the token's payload")
            return self._grant(claims, key, now)
        except Refusal as refusal:
            refusal.kid = kid
            raise

    def _grant(self, claims: Mapping[str, Any], key: VerifyingKey, now: float) -> Grant:
        leeway = self._leeway_seconds
        expires = _instant(claims, "exp")
        if expires is None:
            raise UnreadableCredentials("the token has no exp")
        usecase, scopes = _resources(claims)
        permissions = frozenset(
            _PERMISSIONS[name] for name in _texts(claims.get("permissions"), "permissions") if name in _PERMISSIONS
        )
        if now >= expires + leeway:
            raise Unauthenticated("the token has expired")
        begins = -math.inf
        for name in ("nbf", "iat"):
            instant = _instant(claims, name)
            begins = begins if instant is None else max(begins, instant - leeway)
            if now < begins:
                raise Unauthenticated(f"the token is not valid yet, by its {name}")
        for name in ("sub", "jti"):
            if not isinstance(claims.get(name, ""), str):
                raise UnreadableCredentials(f"the token's {name} is a text")
        self._check_parties(claims)
        return Grant(key.kid, usecase, scopes, permissions & key.max_permissions, begins, expires + leeway)

    def _check_parties(self, claims: Mapping[str, Any]) -> None:
        if "aud" in claims:
            audience = claims["aud"]
            audiences = [audience] if isinstance(audience, str) else _texts(audience, "aud")
            if self._audiences.isdisjoint(audiences):
                raise Unauthenticated("the token is for another audience")
        if "iss" in claims:
            issuer = claims["iss"]
            if not isinstance(issuer, str):
                raise UnreadableCredentials("the token's iss is a text")
            if issuer not in self._issuers:
                raise Unauthenticated("the token is by an issuer that is not accepted here")


def _kid_of(token: str) -> str:
    """The id of the key that a token says it is signed with. Raises `UnreadableCredentials`, `Unauthenticated`."""
    header = parse_object(decode_base64url(token.partition(".")[0], "the token's header"), "the token's header")
    kid = header.get("kid")
    if not isinstance(kid, str) or not 1 <= len(kid) <= KID_CHARACTERS_MAX:
        raise UnreadableCredentials(f"the token's header has a kid, a text of at most {KID_CHARACTERS_MAX} characters")
    algorithm = header.get("alg")
    if not isinstance(algorithm, str):
        raise UnreadableCredentials("the token's header has an alg")
    if algorithm != ALGORITHM:
        raise _unauthenticated(f"the token is not signed with {ALGORITHM}", kid)
    if "crit" in header or "b64" in header:  # extensions that must be understood (RFC 7515, section 4.1.11)
        raise UnreadableCredentials("the token's header asks for extensions that are not offered")
    return kid


def _signed_payload(token: str, key: VerifyingKey) -> bytes:
    """The payload, which one of the key's versions has signed. Raises `UnreadableCredentials`, `Unauthenticated`.

    By the rule of RFC 7515, section 5.2, over the text as it came; the header has been read. What a caller sends who
    has no key is read once, however many versions the key has.
    """
    signed, _, signature = token.rpartition(".")
    payload, raw = (decode_base64url(part, "a part of the token") for part in (signed.partition(".")[2], signature))
    if not key.verifies(raw, signed.encode("ascii")):
        raise Unauthenticated("the token's signature is not one of its key")
    return payload


def _instant(claims: Mapping[str, Any], name: str) -> float | None:
    """A NumericDate (RFC 7519, section 2) in seconds; None if it is not there. Raises `UnreadableCredentials`."""
    if name not in claims:
        return None
    value = claims[name]
    try:
        seconds = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds):
        raise UnreadableCredentials(f"the token's {name} is a number of seconds")
    return seconds


def _resources(claims: Mapping[str, Any]) -> tuple[str, Mapping[str, str]]:
    resources = claims.get("res")
    if not isinstance(resources, dict) or not all(isinstance(value, str) for value in resources.values()):
        raise UnreadableCredentials("the token's res is an object of texts")
    usecase = resources.pop(USECASE_CLAIM, None)
    if usecase is None:
        raise UnreadableCredentials(f"the token's res has no {USECASE_CLAIM}")
    return usecase, resources


def _texts(value: object, name: str) -> Sequence[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise UnreadableCredentials(f"the token's {name} is a list of texts")
    return value


def _unauthenticated(text: str, kid: str) -> Unauthenticated:
    refusal = Unauthenticated(text)
    refusal.kid = kid
    return refusal
