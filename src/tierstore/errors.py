"""Every error that tierstore raises on purpose, in one tree.

::

    TierstoreError
    ├── ClientMistake                the request is wrong; sending it again will not help
    │   ├── InvalidRequest           malformed id, header, range, body                 400
    │   │   └── PolicyViolation      an expiration that its usecase may not have       400
    │   ├── UnreadableCredentials    no token or signature, or none that can be read    400
    │   ├── IncompleteBody           the body ended before its announced length        400
    │   ├── ChecksumMismatch         the body is not what its ``Content-MD5`` says      400
    │   ├── InvalidPart              a part that is named is not there, or is another  400
    │   ├── InvalidPartOrder         parts are not named in ascending order            400
    │   ├── EntityTooSmall           a part but the last is below ``part_bytes_min``   400
    │   ├── ObjectNotFound           absent, deleted or expired                        404
    │   ├── NoSuchUpload             unknown, aborted, or completed long ago           404
    │   ├── MethodNotAllowed         the address exists, the method does not           405
    │   ├── RequestTimeout           the head of the request came too slowly           408
    │   ├── LengthRequired           a body whose end cannot be told                   411
    │   ├── ObjectTooLarge           beyond ``object_bytes_max``                       413
    │   ├── TargetTooLong            the request target is longer than we read         414
    │   ├── RangeNotSatisfiable      the range starts past the end                     416
    │   ├── InvalidDocument          well-formed JSON that says what makes no sense    422
    │   └── HeadersTooLarge          beyond ``header_bytes_max``                       431
    ├── ClientDisconnected           the caller went away; nobody reads an answer      499
    ├── Refusal                      well-formed, but not for this caller
    │   ├── Unauthenticated          no usable credentials                             401
    │   └── Forbidden                credentials do not permit it                      403
    ├── Conflict                     lost against a concurrent change                  409
    │   └── OffsetMismatch           the session has come to another offset            409
    ├── NotOffered                   this deployment or release cannot do it           501
    ├── Unavailable                  try again later; nothing of ours is broken        503
    │   ├── Busy                     a bounded queue is full                           429
    │   │   └── RateLimited          a rate limit is reached                           429
    │   ├── Overloaded               as many requests are under way as may be          503
    │   ├── StorageFull              no space; nothing was stored                      507
    │   ├── OutcomeUnknown           the write may or may not have happened            503
    │   └── GivenUp                  this write was settled as abandoned               503
    ├── Broken                       a fault of ours; details stay in the log          500
    │   ├── CorruptObject            stored bytes do not match their checksum          500
    │   └── InvariantBroken          something that is always true was not             500
    └── StartupError                 the process cannot start; the text says why
        └── ConfigError              a setting is wrong; the text names the key

A backend raises only these: its vendor's errors are translated in its own file. HTTP statuses are assigned in one
table, `tierstore.http.responses.STATUS_BY_ERROR`, and nowhere else. The text of a `Broken` never reaches a client.
"""

from typing import TypeVar


class TierstoreError(Exception):
    """Base of the tree. ``str(error)`` is one sentence for a person."""

    for_clients: str | None = None
    """What clients are told in its place, if that sentence says more than is their business, as an engine's address."""


E = TypeVar("E", bound=TierstoreError)


def private(error: E, for_clients: str) -> E:
    """``error``, whose text is for operators alone, with what clients are told in its place."""
    error.for_clients = for_clients
    return error


class ClientMistake(TierstoreError):
    """The request is wrong; repeating it unchanged cannot succeed."""


class InvalidRequest(ClientMistake):
    """Malformed id, header, range, query or body."""


class PolicyViolation(InvalidRequest):
    """The object asks for what the policy of its usecase forbids. Nothing was done."""


class UnreadableCredentials(ClientMistake):
    """The request has no token and no signature, or one that is malformed. Nothing was done."""


class IncompleteBody(ClientMistake):
    """The request body ended before its announced length. Nothing was stored."""


class ChecksumMismatch(ClientMistake):
    """The body does not have the digest that the request announced. Nothing of it was stored."""


class InvalidDocument(ClientMistake):
    """The body is JSON, but not what this address takes."""


class NoSuchUpload(ClientMistake):
    """There is no such multipart upload: it was never begun, was aborted or given up, or was completed long ago."""


class InvalidPart(ClientMistake):
    """A part that was named to complete an upload has not been uploaded, or has another ETag. Nothing was changed."""


class InvalidPartOrder(ClientMistake):
    """The parts that were named to complete an upload are not in ascending order. Nothing was changed."""


class EntityTooSmall(ClientMistake):
    """A part that is not the last one is smaller than this store allows. Nothing was changed."""


class ObjectNotFound(ClientMistake):
    """The object is absent, deleted or expired."""


class MethodNotAllowed(ClientMistake):
    """The address exists, but not with this method. ``allowed`` lists the methods that do."""

    def __init__(self, allowed: tuple[str, ...]) -> None:
        super().__init__(f"this address allows {', '.join(allowed)}")
        self.allowed = allowed


class RequestTimeout(ClientMistake):
    """The head of the request, or what follows a body, did not come in time. Nothing was done."""


class LengthRequired(ClientMistake):
    """The request may have a body, but does not say how long it is. Nothing was stored."""


class ObjectTooLarge(ClientMistake):
    """The payload is longer than an object may be. Nothing was stored."""


class TargetTooLong(ClientMistake):
    """The request target is longer than this server reads."""


class RangeNotSatisfiable(ClientMistake):
    """The range starts past the end of the object, whose whole length is ``size`` bytes."""

    def __init__(self, size: int) -> None:
        super().__init__(f"the range starts past the end of the object, which has {size} bytes")
        self.size = size


class HeadersTooLarge(ClientMistake):
    """The request's headers, or its metadata, are larger than this server accepts."""


class ClientDisconnected(TierstoreError):
    """The caller went away before the request had been read."""


class Refusal(TierstoreError):
    """The request is well-formed, but this caller may not make it."""

    kid: str | None = None
    """The id of the key that the caller names, if it is known by then; for the log."""


class Unauthenticated(Refusal):
    """No usable credentials."""


class Forbidden(Refusal):
    """The credentials do not permit this."""


class Conflict(TierstoreError):
    """The operation lost against a concurrent change; reading again shows the winner."""


class OffsetMismatch(Conflict):
    """The session holds ``offset`` bytes, and not as many as the request goes on from. Nothing of it was stored."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"the upload goes on from offset {offset}")
        self.offset = offset


class NotOffered(TierstoreError):
    """Not possible in this deployment or release; the caller should use another way."""


class Unavailable(TierstoreError):
    """A passing condition: the same request may succeed later. Safe to retry."""


class Busy(Unavailable):
    """A bounded queue is full. Nothing was done."""


class RateLimited(Busy):
    """The operator's limit is reached; ``retry_after_seconds`` is when there is room again. Nothing was done."""

    def __init__(self, text: str, retry_after_seconds: int = 1) -> None:
        super().__init__(text)
        self.retry_after_seconds = retry_after_seconds


class Overloaded(Unavailable):
    """As many requests are under way as this process takes. Nothing was done."""


class StorageFull(Unavailable):
    """A store is out of space or of quota. Nothing was stored."""


class OutcomeUnknown(Unavailable):
    """A write was sent, but its outcome was lost: it may have happened, may still happen, or never will.

    Whoever catches this looks at the store before doing anything else, and never deletes on a guess.
    """


class GivenUp(Unavailable):
    """The write was settled as abandoned: it took long, or an operator asked. Nothing was stored; a retry is safe."""


class Broken(TierstoreError):
    """A fault of ours. The text is for the log; clients get a neutral sentence."""


class CorruptObject(Broken):
    """Stored bytes do not match their checksum or their name. None of them are served as a whole object."""


class InvariantBroken(Broken):
    """Something that is always true was not. Fails one operation, loudly, and not the server."""


class StartupError(TierstoreError):
    """The process cannot start. The text says what is wrong and what to do."""


class ConfigError(StartupError):
    """A setting is wrong. The text names the key and the reason."""
