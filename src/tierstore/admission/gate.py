"""The gate: hands out the service for a request that is admitted, and refuses all others.

In this order: killswitches (403), credentials (400, 401), what they permit (403), the throughput limits (429).

Guarantees: handlers get an object service from `Gate.admit` and from nowhere else; it comes with what the caller may do
(`tierstore.admission.admitted`). `replace` puts other settings in force at once and as a whole, and no token that was
verified by the keys before it counts afterwards. While ``enforce`` is off everything is let through, and the admitted
service knows what would have been refused; with no keys either, nobody is asked for credentials at all.

Does not: guard the internal routes (health, readiness, metrics), which never touch objects.
"""

from functools import partial

from tierstore.admission.admitted import AdmittedService
from tierstore.admission.authentication import Access, Authenticator, Caller
from tierstore.admission.controls import Controls
from tierstore.admission.facts import RequestFacts
from tierstore.admission.rules import Rules
from tierstore.clock import Clock
from tierstore.errors import Refusal, UnreadableCredentials
from tierstore.limits import Limits
from tierstore.service.service import ObjectService
from tierstore.types.permissions import ALL_PERMISSIONS

_ANYBODY = Caller(None, ALL_PERMISSIONS)


class Gate:
    """Admits requests to one service."""

    def __init__(
        self, service: ObjectService, access: Access, controls: Controls, *, clock: Clock, limits: Limits
    ) -> None:
        self._service = service
        self._controls = controls
        self._clock = clock
        self._limits = limits
        self._set(access)

    @property
    def controls(self) -> Controls:
        """The rules in force; for those who watch."""
        return self._controls

    def replace(self, access: Access, rules: Rules) -> None:
        """Put other settings in force, for the requests that come from now on."""
        self._set(access)
        self._controls.replace(rules)

    def _set(self, access: Access) -> None:
        self._enforce = access.enforce
        asked = access.enforce or len(access.keys) > 0
        self._authenticator = Authenticator(access, clock=self._clock, limits=self._limits) if asked else None

    def admit(self, facts: RequestFacts) -> AdmittedService:
        """The service for one request.

        Raises `Forbidden`, `UnreadableCredentials`, `Unauthenticated`, `RateLimited`.
        """
        self._controls.check_killswitches(facts.usecase, facts.scopes, facts.downstream_service)
        caller, passed_over = self._caller(facts)
        self._controls.take_request(facts.usecase, facts.scopes, facts.downstream_service)
        renewed = partial(self._renewed, facts)
        return AdmittedService(self._service, self._controls, facts, caller, renewed, passed_over)

    def _renewed(self, facts: RequestFacts) -> Caller:
        return self._caller(facts)[0]

    def _caller(self, facts: RequestFacts) -> tuple[Caller, Refusal | UnreadableCredentials | None]:
        """Who calls; and why it would have been refused, if refusals were enforced."""
        if self._authenticator is None:
            return _ANYBODY, None
        try:
            caller = self._authenticator.authenticate(facts)
            if facts.permission is not None:
                caller.require(facts.permission)
        except (Refusal, UnreadableCredentials) as refusal:
            if self._enforce:
                raise
            return _ANYBODY, refusal
        return (caller if self._enforce else Caller(caller.kid, ALL_PERMISSIONS)), None
