"""What admission knows of a request: values alone, made by the HTTP layer before anything of a body is read.

Guarantees: the address has been parsed, so ``usecase``, ``scopes`` and ``key`` are valid; the path and the query are as
they were on the wire, for signatures are over them. Does not: hold the body, or answer anything.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tierstore.types.ids import Scope
from tierstore.types.permissions import Permission


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFacts:
    """One request for objects."""

    method: str
    raw_path: bytes
    """Percent-encoded, as on the wire."""
    raw_query: bytes
    """As on the wire, without the ``?``."""
    header: Callable[[bytes], bytes | None]
    """The value of a header by its lower-case name; of those that matter here none is repeated."""
    usecase: str
    scopes: tuple[Scope, ...]
    key: str | None
    """The object's key; None where the server makes it, and for a batch."""
    downstream_service: str | None
    """The calling service, as it names itself, without the suffix of its pod."""
    permission: Permission | None
    """What the route needs; None for a batch, where each operation needs its own."""
