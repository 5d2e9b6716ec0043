"""What an operator sets on requests, on the wire: killswitches, policies, rates, and turns on the stores."""

import asyncio
from dataclasses import replace
from functools import partial

import pytest
import structlog
from prometheus_client import REGISTRY

from tests.http.harness import LIMITS, ROOT, Response, Running, eventually, head, running
from tierstore import telemetry
from tierstore.admission.conditions import Condition
from tierstore.admission.killswitches import Killswitches
from tierstore.admission.rate_limits import Bandwidth, Throughput, ThroughputRule, rate_of
from tierstore.admission.rules import Rules
from tierstore.admission.usecases import UsecasePolicies, UsecasePolicy
from tierstore.limits import KIB
from tierstore.testing.clock import ManualClock
from tierstore.testing.faults import Pause
from tierstore.types.ids import Scope

ORG = Scope("org", "1")
MULTIPART = ROOT.replace("objects", "objects:multipart")
PARTS = ROOT.replace("objects", "objects:multipart:parts")
COMPLETE = ROOT.replace("objects", "objects:multipart:complete")

ROUTES = [
    ("POST", f"{ROOT}/"),
    ("PUT", f"{ROOT}/key"),
    ("GET", f"{ROOT}/key"),
    ("HEAD", f"{ROOT}/key"),
    ("DELETE", f"{ROOT}/key"),
    ("PATCH", f"{ROOT}/key"),
    ("POST", ROOT.replace("objects", "objects:batch") + "/"),
    ("POST", f"{MULTIPART}/"),
    ("PUT", f"{MULTIPART}/key"),
    ("DELETE", f"{MULTIPART}/key?upload_id=x"),
    ("PUT", f"{PARTS}/key?upload_id=x&part_number=1"),
    ("GET", f"{PARTS}/key?upload_id=x"),
    ("POST", f"{COMPLETE}/key?upload_id=x"),
    ("POST", f"{ROOT}/?upload_type=resumable"),
    ("PUT", f"{ROOT}/key?upload_type=resumable"),
    ("PUT", f"{ROOT}/key?session=x"),
    ("DELETE", f"{ROOT}/key?session=x"),
]
INSERTS = [("POST", f"{ROOT}/"), ("PUT", f"{ROOT}/key"), ("POST", f"{MULTIPART}/"), ("PUT", f"{MULTIPART}/key")]


async def _ask(server: Running, method: str, target: str, *headers: tuple[str, str]) -> Response:
    body = b"{}" if method in {"POST", "PUT", "PATCH"} else None
    return await server.request(method, target, headers, body)


async def _internal_routes_answer(server: Running) -> None:
    for path in ("/health", "/ready", "/metrics", "/keda"):
        assert (await server.request("GET", path)).status == 200


@pytest.mark.parametrize(("method", "target"), ROUTES)
async def test_a_killswitch_stops_every_route(method: str, target: str) -> None:
    """Whatever is asked for, a request that a killswitch means is 403; the same one for another tenant is not."""
    async with running(
        rules=Rules(killswitches=Killswitches((Condition(usecase="testing", scopes=(ORG,)),)))
    ) as server:
        assert (await _ask(server, method, target)).status == 403
        assert (await _ask(server, method, target.replace("org=1", "org=2"))).status != 403


async def test_a_killswitch_knows_services_without_their_pods() -> None:
    """The pattern is for the service, whichever of its pods calls; who names none is not meant."""
    async with running(rules=Rules(killswitches=Killswitches((Condition(service="relay"),)))) as server:
        for name in ("relay", "relay-7d9f8b6c5d-x2k9z", "relay-12"):
            refused = await _ask(server, "PUT", f"{ROOT}/key", ("x-downstream-service", name))
            assert refused.status == 403
            assert "stopped by the operator" in refused.detail
        for name in ("relay-eu", "other", "r\xe9lay"):
            assert (await _ask(server, "PUT", f"{ROOT}/key", ("x-downstream-service", name))).status == 200
        assert (await _ask(server, "PUT", f"{ROOT}/key")).status == 200
        await _internal_routes_answer(server)


@pytest.mark.parametrize(("method", "target"), INSERTS)
async def test_policies_hold_on_every_way_to_insert(method: str, target: str) -> None:
    """A kind that is not allowed, said or by default, and a duration that is too long, are 400 wherever one inserts."""
    policy = UsecasePolicy(expirations=("ttl",), ttl_seconds_max=3600)
    async with running(rules=Rules(policies=UsecasePolicies({"testing": policy}))) as server:
        for refused in ((), (("x-sn-expiration", "tti:1m"),), (("x-sn-expiration", "ttl:61m"),)):
            answer = await _ask(server, method, target, *refused)
            assert answer.status == 400
            assert "testing" in answer.detail
        assert (await server.request("GET", f"{ROOT}/key")).status == 404
        assert (await _ask(server, method, target, ("x-sn-expiration", "ttl:60m"))).status in {200, 201}
        assert (await _ask(server, method, target.replace("testing", "others"))).status in {200, 201}


@pytest.mark.parametrize(("method", "target"), ROUTES)
async def test_the_throughput_limit_holds_on_every_route(method: str, target: str) -> None:
    """Each request for objects counts, whatever it is; refused ones are 429 and say when there is room again."""
    clock = ManualClock()
    async with running(rules=Rules(throughput=Throughput(all_requests=rate_of(0.5, 3))), clock=clock) as server:
        admitted = [(await _ask(server, method, target)).status for _ in range(3)]
        assert 429 not in admitted
        refused = await _ask(server, method, target)
        assert (refused.status, refused.headers["retry-after"]) == (429, "2")
        if method != "HEAD":
            assert refused.detail == "the throughput limit of this server is reached; try again in 2 s"
        await _internal_routes_answer(server)
        clock.advance(2)
        assert (await _ask(server, method, target)).status == admitted[0]
        assert (await _ask(server, method, target)).status == 429


async def test_what_is_refused_has_done_nothing() -> None:
    """An object whose write or delete was refused is as it was."""
    rule = ThroughputRule(condition=Condition(service="writer"), rate=rate_of(0.001, 1))
    async with running(rules=Rules(throughput=Throughput(rules=(rule,)))) as server:
        writer = ("x-downstream-service", "writer-0")
        assert (await server.request("PUT", f"{ROOT}/key", [writer], b"first")).status == 200
        assert (await server.request("PUT", f"{ROOT}/key", [writer], b"second")).status == 429
        assert (await server.request("DELETE", f"{ROOT}/key", [writer])).status == 429
        assert (await server.request("GET", f"{ROOT}/key")).body == b"first"


async def test_bandwidth_is_a_debt_of_payloads() -> None:
    """Bodies and payloads count, in both tiers; who comes while there is debt is 429, unless it has no payload."""
    clock = ManualClock()
    large = b"x" * (200 * KIB)
    async with running(rules=Rules(bandwidth=Bandwidth(each_scope=100 * KIB)), clock=clock) as server:
        assert (await server.request("PUT", f"{ROOT}/large", (), large)).status == 200
        for method, target, body in (
            ("GET", f"{ROOT}/large", None),
            ("PUT", f"{ROOT}/other", b"x"),
            ("POST", f"{ROOT}/", b"x"),
        ):
            refused = await server.request(method, target, (), body)
            assert (refused.status, refused.headers["retry-after"]) == (429, "1")
            assert refused.detail == "the bandwidth limit of these scopes is reached; try again in 1 s"
        assert (await server.request("HEAD", f"{ROOT}/large")).status == 204
        assert (await server.request("PUT", f"{ROOT.replace('org=1', 'org=2')}/other", (), b"x")).status == 200
        clock.advance(1)
        assert (await server.request("GET", f"{ROOT}/large")).body == large
        assert (await server.request("GET", f"{ROOT}/large")).headers["retry-after"] == "2"
        clock.advance(2)
        begun = await server.request("PUT", f"{MULTIPART}/upload")
        upload = begun.json["upload_id"]
        part = f"{PARTS}/upload?upload_id={upload}&part_number="
        assert (await server.request("PUT", part + "1", (), large)).status == 200
        assert (await server.request("PUT", part + "2", (), b"x")).status == 429
        assert (await server.request("GET", f"{PARTS}/upload?upload_id={upload}")).status == 200


async def test_report_only_lets_all_through_and_counts() -> None:
    """Limits on trial change no answer, and the metrics say what they would refuse."""
    labels = {"kind": "throughput", "limit": "usecase", "outcome": "reported"}
    before = REGISTRY.get_sample_value("tierstore_rate_limited_total", labels) or 0
    throughput = Throughput(each_usecase=rate_of(0.001, 2), report_only=True)
    async with running(rules=Rules(throughput=throughput)) as server:
        assert {(await _ask(server, "PUT", f"{ROOT}/key")).status for _ in range(6)} == {200}
    assert REGISTRY.get_sample_value("tierstore_rate_limited_total", labels) == before + 4


async def test_rules_change_under_a_running_server() -> None:
    """New rules count from the next request on, on connections that are open too."""
    async with running() as server, server.connect() as connection:
        assert (await connection.request("PUT", f"{ROOT}/key", (), b"x")).status == 200
        server.controls.replace(Rules(killswitches=Killswitches((Condition(usecase="testing"),))))
        assert (await connection.request("GET", f"{ROOT}/key")).status == 403
        server.controls.replace(Rules())
        assert (await connection.request("GET", f"{ROOT}/key")).status == 200


@pytest.fixture(autouse=True)
def _gauges_begin_at_nothing() -> None:
    """The metrics are the process's, and other tests leave operations that never end."""
    telemetry.operations_in_flight.set(0)
    telemetry.operations_waiting.set(0)


BUSY = replace(LIMITS, operations_max=1, operations_queue_max=1, operation_wait_seconds_max=0.2)


async def test_busy_stores_queue_and_then_refuse() -> None:
    """Beyond those under way one waits its turn; the next is 429 at once, and who has waited too long is 429 too."""
    async with running(BUSY) as server:
        pause = Pause()
        server.script.at("high_volume.head", pause)
        first = asyncio.create_task(server.request("HEAD", f"{ROOT}/one"))
        await pause.reached.wait()
        second = asyncio.create_task(server.request("PUT", f"{ROOT}/two", (), b"x"))
        await eventually("one waits", lambda: REGISTRY.get_sample_value("tierstore_operations_waiting") == 1)
        full = await server.request("GET", f"{ROOT}/three")
        assert (full.status, full.headers["retry-after"]) == (429, "1")
        assert "wait for the stores" in full.detail
        load = await server.request("GET", "/keda")
        assert b"tierstore_load_operations 1.0" in load.body
        assert b"tierstore_load_queue 1.0" in load.body
        assert b"tierstore_load 1.0" in load.body
        late = await second
        assert (late.status, "too long" in late.detail) == (429, True)
        pause.release.set()
        assert (await first).status == 404
        assert (await server.request("PUT", f"{ROOT}/two", (), b"x")).status == 200
        assert b"tierstore_load_operations 0.0" in (await server.request("GET", "/keda")).body


@pytest.mark.parametrize(("method", "status"), [("PUT", 200), ("DELETE", 404)])
async def test_who_leaves_while_waiting_for_a_turn(method: str, status: int) -> None:
    """An insert stores nothing, for its body does not come; a delete, which has all it needs, is carried out."""
    async with running(replace(BUSY, operation_wait_seconds_max=5)) as server:
        await server.request("PUT", f"{ROOT}/key", (), b"before")
        pause = Pause()
        server.script.at("high_volume.head", pause)
        first = asyncio.create_task(server.request("HEAD", f"{ROOT}/other"))
        await pause.reached.wait()
        async with server.connect() as leaving:
            announced = [("content-length", "3")] if method == "PUT" else []
            await leaving.send(head(method, f"{ROOT}/key", announced))
            await eventually("it waits", lambda: REGISTRY.get_sample_value("tierstore_operations_waiting") == 1)
            leaving.abort()
        with structlog.testing.capture_logs() as lines:
            pause.release.set()
            await first
            await eventually("it has ended", lambda: any(line.get("method") == method for line in lines))
        found = await server.request("GET", f"{ROOT}/key")
        assert (found.status, found.body == b"before") == (status, status == 200)


def _all_wait_for_clients(server: Running, first: bool) -> bool:
    """Whether the first or both of two writes are under way, and none has a turn."""
    return len(server.mutations) == (1 if first else 2) and not (
        REGISTRY.get_sample_value("tierstore_operations_in_flight")
    )


@pytest.mark.parametrize("size", [100, LIMITS.inline_bytes_max + 100])
async def test_slow_uploads_take_nobodys_turn(size: int) -> None:
    """A body that does not come holds no turn, be it small or large; when it comes, its write goes on."""
    async with running(BUSY) as server:
        async with server.connect() as slow, server.connect() as slower:
            for connection in (slow, slower):
                head = f"PUT {ROOT}/slow HTTP/1.1\r\nhost: x\r\ncontent-length: {size}\r\n\r\n"
                await connection.send(head.encode() + b"x" * (size - 1))
                await eventually("it waits for its client", partial(_all_wait_for_clients, server, connection is slow))
            for _ in range(5):
                assert (await server.request("PUT", f"{ROOT}/quick", (), b"x")).status == 200
            for connection in (slow, slower):
                await connection.send(b"x")
                assert (await connection.response()).status == 200
        assert (await server.request("GET", f"{ROOT}/slow")).body == b"x" * size


async def test_completions_leave_turns_to_others() -> None:
    """Completions of uploads have their share and no more: while they take long, single operations go on."""
    async with running(replace(BUSY, operations_max=2)) as server:
        targets = []
        for name in ("one", "two"):
            upload = (await server.request("PUT", f"{MULTIPART}/{name}")).json["upload_id"]
            query = f"{name}?upload_id={upload}"
            part = await server.request("PUT", f"{PARTS}/{query}&part_number=1", (), b"part")
            body = b'{"parts": [{"part_number": 1, "etag": "%s"}]}' % str(part.json["etag"]).encode()
            targets.append((f"{COMPLETE}/{query}", body))
        pause = Pause()
        server.script.at("long_term.complete", pause)
        first = asyncio.create_task(server.request("POST", targets[0][0], (), targets[0][1]))
        await pause.reached.wait()
        second = await server.request("POST", targets[1][0], (), targets[1][1])
        assert (second.status, second.body.strip()[:10]) == (200, b'{"error":{')
        assert b"ServiceUnavailable" in second.body
        for _ in range(5):
            assert (await server.request("PUT", f"{ROOT}/quick", (), b"x")).status == 200
        pause.release.set()
        assert (await first).json == {"key": "one"}
        assert (await server.request("POST", targets[1][0], (), targets[1][1])).json == {"key": "two"}
