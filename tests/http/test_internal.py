"""Health, readiness and metrics."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tierstore
from tests.http.harness import LIMITS, ROOT, Running, running
from tierstore.clock import SystemClock
from tierstore.errors import Broken, Unavailable
from tierstore.testing.faults import FailBefore, Pause

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def scrape(server: Running) -> dict[str, float]:
    """What `/metrics` shows, by name and labels."""
    got = await server.request("GET", "/metrics")
    assert got.status == 200
    assert got.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = [line for line in got.body.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


async def test_health(server: Running) -> None:
    """A process whose loop turns is healthy, whatever its stores do, and the answer carries the request's id."""
    server.script.at("high_volume.check", FailBefore(Unavailable("away")))
    for method in ("GET", "HEAD"):
        got = await server.request(method, "/health", [("x-request-id", "probe-1")])
        assert (got.status, got.headers["x-request-id"]) == (200, "probe-1")
    assert (await server.request("GET", "/ready")).status == 503


@pytest.mark.parametrize("store", ["high_volume", "long_term", "changelog"])
async def test_readiness_asks_every_store(server: Running, store: str) -> None:
    """A store that does not answer makes the process not ready, until it answers again."""
    server.script.at(f"{store}.check", FailBefore(Unavailable("the store is away")))
    refused = await server.request("GET", "/ready")
    assert (refused.status, refused.detail) == (503, "the store is away")
    assert refused.headers["retry-after"] == "1"
    assert (await server.request("GET", "/ready")).status == 200


async def test_readiness_keeps_internals_to_itself(server: Running) -> None:
    """A fault of ours makes the process not ready, and its text stays in the log."""
    server.script.at("long_term.check", FailBefore(Broken("secret")))
    refused = await server.request("GET", "/ready")
    assert refused.status == 503
    assert "secret" not in refused.detail


async def test_a_hanging_store_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe and a scrape are answered although a store hangs."""
    monkeypatch.setattr("tierstore.http.internal._ANSWER_SECONDS_MAX", 0.05)
    async with running() as server:
        server.script.at("high_volume.check", Pause())
        refused = await server.request("GET", "/ready")
        assert refused.status == 503
        assert "has not answered" in refused.detail
        server.script.at("changelog.backlog", Pause())
        assert "tierstore_changelog_entries" not in await scrape(server)


async def test_a_draining_server_is_not_ready_and_still_serves(server: Running) -> None:
    """While the process drains, no new clients should come, and those that are there are served."""
    server.draining = True
    try:
        assert (await server.request("GET", "/ready")).status == 503
        assert (await server.request("GET", "/health")).status == 200
        assert (await server.request("PUT", f"{ROOT}/draining", (), b"payload")).status == 200
    finally:
        server.draining = False


async def test_requests_are_counted(server: Running) -> None:
    """Requests, times and sizes are kept by operation and tier; internal routes are not counted."""
    before = await scrape(server)
    small, large = b"s" * 100, b"l" * (LIMITS.inline_bytes_max + 100)
    for name, payload in (("small", small), ("large", large)):
        await server.request("PUT", f"{ROOT}/counted/{name}", (), payload)
        await server.request("GET", f"{ROOT}/counted/{name}")
        await server.request("HEAD", f"{ROOT}/counted/{name}")
    await server.request("GET", f"{ROOT}/counted/small", [("range", "bytes=0-9")])
    await server.request("GET", f"{ROOT}/counted/absent")
    await server.request("DELETE", f"{ROOT}/counted/large")
    await server.request("GET", "/unknown")
    after = await scrape(server)

    def grown(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    for tier, payload, part in (("high_volume", small, 10), ("long_term", large, 0)):
        assert grown(f'tierstore_requests_total{{operation="put",status="200",tier="{tier}"}}') == 1
        assert grown(f'tierstore_requests_total{{operation="get",status="200",tier="{tier}"}}') == 1
        assert grown(f'tierstore_requests_total{{operation="head",status="204",tier="{tier}"}}') == 1
        assert grown(f'tierstore_object_bytes_sum{{operation="put",tier="{tier}"}}') == len(payload)
        assert grown(f'tierstore_object_bytes_sum{{operation="get",tier="{tier}"}}') == len(payload) + part
        assert grown(f'tierstore_request_seconds_count{{operation="put",tier="{tier}"}}') == 1
    assert grown('tierstore_requests_total{operation="get",status="206",tier="high_volume"}') == 1
    assert grown('tierstore_requests_total{operation="get",status="404",tier="none"}') == 1
    assert grown('tierstore_requests_total{operation="delete",status="204",tier="none"}') == 1
    assert grown('tierstore_requests_total{operation="unknown",status="404",tier="none"}') == 1
    total = sum(grown(name) for name in after if name.startswith("tierstore_requests_total{"))
    assert total == 10
    assert not [name for name in after if 'operation="internal"' in name]


async def test_the_backlog_is_looked_up_at_each_scrape() -> None:
    """The change log's entries and the age of the oldest are shown as they are now; a failing log fails no scrape."""
    async with running() as server:
        samples = await scrape(server)
        assert samples["tierstore_changelog_entries"] == 0
        assert samples["tierstore_changelog_oldest_seconds"] == 0
        assert (await server.request("GET", f"{ROOT}/absent")).status == 404
        pause = Pause()
        server.script.at("long_term.put", pause)
        async with server.connect() as connection:
            length = LIMITS.inline_bytes_max + 1
            await connection.send(
                f"PUT {ROOT}/backlog HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n".encode() + b"x" * length
            )
            await pause.reached.wait()
            await SystemClock().sleep(0.02)
            samples = await scrape(server)
            assert samples["tierstore_changelog_entries"] == 1
            # Less than it slept: that went by another clock.
            assert 0.01 <= samples["tierstore_changelog_oldest_seconds"] < 60
            server.script.at("changelog.backlog", FailBefore(Unavailable("away")))
            samples = await scrape(server)
            assert "tierstore_changelog_entries" not in samples
            assert [name for name in samples if name.startswith("tierstore_requests_total")]
            pause.release.set()
            assert (await connection.response()).status == 200


async def test_build_info(server: Running) -> None:
    """The version that runs is a metric."""
    [name] = [name for name in await scrape(server) if name.startswith("tierstore_build_info")]
    assert f'version="{tierstore.__version__}"' in name


async def test_the_values_of_all_workers_are_added_up(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a directory for metrics, whichever process is scraped shows the sum of what all of them have counted."""
    count = "from tierstore import telemetry; telemetry.requests.labels('get', 'none', '404').inc(21)"
    for _ in range(2):
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
        subprocess.run([sys.executable, "-c", count], env=environment, check=True)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    samples = await scrape(server)
    assert samples['tierstore_requests_total{operation="get",status="404",tier="none"}'] == 42
    assert "tierstore_changelog_entries" in samples


async def test_a_probe_with_a_long_body_is_not_taken_in(server: Running) -> None:
    """Internal routes read no body: a connection with a long one to come is closed after the answer."""
    async with server.connect() as connection:
        await connection.send(b"GET /health HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000000\r\n\r\n")
        answer = await connection.response()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await connection.closed_by_server()
