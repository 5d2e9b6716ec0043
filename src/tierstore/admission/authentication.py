"""Who calls, and what may they do? From a request's credentials to permissions.

A request with ``os_sig`` in its query is pre-signed, and that alone counts. Otherwise the first of these that is there
is its token, and a bad one is not made up for by the next: ``x-os-auth``, ``Authorization`` with the scheme Bearer, the
query parameter ``os_auth``.

Guarantees: what is returned has been verified, is valid now, and is for the request's usecase and scopes.
"""

from collections.abc import Collection
from dataclasses import dataclass

from tierstore.admission.encodings import decode_value, raw_parameters
from tierstore.admission.facts import RequestFacts
from tierstore.admission.keys import KeyDirectory
from tierstore.admission.presign import is_presigned, verify_presigned
from tierstore.admission.tokens import TokenVerifier
from tierstore.clock import Clock
from tierstore.errors import Forbidden, UnreadableCredentials
from tierstore.limits import Limits
from tierstore.types.permissions import Permission

_TOKEN_HEADER = b"x-os-auth"
_STANDARD_HEADER = b"authorization"
_TOKEN_PARAMETER = b"os_auth"
_SCHEME = "bearer "
_READ = frozenset({Permission.READ})


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may do what, as an operator has set it."""

    enforce: bool = True
    keys: KeyDirectory
    audiences: Collection[str] = ("objectstore",)
    issuers: Collection[str] = ("sentry", "relay")
    leeway_seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request: the id of the key that speaks for them, and what they may do with what they ask for."""

    kid: str | None
    permissions: frozenset[Permission]

    def require(self, permission: Permission) -> None:
        """Raise `Forbidden` unless the caller has it."""
        if permission not in self.permissions:
            refusal = Forbidden(f"this needs the permission {permission}, which was not granted")
            refusal.kid = self.kid
            raise refusal


class Authenticator:
    """Authenticates requests by one directory of keys."""

    def __init__(self, access: Access, *, clock: Clock, limits: Limits) -> None:
        self._keys = access.keys
        self._clock = clock
        self._limits = limits
        self._tokens = TokenVerifier(
            access.keys,
            audiences=access.audiences,
            issuers=access.issuers,
            leeway_seconds=access.leeway_seconds,
            clock=clock,
            limits=limits,
        )

    def authenticate(self, facts: RequestFacts) -> Caller:
        """The caller of a request.

        Raises `UnreadableCredentials`, `Unauthenticated`, and `Forbidden` for other objects than those granted.
        """
        query = facts.raw_query
        if query and is_presigned(query):
            key = verify_presigned(self._keys, facts.method, facts.raw_path, query, self._clock.now(), self._limits)
            return Caller(key.kid, key.max_permissions & _READ)
        grant = self._tokens.verify(_token_of(facts))
        if not grant.covers(facts.usecase, facts.scopes):
            refusal = Forbidden("the token is not for these objects: another usecase, or a scope it does not grant")
            refusal.kid = grant.kid
            raise refusal
        return Caller(grant.kid, grant.permissions)


def _token_of(facts: RequestFacts) -> str:
    given = facts.header(_TOKEN_HEADER)
    if given is not None:
        text = given.decode("latin-1").strip(" \t")
        return text[len(_SCHEME) :].strip(" ") if text[: len(_SCHEME)].lower() == _SCHEME else text
    given = facts.header(_STANDARD_HEADER)
    if given is not None:
        text = given.decode("latin-1").strip(" \t")
        if text[: len(_SCHEME)].lower() == _SCHEME:
            return text[len(_SCHEME) :].strip(" ")
    tokens = [value for name, value in raw_parameters(facts.raw_query) if name == _TOKEN_PARAMETER]
    if len(tokens) > 1:
        raise UnreadableCredentials("the parameter os_auth is given more than once")
    if not tokens:
        raise UnreadableCredentials(
            "this needs a token, in x-os-auth, Authorization: Bearer or os_auth, or a pre-signed URL"
        )
    return decode_value(tokens[0] or b"", "os_auth")
