"""Extensions of an expiry: where a deadline is to be moved to, and what that makes of the object.

Guarantees: a target names one instant, once the object's creation and the time of the request are known.
"""

from dataclasses import dataclass
from typing import assert_never

from tierstore.clock import MICROS_PER_SECOND, UnixMicros
from tierstore.types.metadata import Expiration, Manual, TimeToIdle, TimeToLive


@dataclass(frozen=True, slots=True)
class AtInstant:
    """The deadline is to be ``instant``."""

    instant: UnixMicros


@dataclass(frozen=True, slots=True)
class AfterCreation:
    """The deadline is to be ``seconds`` after the object's creation."""

    seconds: int


@dataclass(frozen=True, slots=True)
class AfterNow:
    """The deadline is to be ``seconds`` after the moment at which the extension begins to run."""

    seconds: int


ExpiryTarget = AtInstant | AfterCreation | AfterNow


def resolve_target(target: ExpiryTarget, *, created: UnixMicros, now: UnixMicros) -> UnixMicros:
    """The instant that ``target`` means for an object of that creation."""
    match target:
        case AtInstant(instant):
            return instant
        case AfterCreation(seconds):
            return created + seconds * MICROS_PER_SECOND
        case AfterNow(seconds):
            return now + seconds * MICROS_PER_SECOND
        case _:
            assert_never(target)


def expiration_until(
    expiration: Expiration, deadline: UnixMicros, *, created: UnixMicros, now: UnixMicros
) -> Expiration:
    """The shortest expiration of the same kind with which the object would live until ``deadline``.

    A `TimeToLive` counts from the creation, and so is its whole lifetime; a `TimeToIdle` counts as if the object were
    accessed now. By it bounds and policies judge an extension, as they judge an insert.
    """
    match expiration:
        case Manual():
            return expiration
        case TimeToLive():
            return TimeToLive(_seconds(deadline - created))
        case TimeToIdle():
            return TimeToIdle(_seconds(deadline - now))
        case _:
            assert_never(expiration)


def _seconds(micros: int) -> int:
    """Whole seconds, rounded up, so that nothing beyond a bound passes for the bound."""
    return max(-(-micros // MICROS_PER_SECOND), 0)
