"""Errors to answers: the one table of HTTP statuses, and the JSON that tells a client what went wrong.

Guarantees: every error of `tierstore.errors` has a status; the text of a fault of ours never reaches a client.
"""

import re
from typing import Final

import orjson

from tierstore import errors

Headers = list[tuple[bytes, bytes]]

UNSAFE_IN_HEADERS: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
"""What can stand in no header (RFC 9110, section 5.5): with CR or LF, what follows would be a header of its own."""
HEADER_OVERHEAD_BYTES: Final = 4
"""Colon, space and line end of a header: many empty ones count too."""

STATUS_DISCONNECTED = 499
"""Never sent; logged when the caller went away first."""

STATUS_BY_ERROR: dict[type[errors.TierstoreError], int] = {
    errors.InvalidRequest: 400,
    errors.PolicyViolation: 400,
    errors.UnreadableCredentials: 400,
    errors.IncompleteBody: 400,
    errors.ChecksumMismatch: 400,
    errors.InvalidPart: 400,
    errors.InvalidPartOrder: 400,
    errors.EntityTooSmall: 400,
    errors.ClientMistake: 400,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.Refusal: 403,
    errors.ObjectNotFound: 404,
    errors.NoSuchUpload: 404,
    errors.MethodNotAllowed: 405,
    errors.RequestTimeout: 408,
    errors.Conflict: 409,
    errors.OffsetMismatch: 409,
    errors.LengthRequired: 411,
    errors.ObjectTooLarge: 413,
    errors.TargetTooLong: 414,
    errors.RangeNotSatisfiable: 416,
    errors.InvalidDocument: 422,
    errors.Busy: 429,
    errors.RateLimited: 429,
    errors.HeadersTooLarge: 431,
    errors.ClientDisconnected: STATUS_DISCONNECTED,
    errors.CorruptObject: 500,
    errors.InvariantBroken: 500,
    errors.Broken: 500,
    errors.ConfigError: 500,
    errors.StartupError: 500,
    errors.TierstoreError: 500,
    errors.NotOffered: 501,
    errors.OutcomeUnknown: 503,
    errors.GivenUp: 503,
    errors.Overloaded: 503,
    errors.Unavailable: 503,
    errors.StorageFull: 507,
}

_RETRY_AFTER_SECONDS = {429: 1, 503: 1, 507: 30}
_CAUSES_MAX = 8


def status_of(error: BaseException) -> int:
    """The status that answers ``error``: that of its class, else of its nearest base; 500 for what is not ours."""
    for kind in type(error).__mro__:
        if issubclass(kind, errors.TierstoreError) and kind in STATUS_BY_ERROR:
            return STATUS_BY_ERROR[kind]
    return 500


def error_response(error: BaseException, request_id: str) -> tuple[int, Headers, bytes]:
    """Status, headers and JSON payload that answer ``error``."""
    status = status_of(error)
    if status == 500:
        return status, *json_response({"detail": fault_detail(request_id)})
    content: dict[str, object] = {"detail": told(error)}
    if causes := _causes(error):
        content["causes"] = causes
    headers, payload = json_response(content)
    headers += _headers_of(error, status)
    return status, headers, payload


def told(error: BaseException) -> str:
    """What a client is told of an error that is not a fault of ours."""
    return (isinstance(error, errors.TierstoreError) and error.for_clients) or str(error)


def fault_detail(request_id: str) -> str:
    """What a client is told of a fault of ours."""
    return f"an internal error; the server's log has it under the request id {request_id}"


def json_response(content: object) -> tuple[Headers, bytes]:
    """Headers and payload of a JSON answer."""
    payload = orjson.dumps(content)
    return [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(payload))], payload


def _causes(error: BaseException) -> list[str]:
    """What led to ``error``, nearest first: our own errors that were given as causes, and no internals."""
    causes: list[str] = []
    cause = error.__cause__
    while isinstance(cause, errors.TierstoreError) and not isinstance(cause, errors.Broken):
        causes.append(told(cause))
        if len(causes) == _CAUSES_MAX:
            break
        cause = cause.__cause__
    return causes


def _headers_of(error: BaseException, status: int) -> Headers:
    """The headers that RFC 9110 wants with a status: sections 10.2.1, 10.2.3, 11.6.1 and 14.4."""
    match error:
        case errors.MethodNotAllowed(allowed=allowed):
            return [(b"allow", ", ".join(allowed).encode())]
        case errors.RangeNotSatisfiable(size=size):
            return [(b"content-range", b"bytes */%d" % size), (b"accept-ranges", b"bytes")]
        case errors.OffsetMismatch(offset=offset):
            return [(b"upload-offset", b"%d" % offset)]
        case errors.Unauthenticated():
            return [(b"www-authenticate", b"Bearer")]
        case _:
            seconds = _RETRY_AFTER_SECONDS.get(status)
            if isinstance(error, errors.RateLimited):
                seconds = error.retry_after_seconds
            return [(b"retry-after", b"%d" % seconds)] if seconds else []
