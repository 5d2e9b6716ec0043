"""Killswitches: requests that an operator has stopped, whoever makes them.

Guarantees: a request is stopped if all conditions of one killswitch hold. Does not: stop what is already under way.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tierstore.admission.conditions import Condition
from tierstore.errors import Forbidden
from tierstore.types.ids import Scope


@dataclass(frozen=True, slots=True)
class Killswitches:
    """The killswitches in force."""

    conditions: tuple[Condition, ...] = ()

    def check(self, usecase: str, scopes: Sequence[Scope], service: str | None) -> None:
        """Raise `Forbidden` if one of them means this request. The caller does not learn which."""
        for condition in self.conditions:
            if condition.holds(usecase, scopes, service):
                raise Forbidden("requests of this kind have been stopped by the operator")
