"""The gate: hands out the service for a request that is admitted, and refuses all others.

Guarantees: handlers get an object service from `Gate.admit` and from nowhere else; while authentication is enforced,
nothing is admitted, because this release cannot check credentials. Does not: guard the internal routes (health,
readiness, metrics), which never touch objects.
"""

from tierstore.errors import Unauthenticated
from tierstore.service.service import ObjectService

_REFUSAL = (
    "authentication is enforced, and this release does not support authentication keys: no request is admitted. "
    "On a trusted network, start the server with --no-auth, or set auth.enforce to false"
)


class Gate:
    """Admits requests. ``enforce`` is the switch of authentication; true is the safe default of the config."""

    def __init__(self, *, enforce: bool) -> None:
        self._enforce = enforce

    def admit(self, service: ObjectService) -> ObjectService:
        """Return ``service`` for one request. Raises `Unauthenticated` while authentication is enforced."""
        if self._enforce:
            raise Unauthenticated(_REFUSAL)
        return service
