"""The other side of authentication, for operators: tokens and pre-signed URLs that this server takes.

Guarantees: what is made here is verified by `tierstore.admission.tokens` and `tierstore.admission.presign`, with the
public half of the key, for the time that was asked for. Does not: read files or clocks.
"""

from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tierstore.admission.encodings import decode_base64url, encode_base64url, parse_object, raw_parameters
from tierstore.admission.presign import DURATION, KID, METHODS, SIGNATURE, TIMESTAMP, signed_text
from tierstore.admission.tokens import ALGORITHM, USECASE_CLAIM
from tierstore.clock import MICROS_PER_SECOND, UnixMicros
from tierstore.errors import InvalidRequest, UnreadableCredentials
from tierstore.limits import Limits
from tierstore.types.permissions import Permission
from tierstore.types.timestamps import format_timestamp

_PATH_SAFE = "/:@!$&'()*+,;=~%"
_QUERY_SAFE = "/:@!$&'()*+,;=~%?"
_OURS = (SIGNATURE, KID, TIMESTAMP, DURATION)


def mint_token(
    key: Ed25519PrivateKey,
    kid: str,
    *,
    usecase: str,
    scopes: Mapping[str, str],
    permissions: Collection[Permission],
    now: UnixMicros,
    valid_seconds: int,
    claims: Mapping[str, str],
) -> str:
    """A token for the objects of a usecase and scopes; the value ``*`` of a scope grants all values.

    ``claims`` are added as they are: ``aud``, ``iss``.
    """
    content: dict[str, Any] = {
        **claims,
        "exp": now // MICROS_PER_SECOND + valid_seconds,
        "res": {USECASE_CLAIM: usecase, **scopes},
        "permissions": [permission.value for permission in Permission if permission in permissions],
    }
    return jwt.encode(content, key, algorithm=ALGORITHM, headers={"kid": kid})


def read_token(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims of a token, of which nothing is verified. Raises `UnreadableCredentials`."""
    parts = token.split(".")
    if len(parts) != 3:
        raise UnreadableCredentials("a token has three parts: x.y.z")
    header, claims = (parse_object(decode_base64url(part, "a part of the token"), "the token") for part in parts[:2])
    return header, claims


def presign_url(
    key: Ed25519PrivateKey, kid: str, url: str, *, method: str, now: UnixMicros, valid_seconds: int, limits: Limits
) -> str:
    """``url``, signed for ``method``. What it lacks of percent-encoding is added. Raises `InvalidRequest`."""
    if method not in METHODS:
        raise InvalidRequest("only GET and HEAD can be pre-signed")
    if not 0 <= valid_seconds <= limits.presign_seconds_max:
        raise InvalidRequest(f"a pre-signed URL is valid for at most {limits.presign_seconds_max} seconds")
    parts = urlsplit(url)
    path, query = quote(parts.path, _PATH_SAFE), quote(parts.query, _QUERY_SAFE)
    if any(name.lower() in _OURS for name, _ in raw_parameters(query.encode())):
        raise InvalidRequest("the URL is signed already: give it without its os_ parameters")
    signed = "&".join(
        (
            *([query] if query else []),
            f"{KID.decode()}={quote(kid, safe='')}",
            f"{TIMESTAMP.decode()}={format_timestamp(now)}",
            f"{DURATION.decode()}={valid_seconds}",
        )
    )
    signature = encode_base64url(key.sign(signed_text(method, path.encode(), signed.encode())))
    return urlunsplit((parts.scheme, parts.netloc, path, f"{signed}&{SIGNATURE.decode()}={signature}", ""))
