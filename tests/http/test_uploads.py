"""Multipart uploads over a socket: addresses, parts, lists, and the answers of a completion."""

import asyncio
import base64
import hashlib
import re
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.http.harness import LIMITS, Response, Running, eventually, head, running
from tests.http.test_request_log import Lines, last, lines
from tierstore.errors import (
    Busy,
    CorruptObject,
    EntityTooSmall,
    GivenUp,
    ObjectTooLarge,
    OutcomeUnknown,
    StorageFull,
    Unavailable,
)
from tierstore.testing.faults import FailBefore, Fault, Pause

__all__ = ["lines"]  # a fixture

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAMESPACE = "testing/org=1"
PIECES = (b"a" * 70_000, b"b" * 3, b"c" * 1000)


@dataclass
class Upload:
    """An upload that a client has begun."""

    server: Running
    key: str
    upload_id: str
    etags: dict[int, str] = field(default_factory=dict)

    def target(self, kind: str = "", **parameters: object) -> str:
        """An address of this upload: that of ``kind``, with its id and ``parameters``."""
        query = "".join(f"&{name}={value}" for name, value in parameters.items())
        return f"/v1/objects:multipart{kind}/{NAMESPACE}/{quote(self.key)}?upload_id={self.upload_id}{query}"

    async def part(self, number: int, payload: bytes, *headers: tuple[str, str]) -> Response:
        """Upload a part, and remember its ETag."""
        answer = await self.server.request("PUT", self.target(":parts", part_number=number), headers, payload)
        if answer.status == 200:
            self.etags[number] = str(answer.json["etag"])
        return answer

    def document(self) -> bytes:
        """What completes it with all its parts."""
        named = [{"part_number": number, "etag": etag} for number, etag in sorted(self.etags.items())]
        return orjson.dumps({"parts": named})

    async def complete(self, document: bytes | None = None) -> Response:
        """Complete it with all its parts, or with ``document``."""
        body = self.document() if document is None else document
        return await self.server.request("POST", self.target(":complete"), (), body)

    async def listed(self, **parameters: object) -> Response:
        """List its parts."""
        return await self.server.request("GET", self.target(":parts", **parameters))

    async def parts(self) -> list[dict[str, Any]]:
        """What a list of its parts has, which must be all of them."""
        content = (await self.listed()).json
        assert content["is_truncated"] is False
        parts = content["parts"]
        assert isinstance(parts, list)
        return parts

    async def abort(self) -> Response:
        """Abort it."""
        return await self.server.request("DELETE", self.target())

    async def get(self) -> Response:
        """Read the object under its key."""
        return await self.server.request("GET", f"/v1/objects/{NAMESPACE}/{quote(self.key)}")


async def begin(server: Running, key: str, *headers: tuple[str, str]) -> Upload:
    """Initiate an upload under ``key``."""
    answer = await server.request("PUT", f"/v1/objects:multipart/{NAMESPACE}/{quote(key)}", headers, b"")
    assert answer.status == 200
    assert answer.json["key"] == key
    return Upload(server, key, str(answer.json["upload_id"]))


async def begun_with_parts(server: Running, key: str, *headers: tuple[str, str]) -> Upload:
    """An upload with a few parts."""
    upload = await begin(server, key, *headers)
    for number, piece in enumerate(PIECES, start=1):
        assert (await upload.part(number, piece)).status == 200
    return upload


def error_of(answer: Response) -> tuple[str, str]:
    """Code and message of a completion that failed, and nothing else in the body."""
    assert answer.status == 200
    content = answer.json
    assert list(content) == ["error"]
    error = content["error"]
    assert isinstance(error, dict)
    assert sorted(error) == ["code", "message"]
    return error["code"], error["message"]


# The whole way


@pytest.mark.parametrize(
    "key", ["plain", "a/b//c", "a%2Fb", "with space", "größe/✓", "..", "a/../b", ".", "%", "a?b#c", "a+b;c=d", "\x00"]
)
async def test_an_upload_becomes_an_object(server: Running, key: str) -> None:
    """Parts in any order become the object under that very key, with the metadata of the initiate."""
    upload = await begin(server, key, ("content-type", "text/x-parts"), ("x-snme-author", "ann"))
    for number in (3, 1, 2):
        answer = await upload.part(number, PIECES[number - 1])
        assert answer.status == 200
        assert list(answer.json) == ["etag"]
    assert (await upload.get()).status == 404
    completed = await upload.complete()
    assert (completed.status, completed.json) == (200, {"key": key})
    assert "content-length" not in completed.headers
    assert completed.headers["cache-control"] == "no-store"
    got = await upload.get()
    assert got.body == b"".join(PIECES)
    assert (got.headers["content-type"], got.headers["x-snme-author"]) == ("text/x-parts", "ann")


@pytest.mark.parametrize("slash", ["", "/"])
async def test_the_server_makes_keys(server: Running, slash: str) -> None:
    """An initiate without a key gets a new one."""
    answer = await server.request("POST", f"/v1/objects:multipart/{NAMESPACE}{slash}", (), b"")
    assert answer.status == 200
    upload = Upload(server, str(answer.json["key"]), str(answer.json["upload_id"]))
    assert re.fullmatch(r"[A-Za-z0-9_-]+", upload.upload_id)
    await upload.part(1, b"payload")
    assert (await upload.complete()).json == {"key": upload.key}
    assert (await upload.get()).body == b"payload"


async def test_a_body_of_an_initiate_means_nothing(server: Running) -> None:
    """It is thrown away, and the connection goes on."""
    async with server.connect() as connection:
        target = f"/v1/objects:multipart/{NAMESPACE}/with-body"
        assert (await connection.request("PUT", target, (), b"ignored")).status == 200
        assert (await connection.request("GET", f"/v1/objects/{NAMESPACE}/with-body")).status == 404


async def test_completing_again_is_a_success(server: Running) -> None:
    """A client that lost the answer gets the same one, also after the object was replaced or deleted."""
    upload = await begun_with_parts(server, "again")
    for _ in range(2):
        assert (await upload.complete()).json == {"key": "again"}
    await server.request("PUT", f"/v1/objects/{NAMESPACE}/again", (), b"newer")
    assert (await upload.complete()).json == {"key": "again"}
    assert (await upload.get()).body == b"newer"
    await server.request("DELETE", f"/v1/objects/{NAMESPACE}/again")
    assert (await upload.complete()).json == {"key": "again"}
    assert (await upload.get()).status == 404


async def test_an_aborted_upload_is_gone(server: Running) -> None:
    """204, again too; its parts are gone, and it cannot be completed."""
    upload = await begun_with_parts(server, "aborted")
    assert (await upload.abort()).status == 204
    assert (await upload.abort()).status == 204
    assert (await upload.listed()).status == 404
    assert (await upload.part(4, b"late")).status == 404
    assert error_of(await upload.complete())[0] == "NoSuchUpload"
    assert (await upload.get()).status == 404


async def test_a_completed_upload_is_not_aborted(server: Running) -> None:
    """An abort after success is 404 and leaves the object alone."""
    upload = await begun_with_parts(server, "kept")
    await upload.complete()
    assert (await upload.abort()).status == 404
    assert (await upload.get()).body == b"".join(PIECES)


# Lists


async def test_lists_of_parts(server: Running) -> None:
    """All parts in ascending order, page by page, with what is known of each."""
    upload = await begin(server, "listed")
    for number in (7, 2, 5, 1, 16, 9):
        await upload.part(number, b"x" * number)
    await upload.part(5, b"replaced")
    whole = (await upload.listed()).json
    assert whole["is_truncated"] is True
    assert whole["next_part_number_marker"] == 9
    rest = (await upload.listed(part_number_marker=9)).json
    assert rest["is_truncated"] is False
    assert "next_part_number_marker" not in rest
    first, second = whole["parts"], rest["parts"]
    assert isinstance(first, list)
    assert isinstance(second, list)
    sizes = {1: 1, 2: 2, 5: 8, 7: 7, 9: 9, 16: 16}
    assert [(part["part_number"], part["size"]) for part in [*first, *second]] == list(sizes.items())
    for part in [*first, *second]:
        assert sorted(part) == ["etag", "last_modified", "part_number", "size"]
        assert part["etag"] == upload.etags[part["part_number"]]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", part["last_modified"])
    marker, seen = 0, []
    while True:
        page = (await upload.listed(max_parts=1, part_number_marker=marker)).json
        (part,) = page["parts"]  # type: ignore[misc]  # because JSON has no types
        seen.append(part["part_number"])
        if not page["is_truncated"]:
            break
        marker = int(str(page["next_part_number_marker"]))
    assert seen == list(sizes)


@pytest.mark.parametrize("parameters", [{"max_parts": 10**9}, {"part_number_marker": 0}, {"max_parts": 5}])
async def test_lists_are_capped(server: Running, parameters: dict[str, object]) -> None:
    """More than a page is a page; beyond the last part there is nothing."""
    upload = await begin(server, "capped")
    for number in range(1, 7):
        await upload.part(number, b"x")
    page = (await upload.listed(**parameters)).json
    assert isinstance(page["parts"], list)
    assert len(page["parts"]) == LIMITS.parts_listed_max
    past = await upload.listed(part_number_marker=10**17)
    assert past.json == {"parts": [], "is_truncated": False}


@pytest.mark.parametrize("bad", ["0", "-1", "", "x", "1.0", "1e3", "+1", "%201", "%D9%A1", "9" * 30])
async def test_bad_numbers_of_a_list(server: Running, bad: str) -> None:
    """What is no number within bounds is 400."""
    upload = await begin(server, "bad-list")
    refused = await upload.listed(max_parts=bad)
    assert (refused.status, refused.detail) == (400, "max_parts is a number from 1; more than 5 counts as 5")
    if bad != "0":
        refused = await upload.listed(part_number_marker=bad)
        assert (refused.status, refused.detail) == (400, "part_number_marker is a number from 0")
    twice = await server.request("GET", upload.target(":parts") + "&max_parts=1&max_parts=2")
    assert twice.status == 400


# Parts


@pytest.mark.parametrize("number", ["0", "17", "-1", "", "x", "1.0", "9" * 20])
async def test_bad_part_numbers(server: Running, number: str) -> None:
    """A part number out of range, or none, is 400 before the body is read."""
    upload = await begin(server, "bad-number")
    async with server.connect() as connection:
        target = upload.target(":parts", part_number=number)
        await connection.send(head("PUT", target, [("content-length", "1000000")]))
        refused = await connection.response()
        assert (refused.status, refused.detail) == (400, "part_number is a number from 1 to 16")
    missing = await server.request("PUT", upload.target(":parts"), (), b"x")
    assert (missing.status, missing.detail) == (400, "the parameter part_number is missing")
    twice = upload.target(":parts", part_number=1) + "&part_number=1"
    assert (await server.request("PUT", twice, (), b"x")).status == 400


async def test_a_part_has_a_length(server: Running) -> None:
    """No content-length, or a chunked body: 400."""
    upload = await begin(server, "no-length")
    target = upload.target(":parts", part_number=1)
    for headers in ((), [("transfer-encoding", "chunked")]):
        async with server.connect() as connection:
            await connection.send(head("PUT", target, headers))
            refused = await connection.response()
            assert (refused.status, "content-length" in refused.detail) == (400, True)


async def test_a_part_that_is_too_large(server: Running) -> None:
    """413 by its announced length, before a byte of it; the largest one is stored."""
    upload = await begin(server, "too-large")
    target = upload.target(":parts", part_number=1)
    async with server.connect() as connection:
        await connection.send(head("PUT", target, [("content-length", str(LIMITS.part_bytes_max + 1))]))
        refused = await connection.response()
        assert refused.status == 413
        assert "a part has at most" in refused.detail
    assert (await upload.part(1, b"x" * LIMITS.part_bytes_max)).status == 200


async def test_a_part_that_is_cut_off(server: Running) -> None:
    """Fewer bytes than announced: nothing is kept, no work is left over, and the part before stays."""
    upload = await begin(server, "cut-off")
    await upload.part(1, b"before")
    async with server.connect() as connection:
        await connection.send(head("PUT", upload.target(":parts", part_number=1), [("content-length", "1000")]))
        await connection.send(b"x" * 500)
        await eventually("the body arrives", lambda: len(server.mutations) == 1)
        connection.abort()
        await eventually("the mutation ends", lambda: len(server.mutations) == 0)
    (part,) = await upload.parts()
    assert (part["etag"], part["size"]) == (upload.etags[1], 6)


async def test_a_part_that_has_arrived_is_stored_without_its_client(server: Running) -> None:
    """A client that goes away once all of a part has come does not undo it."""
    upload = await begin(server, "left")
    pause = Pause(after_effect=True)
    server.script.at("long_term.upload_part", pause)
    async with server.connect() as connection:
        await connection.send(head("PUT", upload.target(":parts", part_number=1), (), b"payload") + b"payload")
        await pause.reached.wait()
        connection.abort()
    pause.release.set()
    await eventually("the mutation ends", lambda: len(server.mutations) == 0)
    (part,) = await upload.parts()
    assert part["size"] == 7


async def test_checksums_of_parts(server: Running) -> None:
    """A digest that fits is accepted; one that does not, or is none, is 400, and nothing is kept."""
    upload = await begin(server, "md5")
    digest = base64.b64encode(hashlib.md5(b"payload").digest()).decode()  # because the wire says MD5
    assert (await upload.part(1, b"payload", ("content-md5", digest))).status == 200
    assert (await upload.part(2, b"payloae", ("content-md5", digest))).status == 400
    for malformed in (
        "",
        "x",
        digest[:-4],
        digest[:-2],
        digest + "AAAA",
        "!" * 24,
        hashlib.md5(b"").hexdigest(),
    ):  # as above
        assert (await upload.part(2, b"payload", ("content-md5", malformed))).status == 400
    twice = [("content-md5", digest), ("content-md5", digest)]
    assert (await upload.part(2, b"payload", *twice)).status == 400
    assert (await upload.part(2, b"payload", ("content-range", "bytes 0-6/7"))).status == 400
    assert [part["part_number"] for part in await upload.parts()] == [1]


async def test_a_part_is_replaced(server: Running) -> None:
    """The same number again gives another ETag, and the earlier one names nothing any more."""
    upload = await begin(server, "replaced")
    await upload.part(1, b"first")
    document = upload.document()
    await upload.part(1, b"second")
    assert upload.document() != document
    assert error_of(await upload.complete(document))[0] == "InvalidPart"
    assert (await upload.complete()).json == {"key": "replaced"}
    assert (await upload.get()).body == b"second"


# Refusals


@pytest.mark.parametrize(
    ("method", "address", "allowed"),
    [
        ("GET", f"objects:multipart/{NAMESPACE}", "POST"),
        ("PUT", f"objects:multipart/{NAMESPACE}/", "POST"),
        ("GET", f"objects:multipart/{NAMESPACE}/k", "PUT, DELETE"),
        ("POST", f"objects:multipart/{NAMESPACE}/k", "PUT, DELETE"),
        ("POST", f"objects:multipart:parts/{NAMESPACE}/k", "PUT, GET"),
        ("HEAD", f"objects:multipart:parts/{NAMESPACE}/k", "PUT, GET"),
        ("DELETE", f"objects:multipart:parts/{NAMESPACE}/k", "PUT, GET"),
        ("PUT", f"objects:multipart:complete/{NAMESPACE}/k", "POST"),
        ("GET", f"objects:multipart:complete/{NAMESPACE}/k", "POST"),
    ],
)
async def test_other_methods(server: Running, method: str, address: str, allowed: str) -> None:
    """405 names the methods that the address has."""
    refused = await server.request(method, f"/v1/{address}")
    assert (refused.status, refused.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize(
    "address",
    [f"objects:multipart:parts/{NAMESPACE}/", f"objects:multipart:complete/{NAMESPACE}", "objects:multipart",
     "objects:multipart/", "objects:multipart/testing", f"objects:multipart:other/{NAMESPACE}/k",
     f"objects:multiparts/{NAMESPACE}/k"],
)  # fmt: skip
async def test_unknown_addresses(server: Running, address: str) -> None:
    """404 for an address that names nothing."""
    assert (await server.request("POST", f"/v1/{address}", (), b"")).status == 404


EACH = [
    ("POST", f"/v1/objects:multipart/{NAMESPACE}/"),
    ("PUT", f"/v1/objects:multipart/{NAMESPACE}/k"),
    ("DELETE", f"/v1/objects:multipart/{NAMESPACE}/k?upload_id=x"),
    ("PUT", f"/v1/objects:multipart:parts/{NAMESPACE}/k?upload_id=x&part_number=1"),
    ("GET", f"/v1/objects:multipart:parts/{NAMESPACE}/k?upload_id=x"),
    ("POST", f"/v1/objects:multipart:complete/{NAMESPACE}/k?upload_id=x"),
]


async def test_nothing_is_admitted_under_enforcement() -> None:
    """The gate stands before every address of uploads."""
    async with running(enforce=True) as server:
        for method, target in EACH:
            assert (await server.request(method, target, (), b"")).status == 400


@pytest.mark.parametrize(("method", "target"), EACH)
async def test_conditions_are_not_passed_over(server: Running, method: str, target: str) -> None:
    """A mutation under a condition is 501, as for objects; a list has none that means anything."""
    refused = await server.request(method, target, [("if-none-match", "*")], b"")
    assert refused.status == (400 if method == "GET" else 501)


@pytest.mark.parametrize(("method", "target"), EACH[2:])
async def test_an_upload_id_is_needed(server: Running, method: str, target: str) -> None:
    """Missing, empty, repeated or malformed: 400, before any of a body is read or a store is asked."""
    upload = await begin(server, "k")
    before = len(server.script.trace)
    for given_id in ("", "upload_id=", f"upload_id={upload.upload_id}&upload_id={upload.upload_id}", "upload_id=x"):
        changed = target.replace("upload_id=x", given_id)
        async with server.connect() as connection:
            await connection.send(head(method, changed, [("content-length", "1000000"), ("expect", "100-continue")]))
            refused = await connection.response()
            assert (refused.status, refused.informational) == (400, [])
    assert len(server.script.trace) == before


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("content-type", "nonsense")], 400),
        ([("x-sn-expiration", "sometimes")], 400),
        ([("x-sn-filename", "%zz")], 400),
        ([("content-range", "bytes 0-1/2")], 400),
        ([("x-snme-large", "x" * (LIMITS.metadata_bytes_max + 1))], 431),
    ],
)
async def test_metadata_is_checked_as_on_insert(server: Running, headers: list[tuple[str, str]], status: int) -> None:
    """What an insert refuses, an initiate refuses."""
    for target in (f"/v1/objects:multipart/{NAMESPACE}/k", f"/v1/objects/{NAMESPACE}/k"):
        assert (await server.request("PUT", target, headers, b"")).status == status


async def test_an_unknown_upload(server: Running) -> None:
    """An id that nobody was given here is 404, or `NoSuchUpload` where the answer is 200."""
    async with running() as other:
        upload = await begin(other, "unknown")
    upload.server = server
    upload.etags[1] = "etag"
    assert (await upload.part(1, b"x")).status == 404
    assert (await upload.listed()).status == 404
    assert (await upload.abort()).status == 404
    assert error_of(await upload.complete())[0] == "NoSuchUpload"


# Upload ids of others


async def statuses(upload: Upload) -> set[int]:
    """What each operation with this id is answered; that of a completion by its code."""
    await upload.server.request("GET", "/health")
    upload.etags[1] = "etag"
    answers = [await upload.part(1, b"x"), await upload.listed(), await upload.abort()]
    completed = await upload.complete()
    return {answer.status for answer in [*answers, completed]}


async def test_an_id_of_another_key_or_scope(server: Running) -> None:
    """An upload id is good for its own object alone, and trying it elsewhere does no harm."""
    upload = await begun_with_parts(server, "mine")
    assert await statuses(Upload(server, "theirs", upload.upload_id)) == {400}
    elsewhere = upload.target().replace(NAMESPACE, "testing/org=2")
    assert (await server.request("DELETE", elsewhere)).status == 400
    elsewhere = upload.target().replace(NAMESPACE, "testings/org=1")
    assert (await server.request("DELETE", elsewhere)).status == 400
    assert (await upload.complete()).json == {"key": "mine"}


async def test_damaged_ids(server: Running) -> None:
    """An id with any bit flipped, or cut short or longer, is 400."""
    upload = await begun_with_parts(server, "damaged")
    text = upload.upload_id
    raw = bytearray(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    damaged = [text[:length] for length in range(len(text))] + [text + "A", text + "=", text + "AAAA", " " + text]
    for bit in range(8 * len(raw)):
        raw[bit // 8] ^= 1 << bit % 8
        damaged.append(base64.urlsafe_b64encode(raw).rstrip(b"=").decode())
        raw[bit // 8] ^= 1 << bit % 8
    async with server.connect() as connection:
        for one in damaged:
            target = Upload(server, "damaged", quote(one)).target(":parts")
            assert (await connection.request("GET", target)).status == 400, one
    assert (await upload.complete()).json == {"key": "damaged"}


async def test_random_ids_and_queries(server: Running) -> None:
    """Any text in the place of an id, or of the query, is a 4xx and never a fault."""
    texts: list[bytes] = []

    @settings(max_examples=80, deadline=None, database=None)
    @given(st.one_of(st.binary(max_size=60), st.text("AQaz019_-=", max_size=80).map(str.encode)))
    def collect(raw: bytes) -> None:
        texts.append(raw)

    collect()
    async with server.connect() as connection:
        for raw in texts:
            for method, target in EACH[2:]:
                path, _, query = target.partition("?")
                for changed in (query.replace("upload_id=x", "upload_id=" + quote(raw)), quote(raw, "&=%")):
                    async with asyncio.timeout(5):
                        if connection.reader.at_eof():
                            break
                        answer = await connection.request(method, f"{path}?{changed}", (), b"")
                    assert 400 <= answer.status < 500, (changed, answer)


# The document of a completion


def document_of(*named: tuple[object, object]) -> bytes:
    """A list of parts."""
    return orjson.dumps({"parts": [{"part_number": number, "etag": etag} for number, etag in named]})


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b'{"parts": [}', 400),
        (b"\xff", 400),
        (b'{"parts": [{"part_number": 1, "etag": "\xff"}]}', 400),
        (b'{"x": ' + b"[" * 10_000, 400),
        (document_of((1, "e")) + b"x", 400),
        (b"null", 422),
        (b"[]", 422),
        (b"{}", 422),
        (b'{"parts": null}', 422),
        (b'{"parts": {}}', 422),
        (b'{"parts": [1]}', 422),
        (b'{"parts": [{"part_number": 1}]}', 422),
        (b'{"parts": [{"etag": "e"}]}', 422),
        (document_of(), 422),
        (document_of((0, "e")), 422),
        (document_of((-1, "e")), 422),
        (document_of((17, "e")), 422),
        (document_of((10**18, "e")), 422),
        (document_of(("1", "e")), 422),
        (document_of((True, "e")), 422),
        (document_of((1, 1)), 422),
        (document_of((1, "\u00e9")), 422),
        (document_of((1, "a\nb")), 422),
        (document_of(*[(1, "e")] * 17), 422),
        (b" " * (LIMITS.complete_body_bytes_max + 1), 413),
    ],
)
async def test_malformed_documents(server: Running, body: bytes, status: int) -> None:
    """No JSON is 400, other JSON 422, too much of it 413, at once; the upload is as it was."""
    upload = await begun_with_parts(server, "document")
    before = len(server.script.trace)
    refused = await upload.complete(body)
    assert refused.status == status
    assert refused.detail
    assert len(server.script.trace) == before
    assert (await upload.complete()).json == {"key": "document"}


async def test_a_long_document_of_unknown_length(server: Running) -> None:
    """A chunked body is taken in up to the bound."""
    upload = await begun_with_parts(server, "chunked")
    for body, status in ((upload.document(), 200), (b" " * (LIMITS.complete_body_bytes_max + 1), 413)):
        async with server.connect() as connection:
            await connection.send(head("POST", upload.target(":complete"), [("transfer-encoding", "chunked")]))
            await connection.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
            assert (await connection.response()).status == status


# Completing


async def test_the_head_comes_at_once_and_spaces_follow(server: Running) -> None:
    """While the parts are being assembled, the client has the head and gets a space now and then."""
    upload = await begun_with_parts(server, "slow")
    pause = Pause()
    server.script.at("long_term.complete", pause)
    async with server.connect() as connection:
        document = upload.document()
        await connection.send(head("POST", upload.target(":complete"), (), document) + document)
        status, headers = await connection.response_head()
        assert (status, headers["content-type"]) == (200, "application/json")
        assert headers["transfer-encoding"] == "chunked"
        for _ in range(3):
            assert await connection.chunk() == b" "
        pause.release.set()
        body = b""
        while chunk := await connection.chunk():
            body += chunk
        assert orjson.loads(body) == {"key": "slow"}
        assert (await connection.request("GET", f"/v1/objects/{NAMESPACE}/slow")).body == b"".join(PIECES)


async def test_a_client_of_http_1_0(server: Running) -> None:
    """It cannot take chunks: it gets the outcome in one piece."""
    upload = await begun_with_parts(server, "old")
    document = upload.document()
    async with server.connect() as connection:
        raw = head("POST", upload.target(":complete"), (), document) + document
        await connection.send(raw.replace(b"HTTP/1.1", b"HTTP/1.0"))
        answer = await connection.response()
        assert "transfer-encoding" not in answer.headers
        assert (answer.status, answer.json, answer.whole) == (200, {"key": "old"}, True)


@pytest.mark.parametrize("call", ["long_term.complete", "high_volume.point"])
@pytest.mark.parametrize("after_effect", [False, True])
async def test_a_completion_ends_without_its_client(server: Running, call: str, after_effect: bool) -> None:
    """A client that goes away does not end the completion; the object appears, and repeating tells the success."""
    upload = await begun_with_parts(server, f"left/{call}/{after_effect}")
    pause = Pause(after_effect=after_effect)
    server.script.at(call, pause)
    async with server.connect() as connection:
        document = upload.document()
        await connection.send(head("POST", upload.target(":complete"), (), document) + document)
        await connection.response_head()
        await pause.reached.wait()
        connection.abort()
    await asyncio.sleep(0.15)
    assert len(server.mutations) == 1
    pause.release.set()
    await eventually("the mutation ends", lambda: len(server.mutations) == 0)
    assert (await upload.get()).body == b"".join(PIECES)
    assert (await upload.complete()).json == {"key": upload.key}


@pytest.mark.parametrize("left_at", ["the head", "the first space"])
async def test_a_mistake_of_a_client_that_has_left_is_no_failure(server: Running, lines: Lines, left_at: str) -> None:
    """Nobody hears of it, and no alarm is raised: not by the metrics, not in the log."""
    upload = await begun_with_parts(server, f"mistaken/{left_at}")
    lines.clear()
    pause = Pause(after_effect=True)
    server.script.at("changelog.claim", pause)
    async with server.connect() as connection:
        document = document_of((1, "wrong"))
        await connection.send(head("POST", upload.target(":complete"), (), document) + document)
        await connection.response_head()
        if left_at == "the first space":
            await connection.chunk()
        await pause.reached.wait()
        connection.abort()
    await eventually("the request ends", lambda: any(line["event"] == "request" for line in lines))
    pause.release.set()
    await eventually("the mutation ends", lambda: len(server.mutations) == 0)
    assert not [line for line in lines if line["log_level"] == "error"]
    assert server.failures == []
    assert (await upload.complete()).json == {"key": upload.key}


@pytest.mark.parametrize("call", ["long_term.complete", "long_term.head", "changelog.claim"])
async def test_a_client_does_not_wait_without_end(call: str) -> None:
    """Whatever hangs, when the time of an operation is over the client is told to try again, in a whole response."""
    async with running(
        replace(LIMITS, operation_deadline_seconds=0.2, complete_overtime_seconds_max=0.2), grace_seconds=1
    ) as server:
        upload = await begun_with_parts(server, "hanging")
        pause = Pause()
        server.script.at(call, pause)
        code, message = error_of(await upload.complete())
        assert (code, "try again" in message) == ("ServiceUnavailable", True)
        pause.release.set()
        await eventually("the mutation ends", lambda: len(server.mutations) == 0)
        assert (await upload.complete()).json == {"key": "hanging"}
        assert (await upload.get()).body == b"".join(PIECES)


async def test_an_assembled_upload_is_told_to_be_completed_again(server: Running) -> None:
    """While it is not committed, its parts cannot be sent or listed, but it is there: 503, and completing it helps."""
    upload = await begun_with_parts(server, "assembled")
    server.script.at("high_volume.point", FailBefore(Unavailable("away")))
    assert error_of(await upload.complete())[0] == "ServiceUnavailable"
    for answer in (await upload.listed(), await upload.part(4, b"late")):
        assert (answer.status, "complete it again" in answer.detail) == (503, True)
    assert (await upload.complete()).json == {"key": "assembled"}
    assert (await upload.listed()).status == 404


async def test_attempts_at_one_upload_are_bounded(server: Running) -> None:
    """Of many at once some are told to try again, at once; those before them, and a later one, are told of success."""
    upload = await begun_with_parts(server, "many")
    pauses = [Pause() for _ in range(LIMITS.upload_attempts_max)]
    server.script.at("long_term.complete", *pauses)
    attempts = [asyncio.create_task(upload.complete()) for _ in pauses]
    for pause in pauses:
        await pause.reached.wait()
    assert error_of(await upload.complete())[0] == "ServiceUnavailable"
    for pause in pauses:
        pause.release.set()
    for answer in await asyncio.gather(*attempts, upload.complete()):
        assert answer.json == {"key": "many"}


async def test_completions_that_go_on_without_their_clients_are_bounded() -> None:
    """Beyond the bound one more is told to try again, at once; other clients write as ever."""
    async with running(replace(LIMITS, left_completions_max=1)) as server:
        upload, other = await begun_with_parts(server, "left"), await begun_with_parts(server, "stayed")
        pause = Pause()
        server.script.at("long_term.complete", pause)
        async with server.connect() as connection:
            document = upload.document()
            await connection.send(head("POST", upload.target(":complete"), (), document) + document)
            await pause.reached.wait()
            connection.abort()
        await asyncio.sleep(0.1)
        assert error_of(await other.complete())[0] == "ServiceUnavailable"
        assert (await other.part(4, b"more")).status == 200
        assert (await server.request("PUT", f"/v1/objects/{NAMESPACE}/plain", (), b"x" * 5000)).status == 200
        pause.release.set()
        await eventually("the mutation ends", lambda: len(server.mutations) == 0)
        assert (await other.complete()).json == {"key": "stayed"}
        assert (await upload.get()).body == b"".join(PIECES)


@pytest.mark.parametrize(
    ("call", "fault", "code"),
    [
        ("long_term.complete", FailBefore(EntityTooSmall("part 1 is too small")), "EntityTooSmall"),
        ("long_term.complete", FailBefore(ObjectTooLarge("too large in all")), "EntityTooLarge"),
        ("long_term.complete", FailBefore(Unavailable("the store is away")), "ServiceUnavailable"),
        ("long_term.complete", FailBefore(StorageFull("the disk is full")), "ServiceUnavailable"),
        ("long_term.complete", FailBefore(OutcomeUnknown("lost")), "ServiceUnavailable"),
        ("changelog.claim", FailBefore(Busy("the queue is full")), "ServiceUnavailable"),
        ("high_volume.point", FailBefore(GivenUp("too late")), "ServiceUnavailable"),
        ("high_volume.head", FailBefore(CorruptObject("secret")), "InternalError"),
        ("high_volume.head", FailBefore(RuntimeError("secret")), "InternalError"),
    ],
)
async def test_failures_are_in_the_body(server: Running, lines: Lines, call: str, fault: Fault, code: str) -> None:
    """Each failure has its code behind a status 200, the log tells it, and the upload can be completed afterwards."""
    upload = await begun_with_parts(server, "failing")
    lines.clear()
    server.script.at(call, fault)
    found, message = error_of(await upload.complete())
    assert found == code
    line = await last(lines)
    assert (line["status"], line["outcome"], line["operation"]) == (200, code, "complete_upload")
    passing = code in {"ServiceUnavailable", "InternalError"}
    assert line["log_level"] == ("warning" if passing else "info")
    faults = [line for line in lines if line["event"] == "request failed"]
    if code == "InternalError":
        assert "secret" not in message
        assert str(line["request_id"]) in message
        assert len(faults) == 1
        assert "secret" in repr(faults[0]["exc_info"])
    else:
        assert message
        assert not faults
    assert (await upload.complete()).json == {"key": "failing"}
    assert (await last(lines, 2))["outcome"] == "completed"


async def test_mistakes_about_parts(server: Running) -> None:
    """Parts that are not there, are others, or are out of order are told by their codes; nothing is lost by it."""
    upload = await begun_with_parts(server, "mistakes")
    one, two = upload.etags[1], upload.etags[2]
    for named, code in (
        ([(1, one), (9, two)], "InvalidPart"),
        ([(1, two)], "InvalidPart"),
        ([(1, "")], "InvalidPart"),
        ([(2, two), (1, one)], "InvalidPartOrder"),
        ([(1, one), (1, one)], "InvalidPartOrder"),
    ):
        assert error_of(await upload.complete(document_of(*named)))[0] == code
    assert (await upload.complete(document_of((1, one), (3, upload.etags[3])))).json == {"key": "mistakes"}
    assert (await upload.get()).body == PIECES[0] + PIECES[2]


async def test_metrics_tell_what_a_status_hides(server: Running) -> None:
    """A completion that failed counts under the status that tells it, not as a success."""
    upload = await begun_with_parts(server, "metrics")

    async def count(status: str) -> float:
        text = (await server.request("GET", "/metrics")).body.decode()
        labels = rf'operation="complete_upload",status="{status}",tier="\w+"'
        found = re.findall(rf"^tierstore_requests_total{{{labels}}} (\S+)", text, re.MULTILINE)
        return sum(map(float, found))

    before = {status: await count(status) for status in ("200", "404", "503", "500", "cut_off")}
    server.script.at("long_term.complete", FailBefore(Unavailable("away")))
    assert error_of(await upload.complete())[0] == "ServiceUnavailable"
    server.script.at("high_volume.head", FailBefore(RuntimeError("fault")))
    assert error_of(await upload.complete())[0] == "InternalError"
    assert (await upload.complete()).json == {"key": "metrics"}
    grown = {status: await count(status) - before[status] for status in before}
    assert grown == {"200": 1, "404": 0, "503": 1, "500": 1, "cut_off": 0}


async def test_a_stopping_server_tells_that_it_gives_up() -> None:
    """When the time to stop is up, the client is told to try again, in a whole response."""
    async with running(grace_seconds=1) as server:
        upload = await begun_with_parts(server, "stopping")
        pause = Pause()
        server.script.at("long_term.complete", pause)
        async with server.connect() as connection:
            document = upload.document()
            await connection.send(head("POST", upload.target(":complete"), (), document) + document)
            await pause.reached.wait()
            server.stop()
            answer = await connection.response()
            pause.release.set()
        assert error_of(answer)[0] == "ServiceUnavailable"
