"""Which handler a request goes to, at ``/v1/objects`` and at the addresses beside it, and what it needs to be admitted.

Guarantees: in this order, an address that is malformed is 400, one with another method 405, a request that is not
admitted 400, 401, 403 or 429, one that this release does not offer 501; all of it without reading a body. Every route
names the permission it needs, or that each of its operations asks for its own; its handler gets the admitted service,
which checks again.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tierstore.admission.admitted import AdmittedService
from tierstore.admission.conditions import downstream_service
from tierstore.admission.facts import RequestFacts
from tierstore.errors import InvalidRequest, MethodNotAllowed, NotOffered
from tierstore.http.exchange import Exchange
from tierstore.http.objects import Handler, ObjectHandlers
from tierstore.http.parsing import OBJECTS_PREFIX, Address, AddressParser, parse_query
from tierstore.http.settings import Served
from tierstore.http.uploads import UploadHandlers
from tierstore.limits import Limits
from tierstore.tasks import TaskOwner
from tierstore.types.ids import ObjectId
from tierstore.types.permissions import Permission

_EXTEND_EXPIRY = "PATCH"
_CONDITIONS = frozenset({b"if-match", b"if-none-match", b"if-unmodified-since"})
_FAMILY_PREFIX = OBJECTS_PREFIX[:-1] + b":"
_DOWNSTREAM_SERVICE = b"x-downstream-service"
_OF_UPLOADS = frozenset({"upload_id", "part_number", "uploadId", "partNumber"})
"""Parameters that only an upload has: ours, and those of S3, whose clients send parts to the object's own address."""


@dataclass(frozen=True, slots=True)
class Route:
    """What a method does at an address."""

    operation: str
    permission: Permission | None
    """What it needs; None for a batch, each of whose operations needs its own."""
    handler: Handler
    offered: bool = True
    """Whether clients are told of the method."""


@dataclass(frozen=True, slots=True)
class _Family:
    """Addresses below one prefix, by methods: of a namespace (where keys are made), and of one object."""

    of_namespace: Mapping[str, Route]
    """Empty: there are no such addresses."""
    of_object: Mapping[str, Route]


@dataclass(frozen=True, slots=True)
class Listed:
    """One route as it is asked for: a method, and the path before the usecase; and whether a key follows."""

    method: str
    prefix: bytes
    names_object: bool
    route: Route


class ObjectRoutes:
    """Routes requests to the handlers of objects and of uploads."""

    def __init__(self, limits: Limits, watchers: TaskOwner) -> None:
        self._addresses = AddressParser(limits)
        objects, uploads = ObjectHandlers(watchers), UploadHandlers(watchers)
        initiate = Route("initiate_upload", Permission.WRITE, _unconditional(uploads.initiate))
        self._objects = _Family(
            {"POST": Route("put", Permission.WRITE, _unless_resumable(objects.post))},
            {
                "GET": Route("get", Permission.READ, objects.get),
                "HEAD": Route("head", Permission.READ, objects.head),
                "PUT": Route("put", Permission.WRITE, _unless_resumable(objects.put)),
                "DELETE": Route("delete", Permission.DELETE, _unless_resumable(objects.delete)),
                _EXTEND_EXPIRY: Route("extend", Permission.WRITE, _refuse_extension, offered=False),
            },
        )
        self._families = {
            b"batch": _Family({"POST": Route("batch", None, _refuse_batch)}, {}),
            b"multipart": _Family(
                {"POST": initiate},
                {"PUT": initiate, "DELETE": Route("abort_upload", Permission.WRITE, _unconditional(uploads.abort))},
            ),
            b"multipart:parts": _Family(
                {},
                {
                    "PUT": Route("upload_part", Permission.WRITE, _unconditional(uploads.upload_part)),
                    "GET": Route("list_parts", Permission.WRITE, uploads.list_parts),
                },
            ),
            b"multipart:complete": _Family(
                {}, {"POST": Route("complete_upload", Permission.WRITE, _unconditional(uploads.complete))}
            ),
        }

    def listed(self) -> Iterator[Listed]:
        """Every route there is."""
        families = [(OBJECTS_PREFIX, self._objects)]
        families += [(_FAMILY_PREFIX + name + b"/", family) for name, family in self._families.items()]
        for prefix, family in families:
            for names_object, routes in ((False, family.of_namespace), (True, family.of_object)):
                yield from (Listed(method, prefix, names_object, route) for method, route in routes.items())

    async def serve(self, exchange: Exchange, served: Served) -> bool:
        """Answer the request, or return False, with nothing done, if its path names nothing that is served here."""
        raw_path = exchange.raw_path
        if raw_path.startswith(OBJECTS_PREFIX):
            return await self._serve(exchange, served, self._objects, OBJECTS_PREFIX)
        if not raw_path.startswith(_FAMILY_PREFIX):
            return False
        name, slash, _ = raw_path.removeprefix(_FAMILY_PREFIX).partition(b"/")
        family = self._families.get(name) if slash else None
        return family is not None and await self._serve(exchange, served, family, _FAMILY_PREFIX + name + slash)

    async def _serve(self, exchange: Exchange, served: Served, family: _Family, prefix: bytes) -> bool:
        address = self._addresses.parse(exchange.raw_path, prefix)
        if address is None:
            return False
        routes = family.of_namespace if address.key is None else family.of_object
        if not routes:
            return False
        exchange.address = address
        route = routes.get(exchange.method)
        if route is None:
            raise MethodNotAllowed(tuple(method for method, known in routes.items() if known.offered))
        exchange.operation = route.operation
        exchange.key = address.key
        service = served.gate.admit(_facts(exchange, address, route))
        exchange.kid, exchange.passed_over = service.kid, service.passed_over
        exchange.key = address.key or service.new_key()
        await route.handler(exchange, service, address.object_id(exchange.key))
        return True


def _facts(exchange: Exchange, address: Address, route: Route) -> RequestFacts:
    fields = exchange.fields
    return RequestFacts(
        method=exchange.method,
        raw_path=exchange.raw_path,
        raw_query=exchange.query,
        header=fields.get,
        usecase=address.namespace.usecase,
        scopes=address.namespace.scopes,
        key=address.key,
        downstream_service=downstream_service(fields.get(_DOWNSTREAM_SERVICE)),
        permission=route.permission,
    )


def _refuse_conditions(exchange: Exchange) -> None:
    """Raise `NotOffered` for a mutation under a condition, which is never passed over (RFC 9110, section 13.1)."""
    if not _CONDITIONS.isdisjoint(exchange.fields):
        raise NotOffered("this release does not offer conditional requests; objects have no validators")


def _unconditional(handler: Handler) -> Handler:
    """``handler`` for requests without a condition; others are 501."""

    async def handle(exchange: Exchange, service: AdmittedService, object_id: ObjectId) -> None:
        _refuse_conditions(exchange)
        await handler(exchange, service, object_id)

    return handle


def _unless_resumable(handler: Handler) -> Handler:
    """``handler`` for requests without a condition that are no part of a resumable upload; others are 501.

    What changes the meaning of a mutation is never passed over. ``DELETE …?session=`` cancels an upload, and must not
    delete the object; ``PUT`` with ``If-None-Match: *`` must not replace it (RFC 9110, section 13.1), nor must a part
    that came to the object's address (`InvalidRequest`).
    """

    async def handle(exchange: Exchange, service: AdmittedService, object_id: ObjectId) -> None:
        _refuse_conditions(exchange)
        if exchange.query:
            _refuse_resumable(exchange)
        await handler(exchange, service, object_id)

    return handle


def _refuse_resumable(exchange: Exchange) -> None:
    """Raise `NotOffered` for a resumable upload: its client falls back to a plain insert."""
    parameters = parse_query(exchange.query)
    if not _OF_UPLOADS.isdisjoint(parameters):
        raise InvalidRequest(f"parts and uploads have addresses of their own: {_FAMILY_PREFIX.decode()}multipart…")
    kind = parameters.get("upload_type")
    if kind == "resumable" or "session" in parameters:
        raise NotOffered(
            "this release does not offer resumable uploads; send the whole object with a plain PUT or POST"
            if exchange.method != "DELETE"
            else "this release does not offer resumable uploads, so there is none to cancel"
        )
    if kind is not None:
        raise InvalidRequest("upload_type is resumable, or left out")


async def _refuse_extension(_exchange: Exchange, _service: AdmittedService, _object_id: ObjectId) -> None:
    raise NotOffered("this release does not offer to extend an object's expiry")


async def _refuse_batch(_exchange: Exchange, _service: AdmittedService, _object_id: ObjectId) -> None:
    raise NotOffered("this release does not offer batch requests")
