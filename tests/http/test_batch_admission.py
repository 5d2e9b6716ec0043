"""Who may do what in a batch, and how much: every operation is admitted by itself."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import structlog
from prometheus_client import REGISTRY

from tests.http.batches import (
    BATCH,
    CONTENT_TYPE,
    END,
    OPENING,
    Answer,
    batch,
    begin,
    part,
    read_answer,
    send_batch,
    send_body,
)
from tests.http.credentials import ALL, LEEWAY_SECONDS, Signer, StandingClock, access_of
from tests.http.harness import ROOT, Running, running
from tierstore.admission.conditions import Condition
from tierstore.admission.killswitches import Killswitches
from tierstore.admission.rate_limits import Bandwidth, Throughput, ThroughputRule, rate_of
from tierstore.admission.rules import Rules
from tierstore.admission.usecases import UsecasePolicies, UsecasePolicy
from tierstore.limits import KIB
from tierstore.testing.clock import ManualClock

pytestmark = pytest.mark.asyncio(loop_scope="module")

SIGNER = Signer("known")
STRANGER = Signer("stranger")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def guarded() -> AsyncIterator[Running]:
    """A server that enforces authentication, at a time that stands still."""
    async with running(access=access_of(SIGNER), clock=StandingClock()) as up:
        yield up


def _as(token: str) -> list[tuple[str, str]]:
    return [("x-os-auth", token)]


NEEDS = {"get": "object.read", "head": "object.read", "insert": "object.write", "delete": "object.delete"}
DONE = {"get": 200, "head": 204, "insert": 201, "delete": 204}


@pytest.mark.parametrize("permissions", [(), ALL, *[(one,) for one in ALL], ALL[:2], ALL[1:]])
async def test_each_kind_needs_its_permission(guarded: Running, permissions: tuple[str, ...]) -> None:
    """What the token permits is done, all else is 403 for its operation, and changes nothing."""
    put = await send_batch(
        guarded, part("insert", "there", (), b"there"), part("insert", "kept", (), b"kept"), headers=_as(SIGNER.token())
    )
    assert put.statuses == [201, 201]
    answer = await send_batch(
        guarded,
        *[part(kind, "there", (), b"there" if kind == "insert" else b"") for kind in NEEDS],
        headers=_as(SIGNER.token(permissions=list(permissions))),
    )
    assert answer.whole
    for index, (kind, needed) in enumerate(NEEDS.items()):
        result = answer.results[index]
        if needed not in permissions:
            assert result.status == 403
            assert needed in result.detail
        else:
            assert result.status in {DONE[kind], 404}
    gone = "object.delete" in permissions and "object.write" not in permissions
    there = await guarded.request("GET", f"{ROOT}/there", _as(SIGNER.token()))
    assert there.status in ({404} if gone else {200, 404} if "object.delete" in permissions else {200})


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 400),
        (_as("nonsense"), 400),
        (_as(STRANGER.token()), 401),
        (_as(SIGNER.token(exp=1)), 401),
        (_as(SIGNER.token(res={"os:usecase": "other", "org": "1"})), 403),
        (_as(SIGNER.token(res={"os:usecase": "testing", "org": "2"})), 403),
    ],
)
async def test_a_batch_needs_a_token(guarded: Running, headers: list[tuple[str, str]], status: int) -> None:
    """Without one for its usecase and scopes, a batch is refused as a whole, and nothing is asked of a store."""
    before = len(guarded.script.trace)
    refused = await send_body(guarded, batch(part("insert", "k", (), b"x")), [CONTENT_TYPE, *headers])
    assert refused.status == status
    assert len(guarded.script.trace) == before


async def test_a_presigned_batch_is_refused(guarded: Running) -> None:
    """Signatures in an address are for reads of one object."""
    target = SIGNER.presigned(BATCH, method="POST")
    assert (await guarded.request("POST", target, [CONTENT_TYPE], END)).status == 403


async def test_operations_are_recorded_with_who_asked(guarded: Running) -> None:
    """Each has the id of the key that spoke for the caller, the refused ones too."""
    with structlog.testing.capture_logs() as lines:
        await send_batch(
            guarded,
            part("insert", "k", (), b"x"),
            part("delete", "k"),
            headers=_as(SIGNER.token(permissions=["object.write"])),
        )
    told = {line["index"]: line for line in lines if line["event"] == "batch operation"}
    assert {index: (line["kid"], line["operation"], line["status"]) for index, line in told.items()} == {
        0: ("known", "insert", 201),
        1: ("known", "delete", 403),
    }


async def test_a_batch_counts_as_many_requests_as_it_has_operations() -> None:
    """Operations beyond the throughput limit are 429 with the time to wait, and the others are done."""
    clock = ManualClock()
    async with running(rules=Rules(throughput=Throughput(all_requests=rate_of(0.5, 5))), clock=clock) as server:
        answer = await send_batch(server, *[part("insert", f"rate/{number}", (), b"x") for number in range(8)])
        assert answer.whole
        assert sorted(answer.statuses) == [201] * 5 + [429] * 3
        refused = next(result for result in answer.results.values() if result.status == 429)
        assert refused.headers["retry-after"] == "2"
        assert "throughput limit" in refused.detail
        assert (await send_body(server, END)).status == 429
        clock.advance(2)
        assert (await send_batch(server, part("head", "none"))).statuses == [404]  # the batch and its operation: one
        assert (await server.request("HEAD", f"{ROOT}/none")).status == 429
        clock.advance(2)
        assert (await send_batch(server)).whole  # one without operations counts as well
        assert (await server.request("HEAD", f"{ROOT}/none")).status == 429


async def test_rules_of_a_service_mean_its_batches() -> None:
    """The calling service is known for every operation."""
    rule = ThroughputRule(condition=Condition(service="writer"), rate=rate_of(0.001, 2))
    async with running(rules=Rules(throughput=Throughput(rules=(rule,)))) as server:
        operations = [part("insert", f"service/{number}", (), b"x") for number in range(4)]
        other = await send_batch(server, *operations)
        assert other.statuses == [201] * 4
        writer = await send_batch(server, *operations, headers=[("x-downstream-service", "writer-0")])
        assert sorted(writer.statuses) == [201, 201, 429, 429]


async def test_bandwidth_is_a_debt_for_operations_too() -> None:
    """Payloads in and out count; operations with a payload that come while there is debt are 429, the others go on."""
    clock = ManualClock()
    async with running(rules=Rules(bandwidth=Bandwidth(each_scope=100 * KIB)), clock=clock) as server:
        put = await send_batch(server, part("insert", "large", (), bytes(200 * KIB)))
        assert put.statuses == [201]
        answer = await send_batch(
            server, part("get", "large"), part("insert", "k", (), b"x"), part("head", "large"), part("delete", "k")
        )
        assert answer.statuses == [429, 429, 204, 204]
        assert "bandwidth limit of these scopes" in answer.results[0].detail
        clock.advance(1)
        assert (await send_batch(server, part("get", "large"))).statuses == [200]
        assert (await send_batch(server, part("get", "large"))).statuses == [429]


async def test_policies_hold_for_every_insert() -> None:
    """An expiration that the usecase may not have is 400 for its operation."""
    before = REGISTRY.get_sample_value("tierstore_policy_violations_total") or 0
    policy = UsecasePolicy(expirations=("ttl",), ttl_seconds_max=3600)
    async with running(rules=Rules(policies=UsecasePolicies({"testing": policy}))) as server:
        answer = await send_batch(
            server,
            part("insert", "policy/0", (), b"x"),
            part("insert", "policy/1", [("x-sn-expiration", "ttl:1h")], b"x"),
            part("insert", "policy/2", [("x-sn-expiration", "ttl:61m")], b"x"),
            part("insert", "policy/3", [("x-sn-expiration", "tti:1m")], b"x"),
            part("get", "policy/0"),
        )
        assert answer.statuses == [400, 201, 400, 400, 404]
        assert "usecase testing" in answer.results[0].detail
    assert REGISTRY.get_sample_value("tierstore_policy_violations_total") == before + 3


async def test_a_killswitch_stops_a_batch_that_is_under_way() -> None:
    """What has begun goes on; operations that would begin afterwards are 403, and so are later batches as a whole."""
    async with running() as server, server.connect() as connection:
        begun = await begin(connection, part("insert", "switch/0", (), b"x"))
        server.controls.replace(Rules(killswitches=Killswitches((Condition(usecase="testing"),))))
        await begun.send(part("insert", "switch/1", (), b"x") + part("get", "switch/0") + END)
        await begun.end()
        answer: Answer = read_answer(await begun.answered())
        assert answer.whole
        assert answer.statuses == [201, 403, 403]
        assert "stopped by the operator" in answer.results[1].detail
        assert (await send_body(server, END)).status == 403
        server.controls.replace(Rules())
        assert (await server.request("GET", f"{ROOT}/switch/1")).status == 404


async def test_a_token_may_expire_during_a_batch() -> None:
    """What begins after that, or when its key has gone, is refused: a long batch makes no token valid for longer."""
    clock = StandingClock()
    async with running(access=access_of(SIGNER), clock=clock) as server, server.connect() as connection:
        begun = await begin(connection, part("insert", "expiry/0", (), b"x"), headers=_as(SIGNER.token()))
        clock.seconds += 60 + LEEWAY_SECONDS + 1
        await begun.send(part("insert", "expiry/1", (), b"x") + OPENING)
        begun.opened = True
        await begun.results(2)
        clock.seconds -= 60 + LEEWAY_SECONDS + 1
        await begun.send(part("get", "expiry/1") + OPENING)
        begun.opened = True
        await begun.results(3)
        server.gate.replace(access_of(STRANGER), Rules())
        await begun.send(part("get", "expiry/0") + END)
        await begun.end()
        answer = read_answer(await begun.answered())
        assert answer.statuses == [201, 401, 404, 401]


async def test_a_batch_reaches_its_own_scopes_only(guarded: Running) -> None:
    """A key is a key: nothing in it leads to another scope's or usecase's object."""
    other = BATCH.replace("org=1", "org=2")
    everywhere = _as(SIGNER.token(res={"os:usecase": "testing", "org": "*"}))
    put = read_answer(
        await guarded.request("POST", other, [CONTENT_TYPE, *everywhere], batch(part("insert", "theirs", (), b"x")))
    )
    assert put.statuses == [201]
    keys = ["theirs", "../org=2/theirs", "/v1/objects/testing/org=2/theirs", "..%2F..%2Forg.2/objects/theirs"]
    answer = await send_batch(guarded, *[part("get", key) for key in keys], headers=_as(SIGNER.token()))
    assert answer.statuses == [404] * len(keys)
    assert OPENING not in answer.response.body
