"""Laws of `tierstore.admission.conditions`: what a killswitch and an extra limit mean."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore.admission.conditions import Condition, condition, downstream_service
from tierstore.errors import InvalidRequest
from tierstore.types.ids import Scope

ORG, PROJECT = Scope("org", "17"), Scope("project", "42")


@pytest.mark.parametrize(
    ("given_name", "service"),
    [
        (b"relay", "relay"),
        (b" relay\t", "relay"),
        (b"relay-7d9f8b6c5d-x2k9z", "relay"),
        (b"relay-canary-6b474476c4-8kv2p", "relay-canary"),
        (b"relay-2035384211-lf0w4", "relay"),
        (b"relay-5d4f7a3b1e-abcde", "relay"),
        (b"symbolicator-0", "symbolicator"),
        (b"symbolicator-us-12", "symbolicator-us"),
        (b"event-ingest-proxy", "event-ingest-proxy"),
        (b"my-best-fleet", "my-best-fleet"),
        (b"-0", "-0"),
        (b"relay-7d9f8b6c5d-x2k9z-0", "relay-7d9f8b6c5d-x2k9z"),
        (b"a" * 253, "a" * 253),
        (b"a" * 254, None),
        (b"", None),
        (b"two words", None),
        (b"caf\xe9", None),
        (b"re*ay", None),
        (b"relay\n", None),
        (None, None),
    ],
)
def test_services_are_named_without_their_pods(given_name: bytes | None, service: str | None) -> None:
    """The suffix of a pod is stripped once, and nothing else is; what is no name names nobody."""
    assert downstream_service(given_name) == service


@given(st.binary(max_size=60) | st.from_regex(rb"[a-z0-9-]{0,60}", fullmatch=True))
def test_any_header_names_a_part_of_itself_or_nobody(header: bytes) -> None:
    """Whatever a header holds, it is read without an error, as a beginning of what it says."""
    service = downstream_service(header)
    assert service is None or (service and header.decode("latin-1").strip(" \t").startswith(service))


@pytest.mark.parametrize(
    ("means", "holds"),
    [
        (Condition(usecase="attachments"), True),
        (Condition(usecase="Attachments"), False),
        (Condition(scopes=(ORG,)), True),
        (Condition(scopes=(PROJECT, ORG)), True),
        (Condition(scopes=(Scope("org", "18"),)), False),
        (Condition(scopes=(ORG, Scope("team", "1"))), False),
        (Condition(service="relay"), True),
        (Condition(service="re*"), True),
        (Condition(service="rel?y"), True),
        (Condition(service="[qr]elay"), True),
        (Condition(service="rel"), False),
        (Condition(service="RELAY"), False),
        (Condition(usecase="attachments", scopes=(ORG,), service="relay"), True),
        (Condition(usecase="profiles", scopes=(ORG,), service="relay"), False),
        (Condition(usecase="attachments", scopes=(Scope("org", "1"),), service="relay"), False),
        (Condition(usecase="attachments", scopes=(ORG,), service="other"), False),
    ],
)
def test_all_parts_of_a_condition_must_hold(means: Condition, holds: bool) -> None:
    """A usecase is equal, scopes are among the request's in any order, and the pattern fits the whole service."""
    assert means.holds("attachments", (ORG, PROJECT), "relay") is holds


def test_a_request_that_names_no_service_fits_no_pattern() -> None:
    """Not even the one that fits every name."""
    assert not Condition(service="*").holds("attachments", (), None)


def test_a_condition_of_nothing_cannot_be_made() -> None:
    """It would mean every request there is."""
    with pytest.raises(InvalidRequest, match="has a usecase, scopes or a service"):
        Condition()
    with pytest.raises(InvalidRequest, match="has a usecase, scopes or a service"):
        condition(None, {}, None)


@pytest.mark.parametrize("wrong", [Scope("", "1"), Scope("org", ""), Scope("org", "a b")])
def test_what_no_request_can_be_like_is_a_mistake(wrong: Scope) -> None:
    """A condition that can never hold stops nothing, and its author would not know."""
    with pytest.raises(InvalidRequest):
        Condition(scopes=(wrong,))
    with pytest.raises(InvalidRequest):
        Condition(usecase="no such usecase")


def test_numbers_in_settings_are_scopes() -> None:
    """Who writes ``org: 17`` means the scope ``org=17``."""
    assert condition(None, {"org": 17}, None).holds("any", (ORG,), None)


def test_hostile_names_are_matched_in_time() -> None:
    """A pattern of many stars takes no long time on a name that almost fits."""
    slow = Condition(service="*a" * 60 + "b")
    began = time.perf_counter()
    assert not slow.holds("any", (), "a" * 253)
    assert time.perf_counter() - began < 1
