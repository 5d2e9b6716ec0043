"""Request targets to values: percent-decoding, addresses, query parameters.

Guarantees: everything is decoded exactly once and from the bytes on the wire, so that ``%2F`` in a key is a slash of
the key, ``%252F`` is the text ``%2F``, and ``+`` stays ``+``; malformed escapes and invalid UTF-8 are refused. Does
not: normalise. A key is data; ``..``, ``//`` and NUL in it mean nothing here.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote, unquote_to_bytes

from tierstore.errors import InvalidRequest
from tierstore.limits import Limits
from tierstore.types.ids import ObjectId, Scope, check_key, parse_scopes, parse_usecase

OBJECTS_PREFIX = b"/v1/objects/"
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
KEY_SAFE = "/:@!$&'()*+,;="
"""What clients leave as it is in a key: RFC 3986 sub-delims, ``:``, ``@`` and ``/`` (unreserved ones always are)."""
_NAMESPACES_CACHED_MAX = 4096
_NAMESPACE_CACHED_BYTES_MAX = 256


def percent_decode(raw: bytes) -> str:
    """Decode ``raw`` once (RFC 3986, section 2.1), as UTF-8. Raises `InvalidRequest` for what is malformed."""
    if b"%" in raw:
        if _BAD_ESCAPE.search(raw) is not None:
            raise InvalidRequest("the address has a malformed percent-escape")
        raw = unquote_to_bytes(raw)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise InvalidRequest("the address is not valid UTF-8") from None


@dataclass(frozen=True, slots=True)
class Namespace:
    """The first two segments of an address: whose objects these are."""

    usecase: str
    scopes: tuple[Scope, ...]

    @property
    def scopes_text(self) -> str:
        """The scopes as addresses write them; ``_`` for none."""
        return ";".join(f"{scope.name}={scope.value}" for scope in self.scopes) or "_"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a request goes: one object, or with ``key`` None all of a namespace (where keys are made)."""

    namespace: Namespace
    key: str | None

    def object_id(self, key: str) -> ObjectId:
        """The id of the object ``key`` in this namespace."""
        return ObjectId(self.namespace.usecase, self.namespace.scopes, key)


class AddressParser:
    """Parses raw paths. Keeps the latest namespaces, for they are few and every request names one."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._namespace_cached = lru_cache(maxsize=_NAMESPACES_CACHED_MAX)(self._namespace)

    def parse(self, raw_path: bytes, prefix: bytes = OBJECTS_PREFIX) -> Address | None:
        """The address that ``raw_path``, as on the wire, names below ``prefix``, with which it begins; or None.

        Raises `InvalidRequest` for a bad usecase, scope, key or escape.
        """
        usecase, _, rest = raw_path[len(prefix) :].partition(b"/")
        scopes, _, raw_key = rest.partition(b"/")
        if not usecase or not scopes:
            return None
        short = len(usecase) + len(scopes) <= _NAMESPACE_CACHED_BYTES_MAX
        namespace = (self._namespace_cached if short else self._namespace)(usecase, scopes)
        return Address(namespace, check_key(percent_decode(raw_key), self._limits) if raw_key else None)

    def _namespace(self, usecase: bytes, scopes: bytes) -> Namespace:
        return Namespace(parse_usecase(percent_decode(usecase)), parse_scopes(percent_decode(scopes), self._limits))


def object_path(object_id: ObjectId) -> bytes:
    """The address of an object as a client would write it; `AddressParser.parse` reads it back."""
    namespace = Namespace(object_id.usecase, object_id.scopes)
    return OBJECTS_PREFIX + f"{namespace.usecase}/{namespace.scopes_text}/{quote(object_id.key, KEY_SAFE)}".encode()


def parse_query(raw: bytes) -> dict[str, str]:
    """The parameters of a query, each decoded once; of repeated ones the last. Raises `InvalidRequest`."""
    return dict(_parameters(raw))


def parse_single(raw: bytes, names: Collection[str]) -> dict[str, str]:
    """The parameters of a query that are among ``names``, each decoded once.

    Raises `InvalidRequest` for what is malformed anywhere in the query, and for one of ``names`` given twice.
    """
    found: dict[str, str] = {}
    for name, value in _parameters(raw):
        if name in found:
            raise InvalidRequest(f"the parameter {name} is given more than once")
        if name in names:
            found[name] = value
    return found


def _parameters(raw: bytes) -> Iterator[tuple[str, str]]:
    for pair in raw.split(b"&"):
        if pair:
            name, _, value = pair.partition(b"=")
            yield percent_decode(name), percent_decode(value)
