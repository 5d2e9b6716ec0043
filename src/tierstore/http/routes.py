"""Which handler a request goes to, below ``/v1/objects``.

Guarantees: in this order, an address that is malformed is 400, one with another method 405, a request that is not
admitted 401, one that this release does not offer 501; all of it without reading a body.
"""

from tierstore.errors import InvalidRequest, MethodNotAllowed, NotOffered
from tierstore.http.exchange import Exchange
from tierstore.http.objects import ObjectHandlers
from tierstore.http.parsing import OBJECTS_PREFIX, AddressParser, parse_query
from tierstore.http.settings import Served
from tierstore.limits import Limits
from tierstore.tasks import TaskOwner

_COLLECTION_METHODS = ("POST",)
_EXTEND_EXPIRY = "PATCH"
_NOT_OFFERED_FAMILIES = {
    b"batch": "batch requests",
    b"multipart": "multipart uploads",
    b"multipart:parts": "multipart uploads",
    b"multipart:complete": "multipart uploads",
}
_CONDITIONS = frozenset({b"if-match", b"if-none-match", b"if-unmodified-since"})
_FAMILY_PREFIX = OBJECTS_PREFIX[:-1] + b":"
_OPERATIONS = {"GET": "get", "HEAD": "head", "PUT": "put", "POST": "put", "DELETE": "delete", "PATCH": "extend"}


class ObjectRoutes:
    """Routes requests to the object handlers."""

    def __init__(self, limits: Limits, watchers: TaskOwner) -> None:
        self._addresses = AddressParser(limits)
        self._handlers = ObjectHandlers(watchers)
        self._object_methods = tuple(self._handlers.by_method)

    async def serve(self, exchange: Exchange, served: Served) -> bool:
        """Answer the request, or return False, with nothing done, if its path names nothing that is served here."""
        raw_path = exchange.raw_path
        if not raw_path.startswith(OBJECTS_PREFIX):
            return self._refuse_family(raw_path, served)
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

    def _refuse_family(self, raw_path: bytes, served: Served) -> bool:
        family, slash, _ = raw_path.removeprefix(_FAMILY_PREFIX).partition(b"/")
        if not slash or not raw_path.startswith(_FAMILY_PREFIX) or family not in _NOT_OFFERED_FAMILIES:
            return False
        served.gate.admit(served.service)
        raise NotOffered(f"this release does not offer {_NOT_OFFERED_FAMILIES[family]}")


def _refuse_what_is_not_offered(exchange: Exchange) -> None:
    """Raise `NotOffered` for a resumable upload: its client falls back to a plain insert.

    What changes the meaning of a mutation is never passed over. ``DELETE …?session=`` cancels an upload, and must not
    delete the object; ``PUT`` with ``If-None-Match: *`` must not replace it (RFC 9110, section 13.1).
    """
    method, query = exchange.method, exchange.query
    if method == _EXTEND_EXPIRY:
        raise NotOffered("this release does not offer to extend an object's expiry")
    if method in {"GET", "HEAD"}:
        return
    if not _CONDITIONS.isdisjoint(exchange.fields):
        raise NotOffered("this release does not offer conditional requests; objects have no validators")
    if not query:
        return
    parameters = parse_query(query)
    kind = parameters.get("upload_type")
    if kind == "resumable" or "session" in parameters:
        raise NotOffered(
            "this release does not offer resumable uploads; send the whole object with a plain PUT or POST"
            if method != "DELETE"
            else "this release does not offer resumable uploads, so there is none to cancel"
        )
    if kind is not None:
        raise InvalidRequest("upload_type is resumable, or left out")
