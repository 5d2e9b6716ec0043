"""Pre-signed URLs: a GET or HEAD of one object, for a time, by a signature in the query.

The signed text has three lines: the method, HEAD written as GET; the path as on the wire; and the wire's parameters
without ``os_sig``, names in lower case, sorted as whole texts, joined by ``&``. Values are never decoded for it, so two
spellings of one address have two signatures, and nothing in front of the server may rewrite them.

Guarantees: every parameter but the signature is signed; a signature holds for its method, path and query alone, from
``presign_early_seconds_max`` before its timestamp to the end of its duration; a parameter that says when or by whom it
is signed, and is there twice, is refused.
"""

import re
from collections.abc import Mapping

from tierstore.admission.encodings import decode_base64url, decode_value, raw_parameters
from tierstore.admission.keys import KID_CHARACTERS_MAX, KeyDirectory, VerifyingKey
from tierstore.clock import MICROS_PER_SECOND, UnixMicros
from tierstore.errors import Forbidden, InvalidRequest, Refusal, Unauthenticated, UnreadableCredentials
from tierstore.limits import Limits
from tierstore.types.timestamps import parse_timestamp

SIGNATURE = b"os_sig"
KID = b"os_kid"
TIMESTAMP = b"os_timestamp"
DURATION = b"os_duration"
METHODS = ("GET", "HEAD")

_NAMES = (SIGNATURE, KID, TIMESTAMP, DURATION)
_SIGNATURE_BYTES = 64
_DURATION = re.compile(r"[0-9]{1,9}")


def is_presigned(raw_query: bytes) -> bool:
    """Whether a query has a signature, well-formed or not."""
    return SIGNATURE in raw_query.lower() and any(name.lower() == SIGNATURE for name, _ in raw_parameters(raw_query))


def signed_text(method: str, raw_path: bytes, raw_query: bytes) -> bytes:
    """What is signed of a request."""
    parameters = sorted(
        name.lower() if value is None else name.lower() + b"=" + value
        for name, value in raw_parameters(raw_query)
        if name.lower() != SIGNATURE
    )
    return b"\n".join((b"GET" if method == "HEAD" else method.encode(), raw_path, b"&".join(parameters)))


def verify_presigned(
    keys: KeyDirectory, method: str, raw_path: bytes, raw_query: bytes, now: UnixMicros, limits: Limits
) -> VerifyingKey:
    """The key that has signed the request. Raises `UnreadableCredentials`, `Unauthenticated`, `Forbidden`."""
    if method not in METHODS:
        raise Forbidden("only GET and HEAD can be pre-signed")
    parameters = _parameters(raw_query)
    kid = parameters[KID]
    if not 1 <= len(kid) <= KID_CHARACTERS_MAX:
        raise UnreadableCredentials(f"os_kid is a text of at most {KID_CHARACTERS_MAX} characters")
    signature = decode_base64url(parameters[SIGNATURE], "os_sig")
    if len(signature) != _SIGNATURE_BYTES:
        raise UnreadableCredentials(f"os_sig has {_SIGNATURE_BYTES} bytes")
    begins, ends = _window(parameters, limits)
    try:
        if not begins <= now <= ends:
            raise Unauthenticated("the pre-signed URL is not valid now: it has expired, or is of the future")
        key = keys.find(kid)
        if not key.verifies(signature, signed_text(method, raw_path, raw_query)):
            raise Unauthenticated("the signature is not one of its key for this request")
    except Refusal as refusal:
        refusal.kid = kid
        raise
    return key


def _parameters(raw_query: bytes) -> Mapping[bytes, str]:
    found: dict[bytes, str] = {}
    for name, value in raw_parameters(raw_query):
        known = name.lower()
        if known not in _NAMES:
            continue
        if known in found:
            raise UnreadableCredentials(f"the parameter {known.decode()} is given more than once")
        found[known] = decode_value(value or b"", known.decode())
    for name in _NAMES:
        if name not in found:
            raise UnreadableCredentials(f"a pre-signed URL has the parameter {name.decode()}")
    return found


def _window(parameters: Mapping[bytes, str], limits: Limits) -> tuple[UnixMicros, UnixMicros]:
    """From when to when the URL is valid. Raises `UnreadableCredentials`."""
    try:
        timestamp = parse_timestamp(parameters[TIMESTAMP])
    except InvalidRequest as error:
        raise UnreadableCredentials(f"os_timestamp: {error}") from None
    duration = parameters[DURATION]
    if _DURATION.fullmatch(duration) is None or int(duration) > limits.presign_seconds_max:
        raise UnreadableCredentials(f"os_duration is a number of seconds, at most {limits.presign_seconds_max}")
    return (
        timestamp - limits.presign_early_seconds_max * MICROS_PER_SECOND,
        timestamp + int(duration) * MICROS_PER_SECOND,
    )
