"""Single objects over real sockets: every route and status, and what comes back."""

import random
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest
import yarl

from tests.http.credentials import b64
from tests.http.harness import LIMITS, ROOT, Running, running
from tierstore.http.parsing import object_path
from tierstore.testing.hostile import HOSTILE_IDS, HOSTILE_KEYS
from tierstore.types.ids import ObjectId

pytestmark = pytest.mark.asyncio(loop_scope="module")

SMALL = b"s" * LIMITS.inline_bytes_max
LARGE = random.Random(1).randbytes(LIMITS.inline_bytes_max + 200_000)
PAYLOADS = pytest.mark.parametrize("payload", [b"", b"x", SMALL, SMALL + b"+", LARGE], ids=len)


@PAYLOADS
async def test_put_get_head_delete(server: Running, payload: bytes) -> None:
    """An object lives through its routes: the payload comes back whole, its size in both tiers, and then it is gone."""
    target = f"{ROOT}/life/{len(payload)}"
    async with server.connect() as connection:
        put = await connection.request("PUT", target, [("content-type", "text/plain")], payload)
        assert (put.status, put.json) == (200, {"key": f"life/{len(payload)}"})
        got = await connection.request("GET", target)
        assert (got.status, got.body) == (200, payload)
        assert got.headers["content-length"] == got.headers["x-sn-size"] == str(len(payload))
        assert got.headers["content-type"] == "text/plain"
        assert got.headers["accept-ranges"] == "bytes"
        assert got.headers["x-content-type-options"] == "nosniff"
        looked_at = await connection.request("HEAD", target)
        assert (looked_at.status, looked_at.body) == (204, b"")
        assert "content-length" not in looked_at.headers
        own = {"content-length", "date", "x-request-id"}
        assert {name: value for name, value in got.headers.items() if name not in own} == {
            name: value for name, value in looked_at.headers.items() if name not in own
        }
        for _ in range(2):
            deleted = await connection.request("DELETE", target)
            assert (deleted.status, deleted.body) == (204, b"")
            assert "content-length" not in deleted.headers
        for method in ("GET", "HEAD"):
            assert (await connection.request(method, target)).status == 404
        assert "no such object" in (await connection.request("GET", target)).detail


async def test_a_number_sign_on_the_wire_is_part_of_the_key(server: Running) -> None:
    """A client that forgets to encode ``#`` never reaches another object than it named."""
    assert (await server.request("PUT", f"{ROOT}/number", (), b"plain")).status == 200
    put = await server.request("PUT", f"{ROOT}/number#1?x=#2", (), b"with a sign")
    assert (put.status, put.json) == (200, {"key": "number#1"})
    assert (await server.request("GET", f"{ROOT}/number%231")).body == b"with a sign"
    assert (await server.request("GET", f"{ROOT}/number")).body == b"plain"


@pytest.mark.parametrize("slash", ["", "/"])
async def test_post_makes_a_key(server: Running, slash: str) -> None:
    """A key made by the server is new each time, and its address is the answer's location."""
    keys = set()
    for number in range(3):
        made = await server.request("POST", ROOT + slash, (), b"payload %d" % number)
        assert made.status == 201
        key = str(made.json["key"])
        keys.add(key)
        assert made.headers["location"] == f"{ROOT}/{key}"
        assert (await server.request("GET", made.headers["location"])).body == b"payload %d" % number
    assert len(keys) == 3


async def test_put_replaces_everything(server: Running) -> None:
    """The last insert stands, with its metadata and none of what was there before, in whichever tier."""
    target = f"{ROOT}/replaced"
    for payload in (b"a", LARGE, LARGE[::-1], b"b"):
        await server.request("PUT", target, [("x-snme-only", str(len(payload)))], payload)
        got = await server.request("GET", target)
        assert (got.body, got.headers["x-snme-only"]) == (payload, str(len(payload)))
    await server.request("PUT", target, (), b"c")
    assert "x-snme-only" not in (await server.request("GET", target)).headers


async def test_metadata_round_trip(server: Running) -> None:
    """Every metadata header comes back as it was given, on GET, HEAD and ranges; server-made ones are ignored."""
    given = {
        "content-type": 'text/plain; charset="utf-8"',
        "content-encoding": "zstd",
        "x-sn-expiration": "ttl:1d 1h",
        "x-sn-origin": "10.0.0.1 caf%C3%A9 100%25",
        "x-sn-filename": "b%C3%A4r%0D%0A.txt",
        "x-snme-build-id": "a%00b",
        "x-snme-empty": "",
    }
    ignored = {"x-sn-time-created": "1999-01-01T00:00:00.000000Z", "x-sn-size": "7", "x-other": "1"}
    target = f"{ROOT}/metadata"
    await server.request("PUT", target, [*given.items(), *ignored.items()], b"payload")
    answers = [
        await server.request("GET", target),
        await server.request("HEAD", target),
        await server.request("GET", target, [("range", "bytes=0-1")]),
    ]
    for answer in answers:
        assert {name: answer.headers[name] for name in given} == given
        assert answer.headers["x-sn-size"] == "7"
        assert answer.headers["content-disposition"].startswith('attachment; filename="b_r--.txt"; filename*=')
        assert "x-other" not in answer.headers
        created = datetime.fromisoformat(answer.headers["x-sn-time-created"])
        assert abs(created - datetime.now(UTC)) < timedelta(minutes=1)
        expires = datetime.fromisoformat(answer.headers["x-sn-time-expires"])
        assert expires - created == timedelta(hours=25)


async def test_defaults(server: Running) -> None:
    """An object that was given nothing says only its type and size."""
    await server.request("PUT", f"{ROOT}/plain", (), b"payload")
    headers = (await server.request("GET", f"{ROOT}/plain")).headers
    assert headers["content-type"] == "application/octet-stream"
    assert not {"content-encoding", "x-sn-filename", "x-sn-origin", "x-sn-time-expires"} & set(headers)


async def test_expired_objects_are_gone(server: Running) -> None:
    """An object is not found from its deadline on."""
    await server.request("PUT", f"{ROOT}/expired", [("x-sn-expiration", "ttl:0s")], b"payload")
    for method in ("GET", "HEAD"):
        assert (await server.request(method, f"{ROOT}/expired")).status == 404


def _groups(ids: tuple[ObjectId, ...]) -> list[tuple[ObjectId, ...]]:
    return [ids[start : start + 40] for start in range(0, len(ids), 40)]


@pytest.mark.parametrize("ids", _groups(HOSTILE_IDS), ids=lambda ids: f"from {ids[0].storage_path[:20]!r}")
async def test_hostile_ids(server: Running, ids: tuple[ObjectId, ...]) -> None:
    """Every hostile id names its own object, however it is escaped on the wire, and comes back as it was given."""
    async with server.connect() as connection:
        for object_id in ids:
            put = await connection.request("PUT", object_path(object_id), (), object_id.storage_path.encode())
            assert (put.status, put.json) == (200, {"key": object_id.key})
        for object_id in ids:
            prefix, _, _ = object_path(ObjectId(object_id.usecase, object_id.scopes, "k")).rpartition(b"/")
            escaped = "".join(f"%{byte:02x}" for byte in object_id.key.encode())
            for target in (object_path(object_id), prefix + b"/" + escaped.encode()):
                got = await connection.request("GET", target)
                assert (got.status, got.body) == (200, object_id.storage_path.encode())


async def test_an_independent_client_with_hostile_keys(server: Running) -> None:
    """What another HTTP client sends for a key, already escaped by it, names that key."""
    async with aiohttp.ClientSession() as session:
        for key in HOSTILE_KEYS[:120]:
            target = object_path(ObjectId("aiohttp", (), key)).decode()
            url = yarl.URL(server.url + target, encoded=True)
            async with session.put(url, data=key.encode()) as put:
                assert await put.json() == {"key": key}
            async with session.get(url) as got:
                assert await got.read() == key.encode()


async def test_one_level_of_escapes(server: Running) -> None:
    """An escaped slash is a slash of the key; a doubly escaped one is text; plus is plus."""
    for target, key in (("a%2Fb", "a/b"), ("a%252Fb", "a%2Fb"), ("a+b", "a+b"), ("a%20b", "a b")):
        assert (await server.request("PUT", f"{ROOT}/{target}", (), target.encode())).json == {"key": key}
    assert (await server.request("GET", f"{ROOT}/a/b")).body == b"a%2Fb"
    assert (await server.request("GET", f"{ROOT}/a%252Fb")).body == b"a%252Fb"


async def test_namespaces_are_apart(server: Running) -> None:
    """The same key under other scopes, in another order, or under another usecase is another object."""
    places = ["abc/_", "abd/_", "abc/a=1", "abc/a=2", "abc/a=1;b=2", "abc/b=2;a=1", "ABC/_", "abc/A=1"]
    for place in places:
        await server.request("PUT", f"/v1/objects/{place}/key", (), place.encode())
    for place in places:
        assert (await server.request("GET", f"/v1/objects/{place}/key")).body == place.encode()


async def test_scopes_may_be_escaped(server: Running) -> None:
    """Escapes in usecase and scopes are decoded before they are read, so that both spellings are one object."""
    await server.request("PUT", "/v1/objects/abc/org=7;p=1/key", (), b"payload")
    assert (await server.request("GET", "/v1/objects/a%62c/org%3D7%3bp=1/key")).body == b"payload"


WHOLE = bytes(range(256)) * 8


@pytest.fixture(scope="module", params=["inline", "long term"])
def ranged(request: pytest.FixtureRequest) -> tuple[str, bytes]:
    """An object to take ranges of, in either tier."""
    return (f"{ROOT}/ranged-small", WHOLE[:1000]) if request.param == "inline" else (f"{ROOT}/ranged-large", WHOLE)


@pytest.mark.parametrize(
    ("header", "first", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-99", 0, 100),
        ("bytes=5-", 5, None),
        ("bytes=-1", -1, None),
        ("bytes=-999999", 0, None),
        ("bytes=990-999999", 990, None),
        ("bytes=0-", 0, None),
        ("BYTES=1-2", 1, 3),
        ("bytes= 1-2 ", 1, 3),
    ],
)
async def test_ranges(server: Running, ranged: tuple[str, bytes], header: str, first: int, stop: int | None) -> None:
    """One range gives exactly its bytes, and says which of how many they are."""
    target, payload = ranged
    await server.request("PUT", target, (), payload)
    got = await server.request("GET", target, [("range", header)])
    assert (got.status, got.body) == (206, payload[first:stop])
    start = first % len(payload)
    assert got.headers["content-range"] == f"bytes {start}-{start + len(got.body) - 1}/{len(payload)}"
    assert got.headers["x-sn-size"] == str(len(payload))
    assert got.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize("headers", [[("range", "bytes=0-1,5-6")], [("range", "bytes=0-1"), ("if-range", '"a"')]])
async def test_ranges_that_are_passed_over(
    server: Running, ranged: tuple[str, bytes], headers: list[tuple[str, str]]
) -> None:
    """Several ranges, and a range under a condition that cannot hold, get the whole object."""
    target, payload = ranged
    await server.request("PUT", target, (), payload)
    got = await server.request("GET", target, headers)
    assert (got.status, got.body) == (200, payload)
    assert "content-range" not in got.headers


async def test_unsatisfiable_ranges(server: Running, ranged: tuple[str, bytes]) -> None:
    """A range past the end is 416 and tells the size; so is every range of an empty object."""
    target, payload = ranged
    await server.request("PUT", target, (), payload)
    await server.request("PUT", f"{ROOT}/empty", (), b"")
    for where, header, size in (
        (target, f"bytes={len(payload)}-", len(payload)),
        (target, "bytes=-0", len(payload)),
        (f"{ROOT}/empty", "bytes=0-", 0),
        (f"{ROOT}/empty", "bytes=-5", 0),
    ):
        refused = await server.request("GET", where, [("range", header)])
        assert (refused.status, refused.headers["content-range"]) == (416, f"bytes */{size}")
        assert refused.json["detail"]


@pytest.mark.parametrize("header", ["", "0-1", "bytes", "bytes=", "bytes=a-b", "bytes=2-1", "items=0-1", "bytes=--1"])
async def test_malformed_ranges(server: Running, header: str) -> None:
    """Text that is no range is 400, whether the object exists or not."""
    assert (await server.request("GET", f"{ROOT}/nothing", [("range", header)])).status == 400


async def test_head_passes_over_ranges(server: Running) -> None:
    """A range means something on GET only."""
    await server.request("PUT", f"{ROOT}/head-range", (), b"payload")
    for header in ("bytes=0-1", "nonsense", "bytes=100-"):
        looked_at = await server.request("HEAD", f"{ROOT}/head-range", [("range", header)])
        assert (looked_at.status, looked_at.headers["x-sn-size"]) == (204, "7")
        assert "content-range" not in looked_at.headers


async def test_large_objects_say_so(server: Running) -> None:
    """An object at the largest size allowed is stored and read whole; one byte more is 413."""
    payload = random.Random(2).randbytes(LIMITS.object_bytes_max)
    assert (await server.request("PUT", f"{ROOT}/largest", (), payload)).status == 200
    assert (await server.request("GET", f"{ROOT}/largest")).body == payload
    refused = await server.request("PUT", f"{ROOT}/largest", (), payload + b"+")
    assert refused.status == 413
    assert (await server.request("HEAD", f"{ROOT}/largest")).headers["x-sn-size"] == str(len(payload))


async def test_every_request_is_refused_while_authentication_is_enforced() -> None:
    """Without keys, the safe default admits nobody, whatever they bring along; internals stay open."""
    unknown = f"{b64({'alg': 'EdDSA', 'kid': 'a'})}.{b64({'exp': 1})}.c2ln"
    async with running(enforce=True) as server:
        for method, target in (
            ("GET", f"{ROOT}/k"),
            ("HEAD", f"{ROOT}/k"),
            ("PUT", f"{ROOT}/k"),
            ("DELETE", f"{ROOT}/k"),
            ("POST", ROOT),
            ("PATCH", f"{ROOT}/k"),
            ("PUT", f"{ROOT}/k?upload_type=resumable"),
            ("POST", "/v1/objects:batch/testing/_/"),
        ):
            refused = await server.request(method, target, [("authorization", f"Bearer {unknown}")], b"payload")
            assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
            assert (await server.request(method, target, [("authorization", "Bearer x")], b"payload")).status == 400
            assert (await server.request(method, target, (), b"payload")).status == 400
        assert not [call for call in server.script.trace if not call.endswith(".check")]
        for path in ("/health", "/ready", "/metrics"):
            assert (await server.request("GET", path)).status == 200
