"""Policies of usecases: how long their objects may live.

Guarantees: no object is inserted whose expiration its usecase's policy forbids, nor is one extended to such a one, by
any way that asks here (single objects, multipart uploads and extensions do). Does not: change what is stored already.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, assert_never, get_args

from tierstore.errors import PolicyViolation
from tierstore.types.durations import format_duration
from tierstore.types.metadata import Expiration, Manual, TimeToIdle, TimeToLive

ExpirationKind = Literal["manual", "ttl", "tti"]
ALL_KINDS: tuple[ExpirationKind, ...] = get_args(ExpirationKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsecasePolicy:
    """What the objects of a usecase may ask for. Durations are in seconds; None means any."""

    expirations: tuple[ExpirationKind, ...] = ALL_KINDS
    ttl_seconds_max: int | None = None
    tti_seconds_max: int | None = None

    def check(self, usecase: str, expiration: Expiration) -> None:
        """Raise `PolicyViolation` if an object of the usecase may not have this expiration."""
        match expiration:
            case Manual():
                self._check("manual", usecase, 0, None)
            case TimeToLive(seconds):
                self._check("ttl", usecase, seconds, self.ttl_seconds_max)
            case TimeToIdle(seconds):
                self._check("tti", usecase, seconds, self.tti_seconds_max)
            case _:
                assert_never(expiration)

    def _check(self, kind: ExpirationKind, usecase: str, seconds: int, seconds_max: int | None) -> None:
        if kind not in self.expirations:
            allowed = ", ".join(self.expirations)
            raise PolicyViolation(f"objects of the usecase {usecase} may not have a {kind} expiration, only: {allowed}")
        if seconds_max is not None and seconds > seconds_max:
            longest = format_duration(seconds_max)
            raise PolicyViolation(f"the {kind} of objects of the usecase {usecase} is at most {longest}")


@dataclass(frozen=True, slots=True)
class UsecasePolicies:
    """The policies in force: by usecase, and one for usecases that have none of their own."""

    by_usecase: Mapping[str, UsecasePolicy] = field(default_factory=dict)
    of_others: UsecasePolicy = UsecasePolicy()

    def check(self, usecase: str, expiration: Expiration) -> None:
        """Raise `PolicyViolation` if an object of the usecase may not have this expiration."""
        self.by_usecase.get(usecase, self.of_others).check(usecase, expiration)
