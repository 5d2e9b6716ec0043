"""Laws of `tierstore.admission.usecases`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore.admission.usecases import UsecasePolicies, UsecasePolicy
from tierstore.errors import InvalidRequest
from tierstore.types.metadata import MANUAL, Expiration, TimeToIdle, TimeToLive

EXPIRATIONS = st.just(MANUAL) | st.builds(TimeToLive, st.integers(0, 10**6)) | st.builds(TimeToIdle, st.integers(0, 99))


def _refused(policies: UsecasePolicies, usecase: str, expiration: Expiration) -> bool:
    try:
        policies.check(usecase, expiration)
    except InvalidRequest:
        return True
    return False


@given(EXPIRATIONS)
def test_without_a_policy_everything_is_allowed(expiration: Expiration) -> None:
    """The default forbids nothing."""
    assert not _refused(UsecasePolicies(), "attachments", expiration)


def test_kinds_that_are_not_named_are_refused() -> None:
    """Also the kind that a request has which says nothing of it."""
    policies = UsecasePolicies({"attachments": UsecasePolicy(expirations=("ttl",))})
    assert _refused(policies, "attachments", MANUAL)
    assert _refused(policies, "attachments", TimeToIdle(1))
    assert not _refused(policies, "attachments", TimeToLive(10**9))
    assert not _refused(policies, "others", MANUAL)


@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 200))
def test_each_kind_has_its_longest_duration(seconds: int, ttl_max: int, tti_max: int) -> None:
    """The longest is allowed, a second more is not; one kind's bound is not the other's."""
    policies = UsecasePolicies({"attachments": UsecasePolicy(ttl_seconds_max=ttl_max, tti_seconds_max=tti_max)})
    assert _refused(policies, "attachments", TimeToLive(seconds)) is (seconds > ttl_max)
    assert _refused(policies, "attachments", TimeToIdle(seconds)) is (seconds > tti_max)
    assert not _refused(policies, "attachments", MANUAL)


def test_a_policy_of_its_own_replaces_that_of_the_others() -> None:
    """What is for all others is not added to a usecase's own."""
    strict = UsecasePolicy(expirations=("ttl",), ttl_seconds_max=60)
    policies = UsecasePolicies({"replays": UsecasePolicy()}, of_others=strict)
    assert _refused(policies, "attachments", MANUAL)
    assert not _refused(policies, "replays", MANUAL)


def test_a_refusal_says_what_is_allowed() -> None:
    """Who reads it can mend the request."""
    policies = UsecasePolicies(of_others=UsecasePolicy(expirations=("ttl", "tti"), ttl_seconds_max=86_400))
    with pytest.raises(InvalidRequest, match="usecase attachments may not have a manual expiration, only: ttl, tti"):
        policies.check("attachments", MANUAL)
    with pytest.raises(InvalidRequest, match="at most 1d"):
        policies.check("attachments", TimeToLive(86_401))
