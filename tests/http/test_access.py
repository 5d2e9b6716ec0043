"""Who may do what: every route with every permission and scope, and a corpus of hostile credentials."""

import itertools
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import structlog

from tests.http.credentials import ALL, LEEWAY_SECONDS, NOW_SECONDS, Signer, StandingClock, access_of
from tests.http.harness import LIMITS, Running, head, running
from tests.http.hostile_credentials import PATH, Keys, corpus
from tierstore.admission.authentication import Access
from tierstore.admission.keys import KeyDirectory, verifying_key
from tierstore.admission.rules import Rules
from tierstore.http.routes import Listed, ObjectRoutes
from tierstore.idsource import SystemIds
from tierstore.tasks import TaskOwner
from tierstore.types.permissions import Permission

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEYS = Keys(Signer("known"), Signer("reader"), Signer("writer"), Signer("stranger"))
CASES_MIN = 300


def _access(*, enforce: bool = True) -> Access:
    allowed = ((KEYS.known, ALL), (KEYS.reader, ["object.read"]), (KEYS.writer, ["object.write"]))
    keys = [verifying_key(signer.kid, [signer.public_pem], permissions) for signer, permissions in allowed]
    return Access(enforce=enforce, keys=KeyDirectory(keys), leeway_seconds=LEEWAY_SECONDS)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def guarded() -> AsyncIterator[Running]:
    """A server that enforces authentication, with one object, at a time that stands still."""
    async with running(access=_access(), clock=StandingClock()) as up:
        put = await up.request("PUT", PATH, [("x-os-auth", KEYS.known.token())], b"payload")
        assert put.status == 200
        yield up


def _bearer(token: str) -> list[tuple[str, str]]:
    return [("x-os-auth", f"Bearer {token}")]


async def test_hostile_credentials(guarded: Running) -> None:
    """Each of more than 300 requests has the status that it should have; none reaches a store that should not."""
    cases = corpus(KEYS)
    assert len(cases) >= CASES_MIN
    wrong = []
    for case in cases:
        before = len(guarded.script.trace)
        answer = await guarded.request(case.method, case.target, case.headers)
        if answer.status != case.status:
            wrong.append(f"{case.name}: {answer.status} in place of {case.status}: {answer.body!r}")
        if case.status in {400, 401, 403, 405} and len(guarded.script.trace) != before:
            wrong.append(f"{case.name}: a store was asked")
    assert not wrong, f"{len(wrong)} of {len(cases)}:\n" + "\n".join(wrong)
    assert (await guarded.request("GET", PATH, _bearer(KEYS.known.token()))).body == b"payload"


async def test_no_credential_is_written_down(guarded: Running) -> None:
    """No log line of any case holds a token, a signature, a part of one, or key material."""
    secrets: set[str] = {KEYS.known.public_pem.splitlines()[1]}
    with structlog.testing.capture_logs() as lines:
        for case in corpus(KEYS):
            await guarded.request(case.method, case.target, case.headers)
            given = [value for name, value in case.headers if "auth" in name] + [case.target.partition("?")[2]]
            parts = [
                part for text in given for part in text.replace("=", ".").replace("&", ".").replace(" ", ".").split(".")
            ]
            secrets.update(part for part in parts if len(part) > 40)
    assert len(secrets) > CASES_MIN
    written = "\n".join(str(line) for line in lines)
    assert written.count("'request'") >= CASES_MIN
    assert [secret for secret in secrets if secret in written and set(secret) != {"k"}] == []


def _routes() -> list[Listed]:
    return list(ObjectRoutes(LIMITS, TaskOwner(1, lambda *_: None), SystemIds()).listed())


def _name(listed: Listed) -> str:
    query = f"?{listed.query}" if listed.query else ""
    return f"{listed.method} {listed.prefix.decode()}…{'/key' if listed.names_object else ''}{query}"


async def test_every_route_names_its_permission() -> None:
    """The permission that each route needs is the protocol's; another route has no place here before it is added."""
    read, write, delete = Permission.READ, Permission.WRITE, Permission.DELETE
    assert {_name(listed): listed.route.permission for listed in _routes()} == {
        "POST /v1/objects/…": write,
        "GET /v1/objects/…/key": read,
        "HEAD /v1/objects/…/key": read,
        "PUT /v1/objects/…/key": write,
        "DELETE /v1/objects/…/key": delete,
        "PATCH /v1/objects/…/key": write,
        "POST /v1/objects:batch/…": None,
        "POST /v1/objects:multipart/…": write,
        "PUT /v1/objects:multipart/…/key": write,
        "DELETE /v1/objects:multipart/…/key": write,
        "PUT /v1/objects:multipart:parts/…/key": write,
        "GET /v1/objects:multipart:parts/…/key": write,
        "POST /v1/objects:multipart:complete/…/key": write,
        "POST /v1/objects/…?upload_type=resumable": write,
        "PUT /v1/objects/…/key?upload_type=resumable": write,
        "PUT /v1/objects/…/key?session=": write,
        "DELETE /v1/objects/…/key?session=": write,
    }


_GRANTS = {
    "the usecase and all scopes": ({"os:usecase": "testing", "org": "1", "project": "2"}, True),
    "any value": ({"os:usecase": "testing", "org": "*", "project": "*"}, True),
    "more scopes than asked for": ({"os:usecase": "testing", "org": "1", "project": "2", "team": "3"}, True),
    "another usecase": ({"os:usecase": "other", "org": "1", "project": "2"}, False),
    "a scope less": ({"os:usecase": "testing", "org": "1"}, False),
    "another value": ({"os:usecase": "testing", "org": "1", "project": "3"}, False),
    "no scopes": ({"os:usecase": "testing"}, False),
}


@pytest.mark.parametrize("listed", _routes(), ids=_name)
async def test_every_route_with_every_permission_and_scope(guarded: Running, listed: Listed) -> None:
    """A request is let in exactly if its token grants the usecase, every scope, and the route's permission."""
    target = (
        listed.prefix.decode()
        + "testing/org=1;project=2/"
        + ("key" if listed.names_object else "")
        + f"?{listed.query or 'upload_id=x&part_number=1'}"
    )
    needed = listed.route.permission
    subsets = itertools.chain.from_iterable(itertools.combinations(ALL, count) for count in range(4))
    tried = 0
    async with guarded.connect() as connection:
        for permissions, (resources, covers) in itertools.product(list(subsets), _GRANTS.values()):
            token = KEYS.known.token(res=resources, permissions=list(permissions))
            answer = await connection.request(listed.method, target, _bearer(token), b"")
            admitted = covers and (needed is None or needed in permissions)
            assert (answer.status != 403) is admitted, (permissions, resources, answer)
            assert answer.status in {200, 400, 403, 404, 501} or listed.route.operation in {"put", "delete"}, answer
            assert answer.status not in {401, 429, 500}, answer
            tried += 1
    assert tried == 8 * len(_GRANTS)


@pytest.mark.parametrize("listed", _routes(), ids=_name)
async def test_a_presigned_url_reads_and_does_nothing_else(guarded: Running, listed: Listed) -> None:
    """However a request to any route is signed, only those that read one object are let in, if the key may read."""
    path = f"{listed.prefix.decode()}testing/org=1/{'absent' if listed.names_object else ''}"
    for signer, may_read in ((KEYS.known, True), (KEYS.reader, True), (KEYS.writer, False)):
        for signed_as in {listed.method, "GET"}:
            target = signer.presigned(path, method=signed_as, query="upload_id=x&part_number=1")
            answer = await guarded.request(listed.method, target, (), b"x")
            expected = 404 if may_read and listed.route.permission is Permission.READ else 403
            if signed_as == "HEAD":  # which the protocol writes as GET
                expected = 401
            assert answer.status == expected, (signer.kid, signed_as, answer)


async def test_max_permissions_cap_the_token(guarded: Running) -> None:
    """A key grants no more than it may, whatever it signs."""
    for signer, method, status in (
        (KEYS.reader, "GET", 200),
        (KEYS.reader, "PUT", 403),
        (KEYS.reader, "DELETE", 403),
        (KEYS.writer, "GET", 403),
        (KEYS.writer, "PUT", 200),
    ):
        target = PATH if method == "GET" else f"{PATH}-capped"
        assert (await guarded.request(method, target, _bearer(signer.token()), b"x")).status == status


async def test_a_key_that_is_taken_out_is_out_at_once() -> None:
    """After a reload no token of a key that is gone is taken, though it had been verified; nor a signature of it."""
    old, new = Signer("old"), Signer("new")
    async with running(access=access_of(old), clock=StandingClock()) as server:
        token, presigned = old.token(), old.presigned(f"{PATH}")
        assert (await server.request("PUT", PATH, _bearer(token), b"x")).status == 200
        assert (await server.request("GET", presigned)).status == 200
        server.gate.replace(access_of(new), Rules())
        assert (await server.request("GET", PATH, _bearer(token))).status == 401
        assert (await server.request("GET", presigned)).status == 401
        assert (await server.request("GET", PATH, _bearer(new.token()))).status == 200


async def test_versions_of_a_key() -> None:
    """While a key is rotated, what either version has signed is taken; afterwards only the new one's."""
    before, after = Signer("rotated"), Signer("rotated")
    both = Access(keys=KeyDirectory([verifying_key("rotated", [before.public_pem, after.public_pem], ALL)]))
    async with running(access=both, clock=StandingClock()) as server:
        for signer in (before, after):
            assert (await server.request("PUT", PATH, _bearer(signer.token()), b"x")).status == 200
            assert (await server.request("GET", signer.presigned(PATH))).status == 200
        server.gate.replace(access_of(after), Rules())
        assert (await server.request("GET", PATH, _bearer(before.token()))).status == 401
        assert (await server.request("GET", PATH, _bearer(after.token()))).status == 200


async def test_a_token_expires_while_it_is_remembered() -> None:
    """A remembered token is refused from the instant at which it has expired."""
    clock = StandingClock()
    async with running(access=access_of(KEYS.known), clock=clock) as server:
        token = KEYS.known.token(exp=NOW_SECONDS + 5)
        assert (await server.request("PUT", PATH, _bearer(token), b"x")).status == 200
        clock.seconds = NOW_SECONDS + 5 + LEEWAY_SECONDS - 0.001
        assert (await server.request("GET", PATH, _bearer(token))).status == 200
        clock.seconds = NOW_SECONDS + 5 + LEEWAY_SECONDS
        assert (await server.request("GET", PATH, _bearer(token))).status == 401


async def test_without_enforcement_the_log_tells_what_would_fail() -> None:
    """All is let through; each request that enforcement would refuse has a line, with the reason and the key's id."""
    async with running(access=_access(enforce=False), clock=StandingClock()) as server:
        with structlog.testing.capture_logs() as lines:
            good = KEYS.known.token()
            for headers in (
                [],
                _bearer("x"),
                _bearer(KEYS.stranger.token()),
                _bearer(KEYS.reader.token()),
                _bearer(good),
            ):
                assert (await server.request("PUT", PATH, headers, b"x")).status == 200
            assert (await server.request("DELETE", f"{PATH}?os_sig=x")).status == 204
        refusals = [
            (line["passed_over"].partition(":")[0], line.get("kid"))
            for line in lines
            if line["event"] == "request" and "passed_over" in line
        ]
        assert refusals == [
            ("UnreadableCredentials", None),
            ("UnreadableCredentials", None),
            ("Unauthenticated", "stranger"),
            ("Forbidden", "reader"),
            ("Forbidden", None),
        ]


async def test_the_log_says_who(guarded: Running) -> None:
    """The line of a request has the key's id, admitted or refused."""
    with structlog.testing.capture_logs() as lines:
        await guarded.request("GET", PATH, _bearer(KEYS.known.token()))
        await guarded.request("DELETE", PATH, _bearer(KEYS.reader.token()))
        await guarded.request("GET", PATH, _bearer(KEYS.stranger.token()))
    assert [(line["kid"], line["status"]) for line in lines if line["event"] == "request"] == [
        ("known", 200),
        ("reader", 403),
        ("stranger", 401),
    ]


async def test_a_refusal_reads_nothing_of_the_body(guarded: Running) -> None:
    """A client that waits for 100 Continue is told of its missing permission first."""
    async with guarded.connect() as connection:
        token = KEYS.known.token(permissions=["object.read"])
        waiting = [*_bearer(token), ("content-length", "1000000"), ("expect", "100-continue")]
        await connection.send(head("PUT", PATH, waiting))
        refused = await connection.response()
        assert (refused.status, refused.informational) == (403, [])
