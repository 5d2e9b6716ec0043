"""Which handler a request goes to, at ``/v1/objects`` and at the addresses beside it, and what it needs to be admitted.

Guarantees: in this order, an address that is malformed is 400, one with another method 405, a request that is not
admitted 400, 401, 403 or 429, one that this release does not offer 501; all of it without reading a body. Every route
names the permission it needs, or that each of its operations asks for its own; its handler gets the admitted service,
which checks again.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tierstore.admission.admitted import AdmittedService
from tierstore.admission.conditions import downstream_service
from tierstore.admission.facts import RequestFacts
from tierstore.errors import InvalidRequest, MethodNotAllowed
from tierstore.http.batch import BatchHandler
from tierstore.http.conditions import refuse_conditions
from tierstore.http.exchange import Exchange
from tierstore.http.expiry import extend_expiry
from tierstore.http.objects import Handler, ObjectHandlers
from tierstore.http.parsing import OBJECTS_PREFIX, Address, AddressParser, parse_query
from tierstore.http.resumable import RESUMABLE, SESSION, UPLOAD_OFFSET, UPLOAD_TYPE, append, cancel, create_session
from tierstore.http.settings import Served
from tierstore.http.uploads import UploadHandlers
from tierstore.idsource import IdSource
from tierstore.limits import Limits
from tierstore.tasks import TaskOwner
from tierstore.types.ids import ObjectId
from tierstore.types.permissions import Permission

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
    resumable: Mapping[str, "Route"] = field(default_factory=dict)
    """What it does instead, as a step of a resumable upload, by the parameter that says so."""


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
    query: str = ""
    """By what it is told from another route at the same address."""


class ObjectRoutes:
    """Routes requests to the handlers of objects and of uploads."""

    def __init__(self, limits: Limits, watchers: TaskOwner, ids: IdSource) -> None:
        self._addresses = AddressParser(limits)
        objects, uploads = ObjectHandlers(watchers), UploadHandlers(watchers)
        initiate = Route("initiate_upload", Permission.WRITE, _unconditional(uploads.initiate))
        create = Route("create_session", Permission.WRITE, _unconditional(create_session))
        appending = Route("append", Permission.WRITE, _unconditional(append))
        cancelling = Route("cancel_session", Permission.WRITE, _unconditional(cancel))
        self._objects = _Family(
            {"POST": Route("put", Permission.WRITE, _plain(objects.post), {UPLOAD_TYPE: create})},
            {
                "GET": Route("get", Permission.READ, objects.get),
                "HEAD": Route("head", Permission.READ, objects.head),
                "PUT": Route("put", Permission.WRITE, _plain(objects.put), {UPLOAD_TYPE: create, SESSION: appending}),
                "DELETE": Route("delete", Permission.DELETE, _plain(objects.delete), {SESSION: cancelling}),
                "PATCH": Route("extend", Permission.WRITE, _unconditional(extend_expiry)),
            },
        )
        self._families = {
            b"batch": _Family({"POST": Route("batch", None, _unconditional(BatchHandler(watchers, ids).batch))}, {}),
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
                for method, route in routes.items():
                    yield Listed(method, prefix, names_object, route)
                    for parameter, step in route.resumable.items():
                        value = RESUMABLE if parameter == UPLOAD_TYPE else ""
                        yield Listed(method, prefix, names_object, step, f"{parameter}={value}")

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
            raise MethodNotAllowed(tuple(routes))
        route = _chosen(route, exchange)
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


def _unconditional(handler: Handler) -> Handler:
    """``handler`` for requests without a condition; others are 501."""

    async def handle(exchange: Exchange, service: AdmittedService, object_id: ObjectId) -> None:
        refuse_conditions(exchange.fields)
        await handler(exchange, service, object_id)

    return handle


def _plain(handler: Handler) -> Handler:
    """``handler`` for requests without a condition, of which no parameter says that they are something else.

    What changes the meaning of a mutation is never passed over. A ``PUT`` with ``If-None-Match: *`` must not replace
    the object (RFC 9110, section 13.1), nor must a part that came to the object's address, or what would have belonged
    to a resumable upload (`InvalidRequest`).
    """

    async def handle(exchange: Exchange, service: AdmittedService, object_id: ObjectId) -> None:
        refuse_conditions(exchange.fields)
        if UPLOAD_OFFSET in exchange.fields:
            raise InvalidRequest("upload-offset goes with the session of a resumable upload, and here is none")
        if exchange.query:
            _refuse_parameters(exchange)
        await handler(exchange, service, object_id)

    return handle


def _refuse_parameters(exchange: Exchange) -> None:
    """Raise `InvalidRequest` for a parameter that the method does not go with."""
    parameters = parse_query(exchange.query)
    if not _OF_UPLOADS.isdisjoint(parameters):
        raise InvalidRequest(f"parts and uploads have addresses of their own: {_FAMILY_PREFIX.decode()}multipart…")
    if UPLOAD_TYPE in parameters:
        raise InvalidRequest(f"{UPLOAD_TYPE} is {RESUMABLE}, with PUT or POST, or left out")
    if SESSION in parameters:
        raise InvalidRequest(f"{SESSION} goes with PUT and DELETE, at the address of the object")


def _chosen(route: Route, exchange: Exchange) -> Route:
    """What a request asks for by its parameters. Raises `InvalidRequest` for a malformed query."""
    if not route.resumable or not exchange.query:
        return route
    parameters = parse_query(exchange.query)
    if SESSION in parameters and SESSION in route.resumable:
        return route.resumable[SESSION]
    if parameters.get(UPLOAD_TYPE) == RESUMABLE and UPLOAD_TYPE in route.resumable:
        return route.resumable[UPLOAD_TYPE]
    return route
