"""Extending an expiry over real sockets: targets, refusals, policies, and what is shown afterwards."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.http.credentials import NOW_SECONDS, StandingClock
from tests.http.harness import LIMITS, ROOT, Connection, Response, Running, eventually, head, running
from tierstore.admission.rules import Rules
from tierstore.admission.usecases import UsecasePolicies, UsecasePolicy
from tierstore.errors import InvalidRequest, OutcomeUnknown, Unavailable
from tierstore.http.expiry import parse_extension
from tierstore.testing.faults import ArriveLate, FailBefore, Interpose, LoseReply, Pause
from tierstore.types.expiry import AfterCreation, AfterNow, AtInstant

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOW = datetime.fromtimestamp(NOW_SECONDS, UTC)
SMALL, LARGE = b"small", b"L" * (LIMITS.inline_bytes_max + 1)
BOTH_TIERS = pytest.mark.parametrize("payload", [SMALL, LARGE], ids=["small", "large"])
BODY_BYTES_MAX = LIMITS.extension_body_bytes_max


@pytest.fixture
def clock() -> StandingClock:
    """The server's wall clock."""
    return StandingClock()


@pytest_asyncio.fixture(loop_scope="module")
async def up(clock: StandingClock) -> AsyncIterator[Running]:
    """A server whose time the test moves."""
    async with running(clock=clock) as up:
        yield up
        assert up.failures == []


def _document(**extension: Any) -> bytes:
    return json.dumps({"extend_expiry": {name.rstrip("_"): value for name, value in extension.items()}}).encode()


async def _patch(server: Running, body: bytes, *headers: tuple[str, str], key: str = "k") -> Response:
    return await server.request("PATCH", f"{ROOT}/{key}", headers, body)


async def _put(server: Running, payload: bytes, expiration: str = "", key: str = "k") -> None:
    headers = [("x-sn-expiration", expiration)] if expiration else []
    assert (await server.request("PUT", f"{ROOT}/{key}", headers, payload)).status == 200


async def _shown(server: Running, key: str = "k") -> tuple[str, datetime]:
    """The expiration and the deadline that a reader is shown."""
    headers = (await server.request("HEAD", f"{ROOT}/{key}")).headers
    return headers["x-sn-expiration"], datetime.fromisoformat(headers["x-sn-time-expires"])


@BOTH_TIERS
async def test_a_ttl_shows_its_whole_lifetime(up: Running, clock: StandingClock, payload: bytes) -> None:
    """Every kind of target moves the deadline; the ttl tells the lifetime from the creation on, and all else stays."""
    await _put(up, payload, "ttl:1h")
    before = (await up.request("GET", f"{ROOT}/k")).headers
    clock.seconds += 600
    for body, lifetime, shown in (
        (_document(after="2h", from_="creation"), timedelta(hours=2), "ttl:2h"),
        (_document(after="1day 5 min", from_="now"), timedelta(days=1, minutes=15), "ttl:1d 15m"),
        (_document(at="2027-01-20T00:00:00Z"), datetime(2027, 1, 20, tzinfo=UTC) - NOW, "ttl:4d 16h"),
        (_document(at="2027-01-21T02:00:00.000001+02:00"), datetime(2027, 1, 21, 0, 0, 0, 1, UTC) - NOW, "ttl:5d 16h"),
    ):
        answer = await _patch(up, body)
        assert (answer.status, answer.body) == (204, b"")
        assert "content-length" not in answer.headers
        assert await _shown(up) == (shown, NOW + lifetime)
    got = await up.request("GET", f"{ROOT}/k")
    assert got.body == payload
    changing = {"x-sn-expiration", "x-sn-time-expires", "date", "x-request-id"}
    assert {name: value for name, value in got.headers.items() if name not in changing} == {
        name: value for name, value in before.items() if name not in changing
    }
    clock.seconds = NOW_SECONDS + (5 * 24 + 16) * 3600
    assert (await up.request("GET", f"{ROOT}/k")).status == 200
    clock.seconds += 0.000001
    assert (await up.request("GET", f"{ROOT}/k")).status == 404


@BOTH_TIERS
async def test_a_tti_stays_as_it_is(up: Running, clock: StandingClock, payload: bytes) -> None:
    """Only the deadline moves; accesses leave it there until they would lead further, and then count again."""
    await _put(up, payload, "tti:1h")
    assert (await _patch(up, _document(after="3h", from_="now"))).status == 204
    for _ in range(2):
        clock.seconds += 3600
        assert await _shown(up) == ("tti:1h", NOW + timedelta(hours=3))
    clock.seconds += 1800
    assert await _shown(up) == ("tti:1h", NOW + timedelta(hours=3))
    await eventually("the access has moved it", lambda: up.script.trace.count("high_volume.extend") == 2)
    assert await _shown(up) == ("tti:1h", NOW + timedelta(hours=3, minutes=30))


async def test_a_copy_of_what_is_shown_lives_as_long(up: Running, clock: StandingClock) -> None:
    """A client that stores an object again with the headers it was shown gives it the whole lifetime."""
    await _put(up, SMALL, "ttl:1h")
    await _patch(up, _document(after="3d", from_="creation"))
    clock.seconds += 60
    await _put(up, SMALL, (await _shown(up))[0], key="copy")
    assert await _shown(up, "copy") == ("ttl:3d", NOW + timedelta(days=3, seconds=60))


async def test_it_never_shortens(up: Running, clock: StandingClock) -> None:
    """What lives so long already is 204 and unchanged: to the microsecond, for no time at all, and for the past."""
    for expiration in ("ttl:1h", "tti:1h"):
        await _put(up, SMALL, expiration)
        created = datetime.fromtimestamp(clock.seconds, UTC)
        for body in (
            _document(at=(created + timedelta(hours=1)).isoformat()),
            _document(at="1970-01-01T00:00:00Z"),
            _document(at="0001-01-01T00:00:00Z"),
            _document(after="0s", from_="now"),
            _document(after="0s", from_="creation"),
            _document(after="1h", from_="creation"),
        ):
            assert (await _patch(up, body)).status == 204
            assert await _shown(up) == (expiration, created + timedelta(hours=1))
        clock.seconds += 1
    assert "high_volume.extend" not in up.script.trace


async def test_who_can_not_be_extended(up: Running, clock: StandingClock) -> None:
    """Absent, deleted and expired objects are 404, one that does not expire is 409."""
    body = _document(after="1d", from_="now")
    assert (await _patch(up, body)).status == 404
    await _put(up, SMALL)
    refused = await _patch(up, body)
    assert (refused.status, refused.detail) == (409, "the object does not expire, so there is nothing to extend")
    await up.request("DELETE", f"{ROOT}/k")
    assert (await _patch(up, body)).status == 404
    await _put(up, LARGE, "ttl:1m")
    clock.seconds += 60
    absent = await _patch(up, body)
    assert (absent.status, absent.detail) == (404, "no such object")


MALFORMED = [
    b"", b" ", b"{", b"null", b"[]", b'"extend_expiry"', b"{}", b"\xff", b"{}{}", b'{"extend_expiry": {"at": "\xff"}}',
    b"[" * BODY_BYTES_MAX, b'{"extend_expiry": ' * 200,
    b'{"extend_expiry": null}', b'{"extend_expiry": []}', b'{"extend_expiry": "1d"}', b'{"extend_expiry": {}}',
    b'{"Extend_Expiry": {"after": "1d", "from": "now"}}',
    b'{"extend_expiry": {"after": "1d", "from": "now"}, "more": 1}',
    b'{"extend_expiry": {"after": "1d", "from": "now", "more": 1}}',
    b'{"extend_expiry": {"after": "1d", "from": "now", "start": "now"}}',
    b'{"extend_expiry": {"after": "1d", "from": "now"}} x',
    b'{"extend_expiry": {"after": "1d", "from": "now"},}',
    _document(after="1d"), _document(from_="now"), _document(after="1d", from_="Now"), _document(after="1d", from_=""),
    _document(after="1d", from_="deadline"), _document(after="1d", from_=None), _document(after=1, from_="now"),
    _document(after=None, from_="now"), _document(after="", from_="now"), _document(after="5", from_="now"),
    _document(after="-1d", from_="now"), _document(after="1.5h", from_="now"), _document(after="1 eon", from_="now"),
    _document(after="36601d", from_="now"), _document(after="9" * 30 + "d", from_="now"),
    _document(after=["1d"], from_="now"), _document(at="2027-01-20T00:00:00Z", after="1d", from_="now"),
    _document(at="2027-01-20T00:00:00Z", from_="now"), _document(at="2027-01-20T00:00:00Z", after="1d"),
    _document(at="2027-01-20T00:00:00Z", after=None), _document(at=1_800_000_000), _document(at=None), _document(at=""),
    _document(at="2027-01-20"), _document(at="2027-01-20T00:00:00"), _document(at="2027-02-30T00:00:00Z"),
    _document(at="tomorrow"), _document(at="9999-12-31T23:59:59-01:00"), _document(at="+12027-01-20T00:00:00Z"),
]  # fmt: skip


async def test_what_is_malformed_is_refused(up: Running) -> None:
    """400, before any store is asked, on a connection that goes on; and nothing has changed."""
    await _put(up, SMALL, "ttl:1h")
    before = len(up.script.trace)
    async with up.connect() as connection:
        for body in MALFORMED:
            answer = await connection.request("PATCH", f"{ROOT}/k", (), body)
            assert (answer.status, bool(answer.detail)) == (400, True), body
        assert len(up.script.trace) == before
    assert await _shown(up) == ("ttl:1h", NOW + timedelta(hours=1))


async def test_a_lifetime_beyond_all_bounds(up: Running) -> None:
    """An instant, too, leads to no lifetime that an insert could not ask for."""
    await _put(up, SMALL, "ttl:1h")
    for at in ("9999-12-31T23:59:59Z", (NOW + timedelta(days=36_600, microseconds=1)).isoformat()):
        refused = await _patch(up, _document(at=at))
        assert (refused.status, refused.detail) == (400, "an object can be told to live for at most 36600d")
    assert (await _patch(up, _document(at=(NOW + timedelta(days=36_600)).isoformat()))).status == 204
    assert await _shown(up) == ("ttl:36600d", NOW + timedelta(days=36_600))


async def test_bodies(up: Running) -> None:
    """As everywhere: chunks will do, any content type, ``expect``; what is too long is 413, what is cut off is 400."""
    await _put(up, SMALL, "ttl:1h")
    body = _document(after="2h", from_="now")
    async with up.connect() as connection:
        chunked = head("PATCH", f"{ROOT}/k", [("transfer-encoding", "chunked")])
        await connection.send(chunked + b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (5, body[:5], len(body) - 5, body[5:]))
        assert (await connection.response()).status == 204
        for content_type in ("application/json", "application/x-www-form-urlencoded", "nonsense"):
            answer = await connection.request("PATCH", f"{ROOT}/k", [("content-type", content_type)], body)
            assert answer.status == 204
        padded = body + b" " * (BODY_BYTES_MAX - len(body))
        assert (await connection.request("PATCH", f"{ROOT}/k", (), padded)).status == 204
        await connection.send(head("PATCH", f"{ROOT}/k", [("expect", "100-continue")], body) + body)
        waited = await connection.response()
        assert (waited.status, waited.informational) == (204, [100])
    async with up.connect() as connection:
        refused = await connection.request("PATCH", f"{ROOT}/k", (), padded + b" ")
        assert refused.status == 413
        assert refused.detail == f"an extension of an expiry has at most {BODY_BYTES_MAX} bytes"
    async with up.connect() as connection:
        await connection.send(head("PATCH", f"{ROOT}/k", [("transfer-encoding", "chunked")]))
        await connection.send(b"%x\r\n%s\r\n" % (BODY_BYTES_MAX + 1, padded + b" "))
        assert (await connection.response()).status == 413
    async with up.connect() as connection:
        await connection.send(head("PATCH", f"{ROOT}/k", (), body + b"more") + body)
        connection.abort()
    async with up.connect() as connection:
        await connection.send(f"PATCH {ROOT}/k HTTP/1.0\r\nhost: x\r\n\r\n".encode())
        assert (await connection.response()).status == 411
    assert await _shown(up) == ("ttl:2h", NOW + timedelta(hours=2))


async def test_conditions_are_not_passed_over(up: Running) -> None:
    """As with every mutation: 501, and nothing has changed."""
    await _put(up, SMALL, "ttl:1h")
    for name in ("if-match", "if-none-match", "if-unmodified-since"):
        assert (await _patch(up, _document(after="2h", from_="now"), (name, "*"))).status == 501
    assert await _shown(up) == ("ttl:1h", NOW + timedelta(hours=1))


async def test_policies_hold_for_what_it_leads_to(clock: StandingClock) -> None:
    """A ttl's whole lifetime, a tti's time from now, and the kind; never for what changes nothing."""
    policy = UsecasePolicy(ttl_seconds_max=7_200, tti_seconds_max=3_600)
    async with running(clock=clock) as up:
        for expiration, longest in (("ttl:1h", "2h"), ("tti:30m", "1h")):
            up.controls.replace(Rules(policies=UsecasePolicies({"testing": policy})))
            await _put(up, SMALL, expiration)
            created = datetime.fromtimestamp(clock.seconds, UTC)
            clock.seconds += 600
            room = timedelta(hours=2) if expiration.startswith("ttl") else timedelta(hours=1, seconds=600)
            refused = await _patch(up, _document(at=(created + room + timedelta(microseconds=1)).isoformat()))
            assert refused.status == 400
            assert refused.detail == f"the {expiration[:3]} of objects of the usecase testing is at most {longest}"
            assert (await _patch(up, _document(at=(created + room).isoformat()))).status == 204
            assert (await _shown(up))[1] == created + room
            up.controls.replace(Rules(policies=UsecasePolicies(of_others=UsecasePolicy(expirations=("manual",)))))
            refused = await _patch(up, _document(at=(created + room + timedelta(seconds=1)).isoformat()))
            assert (refused.status, "may not have a" in refused.detail) == (400, True)
            assert (await _patch(up, _document(at=(created + room).isoformat()))).status == 204


async def test_an_overwrite_meanwhile(up: Running) -> None:
    """409, and the object is as the other client has written it."""
    await _put(up, SMALL, "ttl:1h")
    up.script.at("high_volume.extend", Interpose(lambda: _put(up, LARGE, "ttl:2h")))
    lost = await _patch(up, _document(after="1d", from_="now"))
    assert (lost.status, lost.detail) == (409, "the object was replaced while its expiry was being extended")
    assert await _shown(up) == ("ttl:2h", NOW + timedelta(hours=2))


async def test_a_store_that_does_not_answer(up: Running) -> None:
    """503 to be tried again; a lost reply is looked up; what arrives late after a retry changes nothing."""
    await _put(up, SMALL, "ttl:1h")
    body = _document(after="1d", from_="now")
    up.script.at("high_volume.extend", FailBefore(Unavailable("scripted")), ArriveLate(OutcomeUnknown("scripted")))
    for _ in range(2):
        answer = await _patch(up, body)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert await _shown(up) == ("ttl:1h", NOW + timedelta(hours=1))
    up.script.at("high_volume.extend", LoseReply(OutcomeUnknown("scripted")))
    assert (await _patch(up, body)).status == 204
    await up.script.arrive()
    assert await _shown(up) == ("ttl:1d", NOW + timedelta(days=1))


async def test_it_goes_on_without_its_client(up: Running) -> None:
    """A client that goes away once its request has arrived does not take it back."""
    await _put(up, SMALL, "ttl:1h")
    pause = Pause()
    up.script.at("high_volume.extend", pause)
    body = _document(after="1d", from_="now")
    async with up.connect() as connection:
        await connection.send(head("PATCH", f"{ROOT}/k", (), body) + body)
        await pause.reached.wait()
        connection.abort()
    await asyncio.sleep(0.05)
    pause.release.set()
    await eventually("it has ended", lambda: not len(up.mutations))
    assert await _shown(up) == ("ttl:1d", NOW + timedelta(days=1))


async def test_what_it_lost_without_its_client_is_nobodys_failure(up: Running) -> None:
    """A conflict that nobody waits for is no failure of the server: none is counted, and the new object stays."""
    await _put(up, SMALL, "ttl:1h")
    pause = Pause()
    up.script.at("high_volume.extend", pause)
    body = _document(after="1d", from_="now")
    async with up.connect() as connection:
        await connection.send(head("PATCH", f"{ROOT}/k", (), body) + body)
        await pause.reached.wait()
        connection.abort()
    await asyncio.sleep(0.05)
    await _put(up, LARGE, "ttl:2h")
    pause.release.set()
    await eventually("it has ended", lambda: not len(up.mutations))
    assert up.failures == []
    assert await _shown(up) == ("ttl:2h", NOW + timedelta(hours=2))


async def test_pipelined_with_reads(up: Running) -> None:
    """One after the other on one connection, each sees what the one before has done."""
    await _put(up, SMALL, "ttl:1h")
    body = _document(after="1d", from_="now")
    async with up.connect() as connection:
        look = head("HEAD", f"{ROOT}/k")
        await connection.send(look + head("PATCH", f"{ROOT}/k", (), body) + body + look)
        shown = [await _next(connection, bodiless=bodiless) for bodiless in (True, False, True)]
    assert [answer.status for answer in shown] == [204, 204, 204]
    assert [shown[at].headers["x-sn-expiration"] for at in (0, 2)] == ["ttl:1h", "ttl:1d"]


async def _next(connection: Connection, *, bodiless: bool) -> Response:
    return await connection.response(bodiless=bodiless)


# The document alone


async def test_every_form_of_a_target() -> None:
    """What can be said, in each of its forms, has one meaning."""
    for body, target in (
        (_document(after="1h 30min", from_="creation"), AfterCreation(5_400)),
        (_document(from_="now", after="2days"), AfterNow(172_800)),
        (_document(after="1ms", from_="now"), AfterNow(1)),
        (_document(at="1970-01-01T00:00:01.5Z"), AtInstant(1_500_000)),
        (_document(at="1970-01-01T01:00:00+01:00"), AtInstant(0)),
        (b' { "extend_expiry" : { "\\u0061t" : "1970-01-01T00:00:00Z" } } ', AtInstant(0)),
    ):
        assert parse_extension(body, LIMITS) == target


_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["extend_expiry", "at", "after", "from", "x"]), inner, max_size=4),
    ),
    max_leaves=12,
)


def _is_extension(document: Any) -> bool:
    """Whether it has the form of an extension, by the protocol's text; what its strings say aside."""
    if not isinstance(document, dict) or set(document) != {"extend_expiry"}:
        return False
    extension = document["extend_expiry"]
    if not isinstance(extension, dict):
        return False
    if set(extension) == {"at"}:
        return isinstance(extension["at"], str)
    return (
        set(extension) == {"after", "from"}
        and isinstance(extension["after"], str)
        and (extension["from"] in ("now", "creation"))
    )


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(document=_JSON, extension=_JSON, wrap=st.booleans())
async def test_any_json_is_an_extension_or_a_mistake(document: Any, extension: Any, wrap: bool) -> None:
    """Nothing but a target within bounds, or `InvalidRequest`; and a target only for what has the form of one."""
    said = {"extend_expiry": extension} if wrap else document
    limits = replace(LIMITS, duration_seconds_max=1_000)
    target = None
    with suppress(InvalidRequest):
        target = parse_extension(json.dumps(said).encode(), limits)
    assert target is None or _is_extension(said)
    assert target is None or isinstance(target, AtInstant) or 0 <= target.seconds <= 1_000


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 60), st.integers(0, 60))
async def test_any_bytes_are_an_extension_or_a_mistake(noise: bytes, start: int, length: int) -> None:
    """Also a document in which some bytes were replaced by others."""
    whole = _document(after="1h 30min", from_="creation")
    for raw in (noise, whole[:start] + noise + whole[start + length :]):
        with suppress(InvalidRequest):
            parse_extension(raw, LIMITS)
