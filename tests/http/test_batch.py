"""Batches on the wire: each kind of operation, what is wrong with one of them, and requests that are none."""

import random
from dataclasses import replace

import aiohttp
import pytest
import structlog
from multidict import CIMultiDict
from prometheus_client import REGISTRY

from tests.http.batches import (
    BATCH,
    BOUNDARY,
    CONTENT_TYPE,
    END,
    batch,
    begin,
    part,
    raw_part,
    read_answer,
    send_batch,
    send_body,
)
from tests.http.harness import LIMITS, ROOT, Running, head, running
from tierstore.backends.high_volume.contract import Inline, Row
from tierstore.errors import CorruptObject, OutcomeUnknown, Unavailable
from tierstore.limits import KIB, MIB
from tierstore.testing.faults import Answer, FailBefore
from tierstore.types.metadata import Metadata
from tierstore.types.metadata_storage import encode_metadata

pytestmark = pytest.mark.asyncio(loop_scope="module")

LARGE = random.Random(6).randbytes(300 * KIB)
"""In the long-term tier, of several chunks."""
GOOD = part("insert", "good", (), b"good")


async def test_every_kind_of_operation(server: Running) -> None:
    """Inserts are 201, gets 200 with the payload, heads 204, deletes 204, as they are outside of batches."""
    headers = [
        ("content-type", "text/plain"),
        ("x-sn-expiration", "ttl:1h"),
        ("x-sn-filename", "a%0Ab.txt"),
        ("x-snme-A", "1"),
    ]
    put = await send_batch(
        server,
        part("insert", "kinds/small", headers, b"hello"),
        part("insert", "kinds/large", (), LARGE),
        part("insert"),
    )
    assert put.whole
    assert put.statuses == [201, 201, 201]
    assert {result.reason for result in put.results.values()} == {"Created"}
    made = put.results[2].key
    assert made is not None
    assert (await server.request("GET", f"{ROOT}/{made}")).body == b""
    single = await server.request("GET", f"{ROOT}/kinds/small")
    assert single.body == b"hello"

    got = await send_batch(
        server, part("get", "kinds/small"), part("head", "kinds/large"), part("get", "kinds/large"),
        part("get", "nothing"), part("head", "nothing"),
    )  # fmt: skip
    assert got.whole
    assert got.statuses == [200, 204, 200, 404, 404]
    small, looked, large = (got.results[index] for index in range(3))
    assert (small.body, looked.body, large.body) == (b"hello", b"", LARGE)
    named = (
        "content-type",
        "x-sn-expiration",
        "x-sn-filename",
        "x-snme-a",
        "x-sn-size",
        "x-sn-time-created",
        "x-sn-time-expires",
    )
    assert {name: small.headers[name] for name in named} == {name: single.headers[name] for name in named}
    assert (looked.headers["x-sn-size"], looked.headers["content-type"]) == (
        str(len(LARGE)),
        "application/octet-stream",
    )
    assert got.results[3].detail == "no such object"
    assert (small.reason, looked.reason, got.results[3].reason) == ("OK", "No Content", "Not Found")

    gone = await send_batch(
        server, part("delete", "kinds/small"), part("delete", "kinds/large"), part("delete", "nothing")
    )
    assert gone.statuses == [204, 204, 204]
    assert [gone.results[index].kind for index in range(3)] == ["delete"] * 3
    assert (await server.request("GET", f"{ROOT}/kinds/large")).status == 404


async def test_clients_of_another_make(server: Running) -> None:
    """A library's own writer and reader of forms are understood, and understand: chunked, with headers of their own."""
    operations = [
        ("insert", "other/0", b"small"), ("insert", "other/1", LARGE), ("insert", "other/2", b""),
        ("get", "kinds/none", b""), ("delete", "kinds/none", b""),
    ]  # fmt: skip
    reads = [("get", f"other/{number}", b"") for number in range(3)] + [("head", "other/1", b"")]
    found: dict[int, tuple[str, bytes]] = {}
    async with aiohttp.ClientSession() as session:
        for asked in (operations, reads):
            writer = aiohttp.MultipartWriter("form-data")
            for kind, key, payload in asked:
                appended = writer.append(
                    payload, CIMultiDict({"x-sn-batch-operation-kind": kind, "x-sn-batch-operation-key": key})
                )
                appended.set_content_disposition("form-data", name="part")
            found.clear()
            async with session.post(f"{server.url}{BATCH}", data=writer) as response:
                assert response.status == 200
                reader = aiohttp.MultipartReader.from_response(response)
                while (received := await reader.next()) is not None:
                    assert isinstance(received, aiohttp.BodyPartReader)
                    assert received.name == "part"
                    index, status = (received.headers[f"x-sn-batch-operation-{name}"] for name in ("index", "status"))
                    found[int(index)] = (status, bytes(await received.read()))
            if asked is operations:
                statuses = [found[index][0].split()[0] for index in range(5)]
                assert statuses == ["201", "201", "201", "404", "204"]
    assert [found[index] for index in range(4)] == [
        ("200 OK", b"small"), ("200 OK", LARGE), ("200 OK", b""), ("204 No Content", b""),
    ]  # fmt: skip


async def test_a_batch_may_be_empty(server: Running) -> None:
    """Without operations there are no results, and a connection goes on behind batches."""
    async with server.connect() as connection:
        for parts in ((), (GOOD,), (), (GOOD, GOOD)):
            answer = read_answer(await connection.request("POST", BATCH, [CONTENT_TYPE], batch(*parts)))
            assert answer.whole
            assert answer.statuses == [201] * len(parts)


@pytest.mark.parametrize(
    ("written", "key"),
    [
        ("a%20b/c%2Fd", "a b/c/d"),
        ("%25", "%"),
        ("%C3%A9%F0%9F%92%BE", "é💾"),
        ("..", ".."),
        ("a//b?c#d", "a//b?c#d"),
        ("x%0D%0Ax-sn-batch-operation-index: 7%0D%0A%0D%0A", "x\r\nx-sn-batch-operation-index: 7\r\n\r\n"),
        ("%00", "\0"),
        ("k" * 4096, "k" * 4096),
    ],
)
async def test_keys_are_data(server: Running, written: str, key: str) -> None:
    """A key is percent-decoded once, is the same as in an address, and comes back encoded: it ends no line."""
    answer = await send_batch(server, part("insert", written, (), key.encode()))
    assert answer.statuses == [201]
    encoded = answer.results[0].key
    assert encoded is not None
    got = await send_batch(server, part("get", encoded), part("get", written))
    assert [got.results[index].body for index in (0, 1)] == [key.encode()] * 2
    raw = b"".join(b"%%%02X" % byte for byte in key.encode())
    if len(raw) < 8 * KIB:
        assert (await server.request("GET", ROOT.encode() + b"/" + raw)).body == key.encode()


async def test_nothing_stored_adds_to_a_response(server: Running) -> None:
    """Metadata with line ends, and payloads that look like parts, stay what they are."""
    forged = b"\r\n--os-boundary-" + b"0" * 32 + b"\r\nx-sn-batch-operation-index: 9\r\n\r\n"
    headers = [("x-snme-a", "1%0D%0Ax-sn-batch-operation-index: 9"), ("x-sn-origin", "%0D%0A%0D%0Abody")]
    await send_batch(server, part("insert", "forged", headers, forged * 3))
    answer = await send_batch(server, part("get", "forged"), part("head", "forged"))
    assert answer.whole
    assert sorted(answer.results) == [0, 1]
    assert answer.results[0].body == forged * 3
    assert answer.results[1].headers["x-snme-a"] == "1%0D%0Ax-sn-batch-operation-index: 9"


KIND, KEY = "x-sn-batch-operation-kind", "x-sn-batch-operation-key"


@pytest.mark.parametrize(
    ("bad", "status", "detail"),
    [
        (part(None, "k"), 400, "get, head, insert or delete"),
        (part("", "k"), 400, "get, head, insert or delete"),
        (part("GET", "k"), 400, "get, head, insert or delete"),
        (part("put", "k"), 400, "get, head, insert or delete"),
        (part("get"), 400, "operation-key is missing"),
        (part("head"), 400, "operation-key is missing"),
        (part("delete"), 400, "operation-key is missing"),
        (part("get", ""), 400, "not empty"),
        (part("insert", "", (), b"x"), 400, "not empty"),
        (part("get", "%"), 400, "malformed percent-escape"),
        (part("get", "%zz"), 400, "malformed percent-escape"),
        (part("get", "%ff"), 400, "not valid UTF-8"),
        (part("get", "caf\xe9"), 400, "percent-encoded"),
        (part("get", "k" * 4097), 400, "at most 4096 bytes"),
        (raw_part([(KIND, "get"), (KIND, "get"), (KEY, "k")]), 400, "more than once"),
        (raw_part([(KIND, "delete"), (KEY, "good"), (KEY, "other")]), 400, "more than once"),
        (part("get", "k", (), b"x"), 400, "only an insert has a body"),
        (part("delete", "good", (), b"x"), 400, "only an insert has a body"),
        (part("insert", "k", [("content-transfer-encoding", "base64")], b"eA=="), 400, "sent as they are"),
        (part("insert", "k", [("content-length", "2")], b"x"), 400, "content-length"),
        (part("insert", "k", [("content-length", "x")], b"x"), 400, "content-length"),
        (part("insert", "k", [("content-type", "nonsense")], b"x"), 400, "media type"),
        (part("insert", "k", [("content-encoding", "gzip")], b"x"), 400, "zstd"),
        (part("insert", "k", [("x-sn-expiration", "soon")], b"x"), 400, "x-sn-expiration"),
        (part("insert", "k", [("x-snme-a", "1"), ("x-snme-a", "2")], b"x"), 400, "more than once"),
        (part("insert", "k", [("x-snme-a", "caf\xe9")], b"x"), 400, "percent-encode"),
        (part("insert", "k", [("content-range", "bytes 0-0/9")], b"x"), 400, "as a whole"),
        (part("insert", "k", [("if-none-match", "*")], b"x"), 501, "conditional"),
        (part("delete", "good", [("if-match", '"a"')]), 501, "conditional"),
        (part("insert", "k", [(f"x-snme-{n}", "1") for n in range(65)], b"x"), 431, "custom metadata"),
        (part("insert", "k", [("x-other", "y" * 70_000)], b"x"), 431, "headers of a part"),
        (part("insert", "k", [(f"x-{n}", "") for n in range(9_000)], b"x"), 431, "headers of a part"),
        (part("insert", "k", (), b"x" * (MIB + 1)), 413, "at most 1048576 bytes"),
        (part("insert", "k", (), b"x" * (3 * MIB)), 413, "at most 1048576 bytes"),
    ],
)  # fmt: skip
async def test_one_bad_operation(server: Running, bad: bytes, status: int, detail: str) -> None:
    """It is answered with its index, its status and what is wrong; the others are as if it were not there."""
    await send_batch(server, GOOD)
    answer = await send_batch(
        server, part("head", "good"), bad, part("insert", "after", (), b"after"), part("get", "good")
    )
    assert answer.whole
    assert answer.statuses == [204, status, 201, 200]
    assert detail in answer.results[1].detail
    assert answer.results[3].body == b"good"
    assert (await server.request("GET", f"{ROOT}/k")).status == 404


@pytest.mark.parametrize("encoding", ["binary", "8bit", "7bit", "Binary"])
async def test_headers_that_mean_nothing_here(server: Running, encoding: str) -> None:
    """What leaves the bytes alone, and what is not known, is passed over; a form's name and file name too."""
    headers = [
        ("content-transfer-encoding", encoding), ("content-length", "1"), ("x-sn-batch-operation-index", "99"),
        ("x-sn-size", "7"), ("range", "bytes=0-0"), ("x-unknown", "\xff"),
    ]  # fmt: skip
    odd = raw_part(
        [("Content-Disposition", 'form-data; name="f"; filename="g"'), (KIND, "insert"), (KEY, "odd"), *headers], b"x"
    )
    bare = raw_part([(KIND.upper(), "insert"), (KEY.title(), "bare")], b"y")
    answer = await send_batch(server, odd, bare)
    assert answer.statuses == [201, 201]
    got = await send_batch(server, part("get", "odd", [("range", "bytes=0-0")]), part("get", "bare"))
    assert [got.results[index].body for index in (0, 1)] == [b"x", b"y"]
    assert "x-sn-filename" not in got.results[0].headers


async def test_a_part_of_the_largest_size(server: Running) -> None:
    """1 MiB is stored, and one byte more is not."""
    exact = bytes(MIB)
    answer = await send_batch(server, part("insert", "exact", (), exact), part("insert", "more", (), exact + b"x"))
    assert answer.statuses == [201, 413]
    assert (await server.request("GET", f"{ROOT}/exact")).body == exact
    assert (await server.request("GET", f"{ROOT}/more")).status == 404


async def test_many_bad_inserts(server: Running) -> None:
    """More than may be in memory at once, each of which is thrown away: they make room for those that are good."""
    bad = [
        part("insert", "bad", (), bytes(MIB + 1)),
        part("insert", "bad", [("content-length", "7")], b"x"),
        part("insert", "bad", [("x-sn-expiration", "soon")], b"x"),
    ]
    answer = await send_batch(server, *bad * (LIMITS.batch_held_max + 1), GOOD)
    assert answer.whole
    assert answer.statuses == [413, 400, 400] * (LIMITS.batch_held_max + 1) + [201]


async def test_an_object_of_a_batch_is_no_larger_than_any_other() -> None:
    """Where objects have less than 1 MiB, those of batches have, too."""
    async with running(replace(LIMITS, object_bytes_max=2 * KIB)) as server:
        answer = await send_batch(
            server, part("insert", "k", (), bytes(2 * KIB)), part("insert", "k", (), bytes(2 * KIB + 1))
        )
        assert answer.statuses == [201, 413]


async def test_more_operations_than_a_batch_may_have() -> None:
    """Those beyond are 413, each by itself; where far more come, the answer is cut off."""
    async with running(replace(LIMITS, batch_operations_max=5, batch_refused_max=3)) as server:
        parts = [part("insert", f"many/{number}", (), b"x") for number in range(12)]
        answer = await send_batch(server, *parts[:8])
        assert answer.whole
        assert answer.statuses == [201] * 5 + [413] * 3
        assert answer.results[5].detail == "a batch has at most 5 operations"
        assert (await server.request("GET", f"{ROOT}/many/5")).status == 404
        far = await send_batch(server, *parts)
        assert not far.whole
        assert far.statuses == [201] * 5 + [413] * 4
        assert "far more" in far.results[8].detail


async def test_more_bytes_than_a_batch_may_have() -> None:
    """Announced, they are refused at once; when they come unannounced, the answer is cut off behind what was whole."""
    async with running(replace(LIMITS, batch_bytes_max=10 * KIB)) as server:
        parts = [part("insert", f"bytes/{number}", (), bytes(KIB)) for number in range(12)]
        refused = await send_body(server, batch(*parts))
        assert (refused.status, refused.detail) == (413, "a batch has at most 10240 bytes")
        assert (await server.request("GET", f"{ROOT}/bytes/0")).status == 404
        async with server.connect() as connection:
            begun = await begin(connection, *parts[:5])
            await begun.send(batch(*parts[5:]))
            answer = read_answer(await begun.answered())
        assert not answer.whole
        assert answer.statuses[:5] == [201] * 5
        assert answer.statuses[-1] == 413
        assert set(answer.statuses[5:-1]) <= {201}


@pytest.mark.parametrize(
    "headers",
    [
        (),
        [("content-type", "application/json")],
        [("content-type", "multipart/form-data")],
        [("content-type", "multipart/mixed; boundary=x")],
        [("content-type", f"multipart/form-data; boundary={'x' * 71}")],
        [CONTENT_TYPE, CONTENT_TYPE],
        [CONTENT_TYPE, ("content-type", "multipart/form-data; boundary=other")],
        [("content-type", f'multipart/form-data; boundary="{BOUNDARY}\\""')],
    ],
)
async def test_requests_that_are_no_batches(server: Running, headers: list[tuple[str, str]]) -> None:
    """Without the one content type there is, a request is 400 before anything is read."""
    refused = await send_body(server, batch(part("insert", "none", (), b"x")), headers)
    assert refused.status == 400
    assert "content-type" in refused.detail
    assert (await server.request("GET", f"{ROOT}/none")).status == 404


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"\r\n",
        b"preamble\r\n" + batch(GOOD),
        batch(GOOD).replace(b"\r\n", b"\n"),
        batch(GOOD)[:-5],
        GOOD[:-2],
    ],
)
async def test_a_body_that_is_malformed_in_its_first_part(server: Running, body: bytes) -> None:
    """It is refused as a whole, and nothing was done."""
    await server.request("DELETE", f"{ROOT}/good")
    refused = await send_body(server, body)
    assert refused.status == 400
    assert refused.detail.startswith("the body is malformed: ")
    assert (await server.request("GET", f"{ROOT}/good")).status == 404


async def test_a_body_that_ends_too_early_anywhere(server: Running) -> None:
    """What was whole is executed and answered, what was not is answered with the error, and the response is cut off."""
    parts = [
        part("insert", "early/0", (), b"zero"), part("get", "early/0"), part(None), part("insert", "early/1", (), b"1"),
        part("delete", "early/2"),
    ]  # fmt: skip
    body = batch(*parts)
    wanted = [{201}, {200, 404}, {400}, {201}, {204}]
    starts = [body.index(each) + len(f"--{BOUNDARY}\r\n") for each in parts] + [len(body) - 2]
    for length in range(len(body) - 2):
        whole = max(0, sum(start <= length for start in starts) - 1)
        response = await send_body(server, body[:length])
        if not whole:
            assert response.status == 400, length
            continue
        answer = read_answer(response)
        assert not answer.whole
        assert not response.complete
        assert answer.rest == b"\r\n", "the delimiter behind the last part is not whole"
        assert sorted(answer.results) == list(range(whole + 1)), length
        for index in range(whole):
            assert answer.results[index].status in wanted[index], length
        assert answer.results[whole].status == 400
        assert answer.results[whole].detail.startswith("the body is malformed"), length
    for length in (len(body) - 2, len(body)):
        assert read_answer(await send_body(server, body[:length])).whole


async def test_a_body_that_goes_on_behind_a_malformed_part(server: Running) -> None:
    """The results reach a client that sends all of a long body before it reads them."""
    body = GOOD * 3 + f"--{BOUNDARY}\r\nno colon\r\n\r\n".encode() + b"x" * (4 * MIB)
    answer = read_answer(await send_body(server, body))
    assert not answer.whole
    assert answer.statuses == [201, 201, 201, 400]


async def test_http_1_0_is_refused(server: Running) -> None:
    """Its clients could not tell a response that was cut off from one that is whole."""
    async with server.connect() as connection:
        body = batch(GOOD)
        request = head("POST", BATCH, [CONTENT_TYPE], body).replace(b"HTTP/1.1", b"HTTP/1.0")
        await connection.send(request + body)
        assert (await connection.response()).status == 501


async def test_conditions_on_a_batch_are_refused(server: Running) -> None:
    """They are for mutations of one object, and are never passed over."""
    refused = await send_body(server, batch(GOOD), [CONTENT_TYPE, ("if-match", "*")])
    assert refused.status == 501


async def test_a_batch_at_an_objects_address(server: Running) -> None:
    """Batches have an address of a namespace only, with POST only."""
    assert (await server.request("POST", BATCH + "key", [CONTENT_TYPE], END)).status == 404
    refused = await server.request("PUT", BATCH, [CONTENT_TYPE], END)
    assert (refused.status, refused.headers["allow"]) == (405, "POST")
    assert (await server.request("POST", BATCH.removesuffix("/"), [CONTENT_TYPE], END)).status == 200
    assert (await server.request("POST", BATCH.replace("org=1", "_"), [CONTENT_TYPE], END)).status == 200


async def test_failures_of_the_stores_stay_with_their_operations(server: Running) -> None:
    """What a store fails is 503 for that operation, a fault of ours 500 without internals, and the others go on."""
    await send_batch(server, GOOD)
    server.script.at(
        "high_volume.put_inline", FailBefore(Unavailable("the disk is away")), None, FailBefore(OutcomeUnknown("lost"))
    )
    server.script.at("high_volume.read", None, FailBefore(CorruptObject("secret internals")), None)
    answer = await send_batch(
        server, part("insert", "store/0"), part("insert", "store/1"), part("insert", "store/2"), part("get", "good"),
        part("get", "good"), part("get", "good"),
    )  # fmt: skip
    assert answer.whole
    assert sorted(answer.statuses[:3]) == [201, 503, 503]
    assert sorted(answer.statuses[3:]) == [200, 200, 500]
    for result in answer.results.values():
        assert (result.status == 503) == ("retry-after" in result.headers)
        if result.status == 500:
            assert "secret" not in result.detail
            assert answer.response.headers["x-request-id"] in result.detail


async def test_a_damaged_blob(server: Running) -> None:
    """Found damaged before its first byte is sent, it is a part of status 500; later, the response is cut off."""
    chunk = server.limits.stream_chunk_bytes
    for size, whole in ((chunk - 1, True), (3 * chunk, False)):
        await send_batch(server, part("insert", "damaged", (), bytes(size)), GOOD)
        server.script.at("long_term.stream", *[None] * (size // chunk), FailBefore(CorruptObject("a bit")))
        answer = await send_batch(server, part("head", "good"), part("get", "damaged"))
        assert answer.whole == whole
        assert answer.results[0].status == 204
        if whole:
            assert answer.results[1].status == 500
        else:
            assert 1 not in answer.results
        assert server.long_term.open_streams == 0


@pytest.mark.parametrize("broken", ["\r\n", "\n", "\r", "\0", "\x7f", "\u010d\u010a"])
@pytest.mark.parametrize("where", ["content_type", "origin", "custom value", "custom name"])
async def test_what_a_store_has_adds_to_no_response(server: Running, where: str, broken: str) -> None:
    """Metadata that no request could have stored is one line, or a fault of its operation; the others go on."""
    text = f"text/plain{broken}x-injected: yes"
    metadata = {
        "content_type": Metadata(content_type=text),
        "origin": Metadata(origin=text),
        "custom value": Metadata(custom=(("a", text),)),
        "custom name": Metadata(custom=((text, "a"),)),
    }[where]
    await send_batch(server, GOOD)
    stored = encode_metadata(metadata, size=1, time_created=1)
    server.script.at("high_volume.read", Answer(Row(b"v", Inline(stored, b"x"), None)))
    answer = await send_batch(server, part("get", "planted"), part("head", "good"))
    assert answer.whole
    assert answer.statuses == [500 if where in {"content_type", "custom name"} else 200, 204]
    assert "x-injected" not in answer.results[0].headers
    assert answer.results[0].status == 500 or answer.results[0].body == b"x"


async def test_two_operations_on_one_key(server: Running) -> None:
    """They may run in any order, and each is answered; the object is then what one of them made of it."""
    for _ in range(5):
        answer = await send_batch(server, *[part("insert", "same", (), b"%d" % number) for number in range(20)])
        assert answer.statuses == [201] * 20
        assert 0 <= int((await server.request("GET", f"{ROOT}/same")).body) < 20


async def test_operations_are_recorded(server: Running) -> None:
    """Each has a line in the log with its kind, its key and its status, and is counted; no line has a payload."""

    def count(kind: str, status: str) -> float:
        return REGISTRY.get_sample_value("tierstore_batch_operations_total", {"kind": kind, "status": status}) or 0

    counted = (("insert", "201"), ("delete", "204"), ("get", "404"), ("unknown", "400"))
    before = [count(*labels) for labels in counted]
    with structlog.testing.capture_logs() as lines:
        answer = await send_batch(
            server,
            part("insert", "recorded", (), b"payload"),
            part("delete", "gone%20"),
            part("get", "none"),
            part("x"),
        )
    assert [count(*labels) - was for labels, was in zip(counted, before, strict=True)] == [1, 1, 1, 1]
    operations = {line["index"]: line for line in lines if line["event"] == "batch operation"}
    named = {index: (line["operation"], line.get("key"), line["status"]) for index, line in operations.items()}
    assert named == {
        0: ("insert", "recorded", 201), 1: ("delete", "gone ", 204), 2: ("get", "none", 404), 3: ("unknown", None, 400),
    }  # fmt: skip
    assert {line["request_id"] for line in operations.values()} == {answer.response.headers["x-request-id"]}
    assert {line["log_level"] for line in operations.values()} == {"info"}
    request = next(line for line in lines if line["event"] == "request")
    assert (request["operation"], request["status"]) == ("batch", 200)
    assert "payload" not in str(lines)
