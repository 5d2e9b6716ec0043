"""Random requests over a socket against the model: objects, ranges, expiry, multipart uploads, and nonsense between.

A rule is a request; its answer must be the model's: status, every header, body. At the end of an example everything is
read once more, and when all of its time has passed and the sweeper has come, the stores hold what rows point to and
nothing else.
"""

import asyncio
import base64
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal
from urllib.parse import quote, unquote

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.fuzz import nonsense
from tests.fuzz.asking import (
    DURATIONS,
    EDGES,
    LIMITS,
    PART_SIZES,
    check_form,
    document,
    givens,
    named_parts,
    ranges,
    sent_as,
    target,
    upload_target,
)
from tests.fuzz.batches import CONTENT_TYPE, KINDS, encoded
from tests.fuzz.model import (
    MICROS,
    Address,
    Given,
    Model,
    Range,
    StoredPart,
    Upload,
    after_part,
    check_object_headers,
    request_headers,
    timestamp,
)
from tests.fuzz.nonsense import Nonsense
from tests.fuzz.serving import START_MICROS, FuzzedServer
from tests.http.batches import read_answer
from tests.http.harness import CLIENT_SECONDS_MAX, Connection, Response, head
from tierstore.backends.high_volume.contract import Tombstone
from tierstore.backends.long_term.memory import Repeats

_NAMESPACES = ("testing/org=1", "testing/_", "testing/org=1;project=2")
_KEYS = ("a", "a/b", "../x", "é %2F", "\x00?#")
_ADDRESSES = [Address(namespace, key) for namespace in _NAMESPACES for key in _KEYS]
_KNOWN_MAX = 4
_UPLOADS_MAX = 3
_WHICH_ADDRESS = st.integers(0, _KNOWN_MAX - 1)
_WHICH_UPLOAD = st.integers(0, _UPLOADS_MAX - 1)
_SETTLED_SECONDS = 4_000.0
_SETTLED_SWEEPS_MAX = 12


_with_uploads = precondition(lambda self: self.uploads)


class HttpMachine(RuleBasedStateMachine):
    """The service and the model, side by side. A subclass says which server."""

    server: ClassVar[FuzzedServer]
    embedded: ClassVar[bool] = False
    """Whether the stores are the embedded ones, in a directory of their own for each example."""
    steps: ClassVar[Counter[str]] = Counter()
    """Requests that were made, by method."""
    examples: ClassVar[int] = 0
    """Examples that came to their end, and were looked at once more."""

    def __init__(self) -> None:
        super().__init__()
        self.connection: Connection | None = None
        self.writes = 0

    @initialize(
        repeats=st.sampled_from(Repeats),
        addresses=st.lists(st.sampled_from(_ADDRESSES), min_size=3, max_size=3, unique=True),
        sizes=st.lists(st.sampled_from(EDGES), max_size=3),
        parts=st.lists(st.sampled_from(PART_SIZES), max_size=5),
    )
    def begin(self, repeats: Repeats, addresses: list[Address], sizes: list[int], parts: list[int]) -> None:
        """New stores, of both kinds that answer a repeated complete or abort in their own ways."""
        self.directory = TemporaryDirectory(prefix="tierstore-fuzz-") if self.embedded else None
        place = None if self.directory is None else Path(self.directory.name) / "data"
        self.deployment = self.server.deploy(repeats, place)
        self.model = Model(LIMITS, START_MICROS)
        self.known = list(addresses)
        self.uploads: list[Upload] = []
        for which, size in enumerate(sizes):
            self.put(which, size, (Given(), None), everything=False, framing="length")
        if parts:
            self.initiate(0, (Given(), None), everything=False)
            self.parts(0, parts, 1)

    # Objects

    @rule(
        which=_WHICH_ADDRESS,
        size=st.sampled_from(EDGES),
        given=givens(),
        everything=st.booleans(),
        framing=st.sampled_from(["length", "length", "chunked", "continue"]),
    )
    def put(self, which: int, size: int, given: tuple[Given, str | None], everything: bool, framing: str) -> None:
        """Insert or replace."""
        address = self.address(which)
        payload = self.payload(size)
        headers = request_headers(given[0], everything=everything, written=given[1])
        answer = self.ask("PUT", target(address, everything=everything), headers, payload, framing)
        assert (answer.status, answer.json) == (200, {"key": address.key})
        self.model.put(address, given[0], payload)

    @rule(
        namespace=st.sampled_from(_NAMESPACES),
        slash=st.sampled_from(["", "/"]),
        size=st.sampled_from(EDGES),
        given=givens(),
    )
    def post(self, namespace: str, slash: str, size: int, given: tuple[Given, str | None]) -> None:
        """Insert under a key of the server's."""
        payload = self.payload(size)
        headers = request_headers(given[0], everything=False, written=given[1])
        answer = self.ask("POST", f"/v1/objects/{namespace}{slash}", headers, payload)
        assert answer.status == 201
        assert list(answer.json) == ["key"]
        address = Address(namespace, str(answer.json["key"]))
        assert address not in self.model.objects
        assert answer.headers["location"] == target(address)
        self.model.put(address, given[0], payload)
        self.known[3:] = [address]

    @rule(which=_WHICH_ADDRESS, everything=st.booleans())
    def get(self, which: int, everything: bool) -> None:
        """Read the whole object."""
        address = self.address(which)
        self.look(address, everything=everything)

    @rule(
        which=_WHICH_ADDRESS,
        ranges=st.lists(ranges(), min_size=1, max_size=6),
        if_range=st.sampled_from([False, False, False, True]),
        size=st.sampled_from(EDGES),
    )
    def get_ranges(self, which: int, ranges: list[Range], if_range: bool, size: int) -> None:
        """Read some of the object's bytes, again and again; of a new one if there is none."""
        if self.model.visible(self.address(which)) is None:
            self.put(which, size, (Given(), None), everything=False, framing="length")
        for wanted in ranges:
            self.get_range(self.address(which), wanted, if_range)

    def get_range(self, address: Address, wanted: Range, if_range: bool) -> None:
        """Read some of the object's bytes."""
        headers = [("range", wanted.header), *([("if-range", '"x"')] if if_range else [])]
        found = self.model.visible(address)
        answer = self.ask("GET", target(address), headers)
        if found is None:
            assert answer.status in ({404, 400} if wanted.kind == "malformed" else {404})
            return
        selected = Range("", "several").of(found.payload) if if_range else wanted.of(found.payload)
        assert answer.status == selected.status
        if answer.status < 400:
            check_object_headers(found, answer.headers, content_range=selected.content_range)
            assert answer.body == selected.payload
            self.model.accessed(address)
        elif answer.status == 416:
            assert answer.headers["content-range"] == selected.content_range

    @rule(which=_WHICH_ADDRESS, ranged=st.booleans())
    def head(self, which: int, ranged: bool) -> None:
        """Look at the metadata; ranges mean nothing here."""
        address = self.address(which)
        found = self.model.visible(address)
        answer = self.ask("HEAD", target(address), [("range", "bytes=0-0")] if ranged else [])
        assert answer.status == (404 if found is None else 204)
        if found is not None:
            assert "content-length" not in answer.headers
            check_object_headers(found, answer.headers)
            self.model.accessed(address)

    @rule(which=_WHICH_ADDRESS)
    def delete(self, which: int) -> None:
        """Delete, also what is not there."""
        address = self.address(which)
        assert self.ask("DELETE", target(address)).status == 204
        self.model.delete(address)

    @rule(
        which=_WHICH_ADDRESS,
        start=st.sampled_from(["creation", "now"]),
        written=st.sampled_from((*DURATIONS, ("36600d", 36_600 * 86_400), ("36599 days", 36_599 * 86_400))),
        framing=st.sampled_from(["length", "length", "chunked", "continue"]),
    )
    def extend(self, which: int, start: Literal["creation", "now"], written: tuple[str, int], framing: str) -> None:
        """Extend the expiry by a duration."""
        body = json.dumps({"extend_expiry": {"after": written[0], "from": start}}).encode()
        self.extended(
            self.address(which), body, self.model.extend(self.address(which), start, written[1] * MICROS), framing
        )

    @rule(
        which=_WHICH_ADDRESS,
        after=st.sampled_from(["now", "deadline", "creation"]),
        micros=st.sampled_from([-1, 0, 1, 999_999, MICROS, 3_600 * MICROS, 36_600 * 86_400 * MICROS]),
        offset=st.sampled_from(["Z", "+00:00", "-00:00"]),
    )
    def extend_to(self, which: int, after: str, micros: int, offset: str) -> None:
        """Extend the expiry to an instant, at the edges of those that mean something."""
        address = self.address(which)
        found = self.model.objects.get(address)
        instant = self.model.now
        if found is not None and found.deadline is not None and after != "now":
            instant = found.deadline if after == "deadline" else found.created
        instant += micros
        body = json.dumps({"extend_expiry": {"at": timestamp(instant).replace("Z", offset)}}).encode()
        self.extended(address, body, self.model.extend(address, "1970", instant), "length")

    @rule(
        which=_WHICH_ADDRESS,
        size=st.sampled_from([1, 65]),
        kind=st.sampled_from(["ttl", "tti"]),
        written=st.sampled_from(DURATIONS[1:]),
        extensions=st.lists(
            st.tuples(
                st.sampled_from([0.1, 0.5, 0.99, 1.0]),
                st.sampled_from(["creation", "now"]),
                st.sampled_from(DURATIONS),
                st.sampled_from([-1, 0, 1]),
            ),
            min_size=1,
            max_size=4,
        ),
    )
    def lease(
        self,
        which: int,
        size: int,
        kind: Literal["ttl", "tti"],
        written: tuple[str, int],
        extensions: list[tuple[float, Literal["creation", "now"], tuple[str, int], int]],
    ) -> None:
        """An object that is extended again and again, each time when some part of what it had left is over."""
        address = self.address(which)
        self.put(which, size, (Given(expiration=(kind, written[1])), written[0]), everything=False, framing="length")
        for part, start, target_written, micros in extensions:
            found = self.model.visible(address)
            if found is None or found.deadline is None:
                return
            self.advance(max(round(part * (found.deadline - self.model.now)) + micros, 0))
            self.extend(which, start, target_written, "length")

    def extended(self, address: Address, body: bytes, status: int, framing: str) -> None:
        """An extension has this answer, and then the object is as it has made it."""
        answer = self.ask("PATCH", target(address), (), body, framing)
        assert answer.status == status
        self.look(address)

    # Batches

    @rule(
        which=_WHICH_ADDRESS,
        operations=st.lists(
            st.tuples(st.sampled_from(KINDS), st.sampled_from(_KEYS), st.sampled_from(EDGES), givens()),
            max_size=LIMITS.batch_operations_max,
            unique_by=lambda operation: operation[1],
        ),
        framing=st.sampled_from(["length", "chunked", "continue"]),
    )
    def batch(self, which: int, operations: list[tuple[str, str, int, tuple[Given, str | None]]], framing: str) -> None:
        """Operations on several objects, each once, in the place of one that is known."""
        namespace = self.address(which).namespace
        payloads = [self.payload(size) if kind == "insert" else b"" for kind, _, size, _ in operations]
        sent = [
            (
                kind,
                key,
                request_headers(given[0], everything=False, written=given[1]) if kind == "insert" else (),
                payload,
            )
            for (kind, key, _, given), payload in zip(operations, payloads, strict=True)
        ]
        response = self.ask("POST", f"/v1/objects:batch/{namespace}/", [CONTENT_TYPE], encoded(sent), framing)
        answer = read_answer(response)
        assert answer.whole
        assert sorted(answer.results) == list(range(len(operations)))
        for index, (kind, key, _, given) in enumerate(operations):
            self.steps[{"get": "GET", "head": "HEAD", "insert": "PUT", "delete": "DELETE"}[kind]] += 1
            address, result = Address(namespace, key), answer.results[index]
            assert result.kind == kind
            assert result.key is not None
            assert unquote(result.key) == key
            if kind == "insert":
                if len(payloads[index]) > LIMITS.batch_part_bytes_max:
                    assert result.status == 413
                else:
                    assert result.status == 201
                    self.model.put(address, given[0], payloads[index])
            elif kind == "delete":
                assert result.status == 204
                self.model.delete(address)
            else:
                found = self.model.visible(address)
                assert result.status == (404 if found is None else 200 if kind == "get" else 204)
                if found is not None:
                    check_object_headers(found, result.headers, in_batch=True)
                    assert result.body == (found.payload if kind == "get" else b"")
                    self.model.accessed(address)

    # Time

    @rule(seconds=st.sampled_from([0.000001, 1.0, 8.0, 31.0, 300.0, 1_000.0, 4_000.0, 90_000.0]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.advance(round(seconds * MICROS))

    @rule(which=_WHICH_ADDRESS, micros=st.sampled_from([-1, 0, 1]))
    def wait_for_deadline(self, which: int, micros: int) -> None:
        """Just before, at, or just after a deadline."""
        address = self.address(which)
        found = self.model.objects.get(address)
        if found is not None and found.deadline is not None and found.deadline + micros > self.model.now:
            self.advance(found.deadline + micros - self.model.now)
            self.look(address)

    @rule(
        which=_WHICH_ADDRESS,
        size=st.sampled_from([1, 65]),
        written=st.sampled_from(DURATIONS[1:]),
        accesses=st.lists(
            st.tuples(
                st.sampled_from([0.5, 0.1, 0.25, 0.26, 0.5, 0.99, 1.0]),
                st.sampled_from(["HEAD", "GET", "HEAD", "range", "no look"]),
            ),
            min_size=1,
            max_size=6,
        ),
    )
    def idle(self, which: int, size: int, written: tuple[str, int], accesses: list[tuple[float, str]]) -> None:
        """An object that lives while it is asked for: each look comes some part of its time after the one before."""
        address = self.address(which)
        self.put(which, size, (Given(expiration=("tti", written[1])), written[0]), everything=False, framing="length")
        for part, how in accesses:
            self.advance(round(part * written[1] * MICROS))
            match how:
                case "GET":
                    self.look(address)
                case "HEAD":
                    self.head(which, ranged=False)
                case "range":
                    self.get_range(address, Range("bytes=0-0", "first-last", 0, 0), if_range=False)
                case _:
                    self.advance(1)
        self.look(address)

    @rule()
    def sweep(self) -> None:
        """The sweeper comes, and readers see nothing of it."""
        self.server.run(self.server.deployment.tiering.sweeper.run_once())
        self.model.swept()

    # Uploads

    @rule(which=_WHICH_ADDRESS, given=givens(), everything=st.booleans())
    def initiate(self, which: int, given: tuple[Given, str | None], everything: bool) -> None:
        """Begin an upload of a key."""
        address = self.address(which)
        headers = request_headers(given[0], everything=everything, written=given[1])
        answer = self.ask("PUT", target(address, ":multipart", everything=everything), headers, b"")
        self.begun(answer, address, given[0])

    @rule(namespace=st.sampled_from(_NAMESPACES), slash=st.sampled_from(["", "/"]))
    def initiate_without_key(self, namespace: str, slash: str) -> None:
        """Begin an upload under a key of the server's."""
        answer = self.ask("POST", f"/v1/objects:multipart/{namespace}{slash}", (), b"")
        address = Address(namespace, str(answer.json["key"]))
        assert address not in self.model.objects
        self.begun(answer, address, Given())

    @_with_uploads
    @rule(
        which=_WHICH_UPLOAD,
        sizes=st.lists(st.sampled_from(PART_SIZES), min_size=1, max_size=4),
        first=st.integers(1, LIMITS.parts_max),
    )
    def parts(self, which: int, sizes: list[int], first: int) -> None:
        """Upload some parts, in an order that is not theirs, in place of those that were there."""
        for at, size in enumerate(sizes):
            number = (first + 5 * at) % LIMITS.parts_max + 1
            self.upload_part(self.upload(which), number, self.payload(size), None)

    @_with_uploads
    @rule(
        which=_WHICH_UPLOAD,
        number=st.integers(1, LIMITS.parts_max),
        size=st.sampled_from(PART_SIZES),
        md5=st.sampled_from([None, "right", "wrong"]),
    )
    def part_again(self, which: int, number: int, size: int, md5: str | None) -> None:
        """Upload a part, in place of its equal if there is one, with a digest."""
        upload = self.upload(which)
        before = upload.parts.get(number)
        self.upload_part(upload, number, self.payload(size) if before is None else before.payload, md5)

    def upload_part(self, upload: Upload, number: int, payload: bytes, md5: str | None) -> None:
        """Upload a part."""
        digest = hashlib.md5(payload if md5 == "right" else payload + b"x").digest()
        headers = [] if md5 is None else [("content-md5", base64.b64encode(digest).decode())]
        answer = self.ask("PUT", upload_target(upload, ":parts", part_number=number), headers, payload)
        if upload.state != "open":
            assert answer.status == 404
        elif md5 == "wrong":
            assert answer.status == 400
        else:
            assert answer.status == 200
            assert list(answer.json) == ["etag"]
            after_part(upload, number, StoredPart(str(answer.json["etag"]), payload, self.model.now))

    @_with_uploads
    @rule(which=_WHICH_UPLOAD, limit=st.sampled_from([None, 1, 2, 3, 5, 2000]))
    def list_parts(self, which: int, limit: int | None) -> None:
        """List all parts, page by page."""
        self.listed(self.upload(which), limit)

    def listed(self, upload: Upload, limit: int | None) -> None:
        """The list of all parts is the model's."""
        left, marker = sorted(upload.parts.items()), None
        while True:
            parameters = {"max_parts": limit, "part_number_marker": marker}
            answer = self.ask("GET", upload_target(upload, ":parts", **parameters))
            if upload.state != "open":
                assert answer.status == 404
                return
            size = min(limit or LIMITS.parts_listed_max, LIMITS.parts_listed_max)
            page, left = left[:size], left[size:]
            expected: dict[str, Any] = {
                "parts": [
                    {
                        "part_number": number,
                        "etag": part.etag,
                        "last_modified": timestamp(part.stored),
                        "size": len(part.payload),
                    }
                    for number, part in page
                ],
                "is_truncated": bool(left),
            }
            if left:
                expected["next_part_number_marker"] = marker = page[-1][0]
            assert (answer.status, answer.json) == (200, expected)
            if not left:
                return

    @rule(
        which=_WHICH_ADDRESS,
        given=givens(),
        sizes=st.lists(st.sampled_from([8, 9, 64, 65, 500]), min_size=1, max_size=3),
        before=st.sampled_from([None, 0, 65]),
        after=st.sampled_from(["nothing", "put", "delete", "abort"]),
        nuisance=st.sampled_from(
            [None] * 8 + ["", "wrong offset", "too much", "cut", "put", "delete", "cancel", "query"]
        ),
    )
    def upload_whole(
        self,
        which: int,
        given: tuple[Given, str | None],
        sizes: list[int],
        before: int | None,
        after: str,
        nuisance: str | None,
    ) -> None:
        """An upload that succeeds, though others write and delete the object meanwhile; and is completed once more.

        In parts, or as one stream.
        """
        if nuisance is not None:
            self.resume(which, given, sum(sizes) % 513, sizes, nuisance)
            return
        self.initiate(which, given, everything=False)
        self.parts(0, sizes, 1)
        if before is not None:
            self.put(which, before, (Given(), None), everything=False, framing="length")
        self.complete(0, "", 1, 0)
        self.look(self.address(which))
        if after == "put":
            self.put(which, 65, (Given(), None), everything=False, framing="length")
        if after == "delete":
            self.delete(which)
        if after == "abort":
            self.abort(0)
        self.complete(0, "", 2, 0)
        self.look(self.address(which))

    def resume(self, which: int, given: tuple[Given, str | None], size: int, stops: list[int], nuisance: str) -> None:
        """A resumable upload in pieces, with what may go wrong between them; and its last piece once more."""
        address, payload = self.address(which), self.payload(size)
        headers = request_headers(given[0], everything=False, written=given[1])
        answer = self.ask(
            "PUT", f"{target(address)}?upload_type=resumable", [*headers, ("upload-length", str(size))], b""
        )
        assert answer.status == 200
        assert sorted(answer.json) == ["granularity", "key", "session"]
        least = max(LIMITS.part_bytes_min, -(-size // (LIMITS.parts_max // 2)))
        assert (answer.json["key"], answer.json["granularity"]) == (address.key, least)
        session, held = f"{target(address)}?session={answer.json['session']}", 0
        for stop in sorted({stop for stop in stops if stop < size}):
            if stop - held < least:
                assert self.ask("PUT", session, [("upload-offset", str(held))], payload[held:stop]).status == 400
                continue
            self.appended(session, held, payload[held:stop], stop)
            held = stop
        if self.disturbed(session, address, held, nuisance):
            return
        last = [("upload-offset", str(held))]
        for again in (False, True):
            answer = self.ask("PUT", session, last, payload[held:])
            assert (answer.status, answer.json) == (201, {"key": address.key})
            if not again:
                self.model.put(address, given[0], payload)
        assert self.ask("DELETE", session).status == 404
        self.look(address)
        self.head(which, ranged=False)

    def appended(self, session: str, offset: int, piece: bytes, held: int) -> None:
        """Send a piece that is not the last; the session holds so much then."""
        answer = self.ask("PUT", session, [("upload-offset", str(offset))], piece)
        assert (answer.status, answer.headers["upload-offset"]) == (204, str(held))

    def disturbed(self, session: str, address: Address, held: int, nuisance: str) -> bool:
        """Do something between two pieces; return whether it ends the upload."""
        match nuisance:
            case "wrong offset":
                answer = self.ask("PUT", session, [("upload-offset", str(held + 1))], b"")
                assert answer.status in {400, 409}
            case "too much":
                assert self.ask("PUT", session, [("upload-offset", str(held))], b"x" * 501).status == 400
            case "cut":
                self.cut_off("PUT", session, 0, "chunked")
            case "put":
                self.put(self.known.index(address), 65, (Given(), None), everything=False, framing="length")
            case "delete":
                self.delete(self.known.index(address))
            case "cancel":
                assert self.ask("DELETE", session).status == 204
            case _:
                pass
        answer = self.ask("PUT", session, [("upload-offset", "*")], b"")
        if nuisance == "cancel":
            assert answer.status == 404
            return True
        assert (answer.status, answer.headers["upload-offset"]) == (204, str(held))
        return False

    @_with_uploads
    @rule(which=_WHICH_UPLOAD)
    def abort(self, which: int) -> None:
        """Abort; what was completed is not touched."""
        upload = self.upload(which)
        answer = self.ask("DELETE", upload_target(upload))
        assert answer.status in {"open": {204}, "aborted": {204, 404}, "completed": {404}}[upload.state]
        if upload.state == "open":
            upload.state = "aborted"

    @_with_uploads
    @rule(
        which=_WHICH_UPLOAD,
        wrong=st.sampled_from(["", "", "", "some", "order", "twice", "etag", "missing", "other's"]),
        times=st.sampled_from([1, 1, 2, 3]),
        choice=st.integers(0, 100),
    )
    def complete(self, which: int, wrong: str, times: int, choice: int) -> None:
        """Complete, rightly or wrongly, several times and at the same instant; again, and after anything else."""
        upload = self.upload(which)
        named = named_parts(upload, wrong, choice)
        if not named:
            return
        allowed = self.model.complete(upload, named) or {""}
        body = document(named)
        answers = self.at_once([("POST", upload_target(upload, ":complete"), (), body)] * times)
        for answer in answers:
            if len(named) > LIMITS.parts_max:  # a list that no upload can have is refused before anything is answered
                assert answer.status == 422
                continue
            assert answer.status == 200
            assert answer.headers["content-type"] == "application/json"
            outcome = answer.json
            if outcome == {"key": upload.address.key}:
                assert "" in allowed
            else:
                assert list(outcome) == ["error"]
                error = outcome["error"]
                assert isinstance(error, dict)
                assert sorted(error) == ["code", "message"]
                assert error["code"] in allowed, f"{error} is none of {sorted(allowed)}"

    # Nonsense

    @rule(which=_WHICH_ADDRESS, kinds=st.lists(st.sampled_from(nonsense.OF_OBJECTS), min_size=1, max_size=4))
    def ask_nonsense(self, which: int, kinds: list[Nonsense]) -> None:
        """A request that cannot be served changes nothing."""
        for what in kinds:
            self.refused(what, self.address(which), None)
        self.look(self.address(which))

    @_with_uploads
    @rule(which=_WHICH_UPLOAD, kinds=st.lists(st.sampled_from(nonsense.OF_UPLOADS), min_size=1, max_size=4))
    def ask_nonsense_of_an_upload(self, which: int, kinds: list[Nonsense]) -> None:
        """Nor does it change an upload, or the object."""
        upload = self.upload(which)
        for what in kinds:
            self.refused(what, upload.address, upload)
        self.look(upload.address)
        self.listed(upload, None)

    @rule(which=_WHICH_ADDRESS, sent=st.sampled_from([0, 1, 64, 99]), framing=st.sampled_from(["length", "chunked"]))
    def put_less_than_announced(self, which: int, sent: int, framing: str) -> None:
        """A body that ends too early stores nothing."""
        address = self.address(which)
        self.cut_off("PUT", target(address), sent, framing)
        self.look(address)

    @_with_uploads
    @rule(which=_WHICH_UPLOAD, number=st.integers(1, LIMITS.parts_max), sent=st.sampled_from([0, 1, 64, 99]))
    def part_less_than_announced(self, which: int, number: int, sent: int) -> None:
        """Nor does a part."""
        upload = self.upload(which)
        self.cut_off("PUT", upload_target(upload, ":parts", part_number=number), sent, "length")
        self.listed(upload, None)

    @precondition(lambda self: self.model.objects)
    @rule()
    def look_at_everything(self) -> None:
        """Nothing but what was asked for has changed anything."""
        for address in list(self.model.objects):
            self.look(address)

    def teardown(self) -> None:
        """Everything is as the model says; and after some time there is nothing that no row points to."""
        try:
            if hasattr(self, "model") and sys.exception() is None:
                type(self).examples += 1
                self.look_at_everything()
                self.server.run(self._check_no_orphans())
                self.server.check_nothing_failed()
        finally:
            if self.connection is not None:
                self.server.run(self.connection.close())
            if hasattr(self, "deployment"):
                self.server.run(self.deployment.aclose())
                if self.directory is not None:
                    self.directory.cleanup()

    async def _check_no_orphans(self) -> None:
        server, stores = self.server, self.server.deployment.stores
        for _ in range(_SETTLED_SWEEPS_MAX):
            server.clock.advance(_SETTLED_SECONDS)
            await server.deployment.tiering.sweeper.run_once()
            await server.deployment.settle()
        rows = await stores.high_volume.scan("", None, 10_000)
        live = {row.row.content.revision for row in rows if isinstance(row.row.content, Tombstone)}
        blobs = {blob.revision.uuid for blob in await stores.long_term.list("", None, 10_000)}
        assert blobs == live, "blobs and the rows that point to them differ"
        assert await stores.changelog.list(None, 10) == [], "the change log is not empty"
        if server.deployment.blobs is not None:
            assert not server.deployment.blobs.uploads, "there are uploads that nobody knows of"

    # Helpers

    def address(self, which: int) -> Address:
        """One of the few that are asked for."""
        return self.known[which % len(self.known)]

    def upload(self, which: int) -> Upload:
        """One of the latest uploads."""
        return self.uploads[which % len(self.uploads)]

    def payload(self, size: int) -> bytes:
        """Bytes that no other write has, as far as so many can differ."""
        self.writes += 1
        return (f"{self.writes}:".encode() * (size // 2 + 1))[:size]

    def advance(self, micros: int) -> None:
        """Let time pass, to the microsecond."""
        self.model.now += micros
        self.server.clock.advance(micros / MICROS)
        self.server.clock.set_now(self.model.now)

    def look(self, address: Address, *, everything: bool = False) -> None:
        """GET the object: it is what the model says."""
        found = self.model.visible(address)
        answer = self.ask("GET", target(address, everything=everything))
        assert answer.status == (404 if found is None else 200), f"{address}: {found}"
        if found is not None:
            check_object_headers(found, answer.headers)
            assert answer.body == found.payload
            self.model.accessed(address)

    def begun(self, answer: Response, address: Address, given: Given) -> None:
        """``answer`` tells of a new upload; of too many the oldest is left to itself."""
        assert answer.status == 200
        assert sorted(answer.json) == ["key", "upload_id"]
        assert answer.json["key"] == address.key
        upload_id = str(answer.json["upload_id"])
        assert quote(upload_id, safe="") == upload_id
        assert len(upload_id) < 200
        self.model.initiate(address, given, upload_id)
        self.uploads = [self.model.uploads[upload_id], *self.uploads][:_UPLOADS_MAX]

    def refused(self, what: Nonsense, address: Address, upload: Upload | None) -> None:
        """Ask it, and get one of the answers that fit."""
        request = what.request(address, upload)
        answer = self.ask(request.method, request.target, request.headers, request.body, request.framing)
        assert answer.status in what.statuses, f"{what.name}: {answer}"

    def ask(
        self,
        method: str,
        to: str,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes | None = None,
        framing: str = "length",
    ) -> Response:
        """One request and its answer, on the example's connection while it can be used. Nothing is left under way."""
        return self.server.run(self._ask(method, to, list(headers), body, framing))

    async def _ask(
        self, method: str, to: str, headers: list[tuple[str, str]], body: bytes | None, framing: str
    ) -> Response:
        self.steps[method] += 1
        if self.connection is None:
            self.connection = await self.server.connect()
        await self.connection.send(sent_as(method, to, headers, body, framing))
        answer = await self.connection.response(bodiless=method == "HEAD")
        check_form(method, answer)
        if answer.headers.get("connection") == "close":
            await self.connection.close()
            self.connection = None
        await self.server.deployment.settle()
        return answer

    def at_once(self, requests: Sequence[tuple[str, str, Iterable[tuple[str, str]], bytes]]) -> list[Response]:
        """Requests at the same instant, each on a connection of its own."""

        async def one(method: str, to: str, headers: Iterable[tuple[str, str]], body: bytes) -> Response:
            async with await self.server.connect() as connection:
                return await connection.request(method, to, headers, body)

        async def all_of_them() -> list[Response]:
            answers = await asyncio.gather(*(one(*request) for request in requests))
            await self.server.deployment.settle()
            return answers

        self.steps["POST"] += len(requests)
        return self.server.run(all_of_them())

    def cut_off(self, method: str, to: str, sent: int, framing: str) -> None:
        """Announce 100 bytes, send fewer, and go away."""

        async def go() -> None:
            async with await self.server.connect() as connection:
                if framing == "length":
                    start = head(method, to, [("content-length", "100")])
                else:
                    start = head(method, to, [("transfer-encoding", "chunked")]) + b"64\r\n"
                await connection.send(start + b"x" * sent)
                connection.writer.write_eof()
                async with asyncio.timeout(CLIENT_SECONDS_MAX):
                    answer = await connection.reader.read()
                assert not answer.startswith(b"HTTP/1.1 2"), answer
            await self.server.deployment.settle()

        self.steps[method] += 1
        self.server.run(go())


def machine_for(fuzzed: FuzzedServer, *, on_disk: bool = False) -> type[HttpMachine]:
    """The machine that asks this server."""

    class Machine(HttpMachine):
        """As `HttpMachine`."""

        server = fuzzed
        embedded = on_disk
        steps: ClassVar[Counter[str]] = Counter()

    return Machine
