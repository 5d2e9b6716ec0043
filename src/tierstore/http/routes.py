"""Which handler a request goes to, at ``/v1/objects`` and at the addresses beside it.

Guarantees: in this order, an address that is malformed is 400, one with another method 405, a request that is not
admitted 401, one that this release does not offer 501; all of it without reading a body.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tierstore.errors import InvalidRequest, MethodNotAllowed, NotOffered
from tierstore.http.exchange import Exchange
from tierstore.http.objects import Handler, ObjectHandlers
from tierstore.http.parsing import OBJECTS_PREFIX, AddressParser, parse_query
from tierstore.http.settings import Served
from tierstore.http.uploads import UploadHandlers
from tierstore.limits import Limits
from tierstore.tasks import TaskOwner

_COLLECTION_METHODS = ("POST",)
_EXTEND_EXPIRY = "PATCH"
_BATCH = b"batch"
_CONDITIONS = frozenset({b"if-match", b"if-none-match", b"if-unmodified-since"})
_FAMILY_PREFIX = OBJECTS_PREFIX[:-1] + b":"
_OF_UPLOADS = frozenset({"upload_id", "part_number", "uploadId", "partNumber"})
"""Parameters that only an upload has: ours, and those of S3, whose clients send parts to the object's own address."""
_OPERATIONS = {"GET": "get", "HEAD": "head", "PUT": "put", "POST": "put", "DELETE": "delete", "PATCH": "extend"}


@dataclass(frozen=True, slots=True)
class _Route:
    """What a method does at an address."""

    operation: str
    handler: Handler


@dataclass(frozen=True, slots=True)
class _Family:
    """Addresses beside ``/v1/objects/``, by methods: of a namespace (where keys are made), and of one object."""

    of_namespace: Mapping[str, _Route]
    """Empty: there are no such addresses."""
    of_object: Mapping[str, _Route]


class ObjectRoutes:
    """Routes requests to the handlers of objects and of uploads."""

    def __init__(self, limits: Limits, watchers: TaskOwner) -> None:
        self._addresses = AddressParser(limits)
        self._handlers = ObjectHandlers(watchers)
        self._object_methods = tuple(self._handlers.by_method)
        uploads = UploadHandlers(watchers)
        initiate = _Route("initiate_upload", uploads.initiate)
        upload_part, list_parts = (
            _Route("upload_part", uploads.upload_part),
            _Route("list_parts", uploads.list_parts),
        )
        self._families = {
            b"multipart": _Family(
                {"POST": initiate}, {"PUT": initiate, "DELETE": _Route("abort_upload", uploads.abort)}
            ),
            b"multipart:parts": _Family({}, {"PUT": upload_part, "GET": list_parts}),
            b"multipart:complete": _Family({}, {"POST": _Route("complete_upload", uploads.complete)}),
        }

    async def serve(self, exchange: Exchange, served: Served) -> bool:
        """Answer the request, or return False, with nothing done, if its path names nothing that is served here."""
        raw_path = exchange.raw_path
        if not raw_path.startswith(OBJECTS_PREFIX):
            return raw_path.startswith(_FAMILY_PREFIX) and await self._serve_family(exchange, served)
        address = exchange.address = self._addresses.parse(raw_path)
        if address is None:
            return False
        method = exchange.method
        collection = address.key is None
        methods = _COLLECTION_METHODS if collection else self._object_methods
        if method not in methods and (collection or method != _EXTEND_EXPIRY):
            raise MethodNotAllowed(methods)
        exchange.operation = _OPERATIONS[method]
        service = served.gate.admit(served.service)
        _refuse_what_is_not_offered(exchange)
        if address.key is None:
            await self._handlers.post(exchange, service, address.object_id(service.new_key()))
        else:
            await self._handlers.by_method[method](exchange, service, address.object_id(address.key))
        return True

    async def _serve_family(self, exchange: Exchange, served: Served) -> bool:
        """As `serve`, for the addresses beside ``/v1/objects/``."""
        raw_path = exchange.raw_path
        name, slash, _ = raw_path.removeprefix(_FAMILY_PREFIX).partition(b"/")
        if not slash:
            return False
        if name == _BATCH:
            served.gate.admit(served.service)
            raise NotOffered("this release does not offer batch requests")
        family = self._families.get(name)
        if family is None:
            return False
        address = self._addresses.parse(raw_path, _FAMILY_PREFIX + name + slash)
        if address is None:
            return False
        routes = family.of_namespace if address.key is None else family.of_object
        if not routes:
            return False
        exchange.address = address
        route = routes.get(exchange.method)
        if route is None:
            raise MethodNotAllowed(tuple(routes))
        exchange.operation = route.operation
        service = served.gate.admit(served.service)
        if exchange.method != "GET":
            _refuse_conditions(exchange)
        await route.handler(exchange, service, address.object_id(address.key or service.new_key()))
        return True


def _refuse_conditions(exchange: Exchange) -> None:
    """Raise `NotOffered` for a mutation under a condition, which is never passed over (RFC 9110, section 13.1)."""
    if not _CONDITIONS.isdisjoint(exchange.fields):
        raise NotOffered("this release does not offer conditional requests; objects have no validators")


def _refuse_what_is_not_offered(exchange: Exchange) -> None:
    """Raise `NotOffered` for a resumable upload: its client falls back to a plain insert.

    What changes the meaning of a mutation is never passed over. ``DELETE …?session=`` cancels an upload, and must not
    delete the object; ``PUT`` with ``If-None-Match: *`` must not replace it (RFC 9110, section 13.1), nor must a part
    that came to the object's address (`InvalidRequest`).
    """
    method, query = exchange.method, exchange.query
    if method == _EXTEND_EXPIRY:
        raise NotOffered("this release does not offer to extend an object's expiry")
    if method in {"GET", "HEAD"}:
        return
    _refuse_conditions(exchange)
    if not query:
        return
    parameters = parse_query(query)
    if not _OF_UPLOADS.isdisjoint(parameters):
        raise InvalidRequest(f"parts and uploads have addresses of their own: {_FAMILY_PREFIX.decode()}multipart…")
    kind = parameters.get("upload_type")
    if kind == "resumable" or "session" in parameters:
        raise NotOffered(
            "this release does not offer resumable uploads; send the whole object with a plain PUT or POST"
            if method != "DELETE"
            else "this release does not offer resumable uploads, so there is none to cancel"
        )
    if kind is not None:
        raise InvalidRequest("upload_type is resumable, or left out")
