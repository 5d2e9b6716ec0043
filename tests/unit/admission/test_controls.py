"""Laws of `tierstore.admission.controls`: what callers are told, what is counted, and how payloads are followed."""

from collections.abc import AsyncIterator

import pytest
from prometheus_client import REGISTRY

from tests.unit.tiering.world import BytesBody, open_world, payload_of
from tierstore.admission.buckets import BucketTable
from tierstore.admission.conditions import Condition
from tierstore.admission.controls import Controls
from tierstore.admission.killswitches import Killswitches
from tierstore.admission.rate_limits import Bandwidth, RateLimiter, Throughput, rate_of
from tierstore.admission.rules import Rules
from tierstore.admission.usecases import UsecasePolicies, UsecasePolicy
from tierstore.errors import Forbidden, InvalidRequest, RateLimited
from tierstore.testing.clock import ManualClock
from tierstore.types.ids import ObjectId, Scope
from tierstore.types.metadata import MANUAL, Metadata, TimeToLive
from tierstore.types.objects import Tier

USECASE, SCOPES = "attachments", (Scope("org", "1"),)


def _controls(rules: Rules) -> tuple[Controls, ManualClock]:
    clock = ManualClock()
    return Controls(rules, RateLimiter(BucketTable.private(), clock)), clock


def _counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"tierstore_{name}_total", labels) or 0.0


async def _read(body: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in body])


def test_nothing_set_lets_everything_through() -> None:
    """The default rules refuse nothing and follow nothing."""
    controls, _ = _controls(Rules())
    controls.check_killswitches(USECASE, SCOPES, None)
    controls.take_request(USECASE, SCOPES, None)
    controls.check_policy(USECASE, MANUAL)
    body = BytesBody(b"payload")
    assert controls.transfer(USECASE, SCOPES).body(body) is body
    assert controls.requests_used() == controls.bytes_used() == 0


def test_refusals_are_counted() -> None:
    """A killswitch and a policy refuse in their own ways, and each refusal can be seen."""
    controls, _ = _controls(
        Rules(
            killswitches=Killswitches((Condition(service="relay"),)),
            policies=UsecasePolicies(of_others=UsecasePolicy(expirations=("ttl",))),
        )
    )
    killed, violations = _counted("killswitched_requests"), _counted("policy_violations")
    with pytest.raises(Forbidden):
        controls.check_killswitches(USECASE, SCOPES, "relay")
    controls.check_killswitches(USECASE, SCOPES, "other")
    with pytest.raises(InvalidRequest):
        controls.check_policy(USECASE, MANUAL)
    controls.check_policy(USECASE, TimeToLive(1))
    assert _counted("killswitched_requests") == killed + 1
    assert _counted("policy_violations") == violations + 1


def test_a_limited_caller_is_told_when_to_come_again() -> None:
    """In whole seconds, at least one, after which there is room."""
    controls, clock = _controls(Rules(throughput=Throughput(all_requests=rate_of(0.3, 1))))
    refused = _counted("rate_limited", kind="throughput", limit="global", outcome="refused")
    controls.take_request(USECASE, SCOPES, None)
    with pytest.raises(
        RateLimited, match="the throughput limit of this server is reached; try again in 4 s"
    ) as limited:
        controls.take_request(USECASE, SCOPES, None)
    assert limited.value.retry_after_seconds == 4
    clock.advance(3.3)
    with pytest.raises(RateLimited) as limited:
        controls.take_request(USECASE, SCOPES, None)
    assert limited.value.retry_after_seconds == 1
    clock.advance(0.1)
    controls.take_request(USECASE, SCOPES, None)
    assert _counted("rate_limited", kind="throughput", limit="global", outcome="refused") == refused + 2


def test_report_only_counts_and_admits() -> None:
    """What would be refused is counted as such, and spoils nothing for what would not be."""
    controls, clock = _controls(
        Rules(
            throughput=Throughput(all_requests=rate_of(10, None), report_only=True),
            bandwidth=Bandwidth(each_scope=1000, report_only=True),
        )
    )
    requests = _counted("rate_limited", kind="throughput", limit="global", outcome="reported")
    transfers = _counted("rate_limited", kind="bandwidth", limit="scope", outcome="reported")
    for _ in range(25):
        controls.take_request(USECASE, SCOPES, None)
    for _ in range(5):
        controls.transfer(USECASE, SCOPES).count(1001)
    assert _counted("rate_limited", kind="throughput", limit="global", outcome="reported") == requests + 15
    assert _counted("rate_limited", kind="bandwidth", limit="scope", outcome="reported") == transfers + 4
    clock.advance(1)
    for _ in range(10):
        controls.take_request(USECASE, SCOPES, None)
    controls.transfer(USECASE, SCOPES)
    assert _counted("rate_limited", kind="throughput", limit="global", outcome="reported") == requests + 15
    assert _counted("rate_limited", kind="bandwidth", limit="scope", outcome="reported") == transfers + 4


def test_rules_are_replaced_as_one() -> None:
    """From the next question on all of them are the new ones, and what is used stays used."""
    controls, _ = _controls(Rules(throughput=Throughput(all_requests=rate_of(10, None))))
    for _ in range(10):
        controls.take_request(USECASE, SCOPES, None)
    controls.replace(Rules(killswitches=Killswitches((Condition(usecase=USECASE),))))
    controls.take_request(USECASE, SCOPES, None)
    with pytest.raises(Forbidden):
        controls.check_killswitches(USECASE, SCOPES, None)
    controls.replace(Rules(throughput=Throughput(all_requests=rate_of(10, None))))
    controls.check_killswitches(USECASE, SCOPES, None)
    assert controls.requests_used() == 1
    with pytest.raises(RateLimited):
        controls.take_request(USECASE, SCOPES, None)


async def test_bodies_are_counted_as_they_come() -> None:
    """A body is the same with its bytes counted, and says as the one below it whether it is whole."""
    controls, _ = _controls(Rules(bandwidth=Bandwidth(all_bytes=1000)))
    body = controls.transfer(USECASE, SCOPES).body(BytesBody(b"x" * 1500))
    assert (body.size, body.complete) == (1500, False)
    assert controls.bytes_used() == 0
    assert await _read(body) == b"x" * 1500
    assert body.complete
    assert controls.bytes_used() == 1.5
    with pytest.raises(RateLimited, match="the bandwidth limit of this server"):
        controls.transfer(USECASE, SCOPES)


@pytest.mark.parametrize(("size", "tier"), [(50, Tier.HIGH_VOLUME), (1500, Tier.LONG_TERM)])
async def test_objects_are_counted_as_they_are_read(size: int, tier: Tier) -> None:
    """On either tier a payload is the same, with its bytes counted."""
    controls, _ = _controls(Rules(bandwidth=Bandwidth(all_bytes=1000)))
    async with open_world() as world:
        object_id = ObjectId(USECASE, SCOPES, "key")
        await world.store.put(object_id, Metadata(), BytesBody(b"x" * size))
        opened = controls.transfer(USECASE, SCOPES).opened(await world.store.get(object_id, None))
        assert opened.tier is tier
        assert controls.bytes_used() == (size / 1000 if tier is Tier.HIGH_VOLUME else 0)
        assert await payload_of(opened) == b"x" * size
        assert controls.bytes_used() == size / 1000


async def test_a_reader_that_stops_has_used_what_it_read() -> None:
    """Closing a stream early counts no more than what has flowed, and closes what is below it."""
    controls, _ = _controls(Rules(bandwidth=Bandwidth(all_bytes=1000)))
    async with open_world() as world:
        object_id = ObjectId(USECASE, SCOPES, "key")
        await world.store.put(object_id, Metadata(), BytesBody(b"x" * 1500))
        opened = controls.transfer(USECASE, SCOPES).opened(await world.store.get(object_id, None))
        assert not isinstance(opened.payload, bytes)
        assert opened.payload.size == 1500
        first = await anext(aiter(opened.payload))
        await opened.payload.aclose()
        assert controls.bytes_used() == len(first) / 1000 < 1.5
