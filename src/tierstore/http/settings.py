"""What the HTTP layer is given by the composition root."""

from collections.abc import Callable
from dataclasses import dataclass

from tierstore.admission.gate import Gate
from tierstore.clock import Clock
from tierstore.idsource import IdSource
from tierstore.limits import Limits
from tierstore.service.service import ObjectService


@dataclass(frozen=True, slots=True)
class Served:
    """What requests are served with, while the stores are open."""

    service: ObjectService
    """For the internal routes; handlers of objects get it from the gate."""
    gate: Gate


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """How they are served."""

    limits: Limits
    clock: Clock
    ids: IdSource
    max_requests: int
    """Requests for objects under way at once, in this process; more are refused."""
    draining: Callable[[], bool]
    """Whether the process has been asked to stop: `/ready` says so, so that no new clients come."""
    audit: bool = True
    """Whether mutations and refusals are logged whatever the level of the log is, with who asked for them."""
