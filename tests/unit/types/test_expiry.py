"""Where an extension leads, and what it makes of an object."""

from hypothesis import given
from hypothesis import strategies as st

from tierstore.clock import MICROS_PER_SECOND as SECOND
from tierstore.types.expiry import AfterCreation, AfterNow, AtInstant, expiration_until, resolve_target
from tierstore.types.metadata import MANUAL, TimeToIdle, TimeToLive, deadline

_INSTANTS = st.integers(0, 4_000_000_000 * SECOND)


def test_a_target_counts_from_what_it_says() -> None:
    """An instant is itself; a duration counts from the creation, or from now."""
    assert resolve_target(AtInstant(7), created=100, now=200) == 7
    assert resolve_target(AfterCreation(3), created=100, now=200) == 100 + 3 * SECOND
    assert resolve_target(AfterNow(3), created=100, now=200) == 200 + 3 * SECOND


@given(st.sampled_from([TimeToLive(5), TimeToIdle(5)]), _INSTANTS, _INSTANTS, _INSTANTS)
def test_the_expiration_of_an_extended_object_is_the_shortest_that_reaches_so_far(
    expiration: TimeToLive | TimeToIdle, created: int, now: int, until: int
) -> None:
    """Of the same kind; it reaches so far from the creation (ttl) or from now (tti), and no second less would do."""
    start = created if isinstance(expiration, TimeToLive) else now
    extended = expiration_until(expiration, until, created=created, now=now)
    assert type(extended) is type(expiration)
    assert isinstance(extended, TimeToLive | TimeToIdle)
    reached = deadline(extended, start)
    assert reached is not None
    assert reached >= until
    assert extended.seconds == 0 or reached - SECOND < until


def test_what_does_not_expire_stays_so() -> None:
    """There is nothing to count."""
    assert expiration_until(MANUAL, 9, created=1, now=2) is MANUAL
