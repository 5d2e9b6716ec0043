"""One tenant against another, on a real server and its stores: what the one has, the other neither sees nor changes.

Names are hostile, and so are the ways in which they are written: each example has two tenants with tokens of their own,
things that belong to the one (objects of both tiers, an upload in progress), and a dozen requests of the other one that
aim at them.
"""

import contextlib
import hashlib
import http.client
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import quote

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tests.http.credentials import ALL, b64
from tierstore.admission.keys import new_key_pair, private_key_of
from tierstore.admission.signing import mint_token, presign_url
from tierstore.clock import SystemClock
from tierstore.limits import KIB, Limits
from tierstore.testing.hostile import HOSTILE_KEYS
from tierstore.testing.server import HOST, ServerProcess
from tierstore.types.ids import ObjectId, Scope, parse_scopes
from tierstore.types.permissions import ALL_PERMISSIONS

KID = "isolation"
PRIVATE_PEM, PUBLIC_PEM = new_key_pair()
PRIVATE = private_key_of(PRIVATE_PEM)
SECRET = "belongs-to-the-other-tenant"
SMALL = f"{SECRET} small".encode()
LARGE = f"{SECRET} large".encode() + bytes(2 * KIB)
PART = f"{SECRET} part".encode()
_KEY_BYTES_MAX = 300
"""Of keys here: an address names several."""

USECASES = st.sampled_from(("media", "Media", "media2", "med-ia", "med_ia", "objects", "___", "m" * 64))
WORDS = st.sampled_from(
    ("org", "Org", "org2", "objects", "_", "1", "01", "17", "a", "A", "(", "$", "!", "+", "'", "-" * 9)
)
SCOPES = st.lists(st.builds(Scope, WORDS, WORDS), max_size=3).map(tuple)
PIECES = st.sampled_from(
    ("..", ".", "", "objects", "org.1", "org=1", "media", "_", "%2e%2e", "%2F", ";", "\0", "\u00e9", "e\u0301", "K",
     "\u212a", "?upload_id=1", "#", "a b", "\uff0f", "\u2024\u2024", "x" * 100,
     "00000000-0000-8000-8000-000000000007")
)  # fmt: skip
KEYS = st.one_of(
    st.lists(PIECES, min_size=1, max_size=4).map("/".join),
    st.sampled_from(HOSTILE_KEYS),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
).filter(lambda key: 0 < len(key.encode()) <= _KEY_BYTES_MAX)


@dataclass(frozen=True)
class Tenant:
    """A place, and a token that is good for it alone; ``granted`` are the scopes that the token names."""

    usecase: str
    scopes: tuple[Scope, ...]
    granted: tuple[tuple[str, str], ...]

    @property
    def place(self) -> str:
        """The first two segments of its addresses."""
        return f"{self.usecase}/{_written(self.scopes)}"

    @property
    def token(self) -> str:
        """What permits it everything, in its place."""
        return mint_token(
            PRIVATE,
            KID,
            usecase=self.usecase,
            scopes=dict(self.granted),
            permissions=ALL_PERMISSIONS,
            now=SystemClock().now(),
            valid_seconds=600,
            claims={},
        )

    def may(self, usecase: str, scopes: tuple[Scope, ...]) -> bool:
        """Whether its token is for this place, by the rule of the protocol."""
        granted = dict(self.granted)
        return usecase == self.usecase and all(granted.get(scope.name) in {scope.value, "*"} for scope in scopes)


def _written(scopes: tuple[Scope, ...]) -> str:
    return ";".join(f"{scope.name}={scope.value}" for scope in scopes) or "_"


@st.composite
def tenants(draw: st.DrawFn) -> Tenant:
    """A tenant whose token is for its own scopes: by value, by ``*``, or for more of them."""
    scopes = draw(SCOPES)
    more = draw(st.lists(st.tuples(WORDS, WORDS), max_size=2))
    granted = dict([*more, *((scope.name, scope.value) for scope in scopes)])
    for name in draw(st.sets(st.sampled_from(sorted(granted)))) if granted else ():
        granted[name] = "*"
    usecase = draw(USECASES)
    tenant = Tenant(usecase, scopes, tuple(granted.items()))
    assume(tenant.may(usecase, scopes))  # not if one name has two values
    return tenant


@st.composite
def spelt(draw: st.DrawFn, text: str) -> str:
    """``text`` in the path of a request: what has to be is percent-encoded, and some of the rest, in either case."""
    style = draw(st.sampled_from(("least", "least", "all", "lower", "twice")))
    if style == "least":
        return quote(text, "/:@!$&'()*+,;=~")
    every = "".join(f"%{byte:02X}" for byte in text.encode())
    return every.lower() if style == "lower" else quote(every) if style == "twice" else every


AIMS = (
    "{family}/{theirs}/{key}",
    "{family}/{theirs}/{key}?upload_id={upload}&part_number=1",
    "{family}/{own}/{key}?upload_id={upload}&part_number=1",
    "{family}/{own}/../{theirs}/{key}?upload_id={upload}",
    "{family}/{own}/../../{theirs}/{key}",
    "{family}/{own}/%2e%2e/%2e%2e/{theirs}/{key}",
    "{family}/{own}/..%2F..%2F{theirs}%2F{key}",
    "{family}/{own}%2F..%2F..%2F{theirs}/{key}",
    "{family}/{own};{scopes}/{key}",
    "{family}/{own}%3B{scopes}/{key}",
    "{family}/{own}%00/{key}",
    "{family}/{usecase}/{own_scopes}/{key}",
    "{family}/{own_usecase}/{scopes}/{key}",
    "{family}//{theirs}/{key}",
    "{family}/./{theirs}/{key}",
    "/{family}/{theirs}/{key}",
    "{family}/{own}//{key}",
    "{family}/{own}/{key}",
    "{family}/{own}/{stored}",
    "{family}/{stored}",
    "{family}/{own_usecase}/_/{stored_below}",
    "{family}/{own_usecase}/_/{scopes}/{key}",
    "http://{host}{family}/{theirs}/{key}",
    "{family}/{theirs}/",
    "{family}/{own}/?upload_id={upload}",
)
FAMILIES = (
    "/v1/objects",
    "/v1/objects",
    "/v1/objects:multipart",
    "/v1/objects:multipart:parts",
    "/v1/objects:multipart:complete",
    "/v1/objects:batch",
    "/v1/%6fbjects",
)
METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "COPY")


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: str
    body: bytes


class Wire:
    """A connection to the server, opened again when the server has closed it."""

    def __init__(self, server: ServerProcess) -> None:
        self._connection = http.client.HTTPConnection(HOST, server.port, timeout=20)

    def ask(self, method: str, target: str, token: str | None, body: bytes = b"", **headers: str) -> Answer:
        """One request."""
        self._connection.putrequest(method, target, skip_accept_encoding=True)
        for name, value in headers.items():
            self._connection.putheader(name.replace("_", "-"), value)
        if token is not None:
            self._connection.putheader("x-os-auth", token)
        self._connection.putheader("content-length", str(len(body)))
        self._connection.endheaders(body)
        with self._connection.getresponse() as response:
            return Answer(response.status, str(response.getheaders()), response.read())

    def close(self) -> None:
        """Close it."""
        self._connection.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that enforces authentication, and for which large objects begin at 1 KiB."""
    key = {"max_permissions": list(ALL), "public_keys": [PUBLIC_PEM.decode()]}
    config: dict[str, dict[str, object]] = {"auth": {"keys": {KID: key}}, "tiering": {"inline_max": KIB}}
    with ServerProcess(tmp_path_factory.mktemp("data"), auth=True, config=config) as process:
        yield process


class Belongings:
    """What a tenant has: two objects, and an upload in progress of a third one."""

    def __init__(self, wire: Wire, owner: Tenant, key: str) -> None:
        self._wire = wire
        self._token = owner.token
        self._owner = owner
        self.small, self.large, self.begun = key, f"{key}/large", f"{key}/begun"
        for name, payload in ((self.small, SMALL), (self.large, LARGE)):
            assert self._ask("PUT", name, payload, x_snme_owner=SECRET).status == 200
        begun = json.loads(self._ask("PUT", self.begun, family="/v1/objects:multipart", x_snme_owner=SECRET).body)
        self.upload: str = begun["upload_id"]
        stored = self._ask(
            "PUT", self.begun, PART, "/v1/objects:multipart:parts", f"?upload_id={self.upload}&part_number=1"
        )
        self.etag: str = json.loads(stored.body)["etag"]

    def check(self) -> None:
        """All of it is as it was, and the upload can be completed."""
        for name, payload in ((self.small, SMALL), (self.large, LARGE)):
            self._check(name, payload)
        document = json.dumps({"parts": [{"part_number": 1, "etag": self.etag}]}).encode()
        query = f"?upload_id={self.upload}"
        completed = self._ask("POST", self.begun, document, "/v1/objects:multipart:complete", query)
        assert json.loads(completed.body) == {"key": self.begun}
        self._check(self.begun, PART)

    def remove(self) -> None:
        """Leave nothing for the next example."""
        for name in (self.small, self.large, self.begun):
            assert self._ask("DELETE", name).status == 204

    def _check(self, name: str, payload: bytes) -> None:
        found = self._ask("GET", name)
        assert (found.status, found.body) == (200, payload)
        assert f"('x-snme-owner', '{SECRET}')" in found.headers

    def _ask(
        self, method: str, name: str, body: bytes = b"", family: str = "/v1/objects", query: str = "", **headers: str
    ) -> Answer:
        target = f"{family}/{self._owner.place}/{quote(name, '/')}{query}"
        return self._wire.ask(method, target, self._token, body, **headers)


def _target(
    owner: Tenant, intruder: Tenant, things: Belongings, aim: str, family: str, name: str, spell: Callable[[str], str]
) -> str:
    """The target of a request: ``aim``, with the names of both tenants in it as ``spell`` writes them."""
    stored = ObjectId(owner.usecase, owner.scopes, name).storage_path
    return aim.format(
        family=family,
        host=HOST,
        theirs="/".join(spell(segment) for segment in owner.place.split("/")),
        own=intruder.place,
        key=spell(name),
        upload=things.upload,
        usecase=owner.usecase,
        scopes=_written(owner.scopes),
        own_usecase=intruder.usecase,
        own_scopes=_written(intruder.scopes),
        stored=quote(stored),
        stored_below=quote(stored.partition("/")[2]),
    )


@settings(max_examples=40)
@given(owner=tenants(), intruder=tenants(), key=KEYS, data=st.data())
@example(
    owner=Tenant("media", (Scope("org", "1"),), (("org", "1"),)),
    intruder=Tenant("media", (Scope("org", "17"),), (("org", "17"),)),
    key="k",
    data=None,
)
def test_a_tenant_has_nothing_of_another(
    server: ServerProcess, owner: Tenant, intruder: Tenant, key: str, data: st.DataObject | None
) -> None:
    """Whatever a tenant asks for, the objects of another keep their bytes and metadata, and it sees none of them."""
    assume(not intruder.may(owner.usecase, owner.scopes))
    with contextlib.closing(Wire(server)) as wire:
        things = Belongings(wire, owner, key)
        token = intruder.token
        document = json.dumps({"parts": [{"part_number": 1, "etag": things.etag}]}).encode()
        for method, family, aim, name, spell in _asked(data, things):
            target = _target(owner, intruder, things, aim, family, name, spell)
            answer = wire.ask(method, target, token, document if "complete" in family else b"intruded")
            _check_unseen(answer, things)
        things.check()
        things.remove()


def _asked(data: st.DataObject | None, things: Belongings) -> Iterator[tuple[str, str, str, str, Callable[[str], str]]]:
    """What is asked for: a dozen of all requests there are; or each of them, written in the ordinary way."""
    if data is None:
        for method, family, aim in itertools.product(METHODS, FAMILIES, AIMS):
            yield method, family, aim, things.begun if "multipart" in family else things.small, quote
        return
    names = st.sampled_from((things.small, things.large, things.begun))
    for _ in range(12):
        method, family, aim, name = data.draw(
            st.tuples(st.sampled_from(METHODS), st.sampled_from(FAMILIES), st.sampled_from(AIMS), names)
        )
        yield method, family, aim, name, lambda text: data.draw(spelt(text))


def _check_unseen(answer: Answer, things: Belongings) -> None:
    assert SECRET.encode() not in answer.body
    assert SECRET not in answer.headers
    assert things.etag.encode() not in answer.body
    assert answer.status < 500 or answer.status == 501, answer


def _tenant(place: str) -> Tenant:
    """Whose place it is, with a token for just that; for any value of a scope that the place names twice."""
    usecase, _, scopes = place.partition("/")
    parsed = parse_scopes(scopes)
    pairs = [(scope.name, scope.value) for scope in parsed]
    names = [scope.name for scope in parsed]
    return Tenant(usecase, parsed, tuple((name, value if names.count(name) == 1 else "*") for name, value in pairs))


@pytest.mark.parametrize(
    ("owner", "intruder"),
    [
        ("media/org=1", "Media/org=1"),
        ("media/org=1", "media2/org=1"),
        ("media/org=a", "media/org=A"),
        ("media/org=1", "media/Org=1"),
        ("media/org=1", "media/org=01"),
        ("media/org=1", "media/org=17"),
        ("media/org=17", "media/org=1"),
        ("media/org=1", "media/project=1"),
        ("media/org=1;project=2", "media/org=1"),
        ("media/org=1;project=2", "media/org=2;project=1"),
        ("media/org=1;project=2", "media/project=2"),
        ("media/org=1;org=2", "media/org=1"),
        ("media/_=_", "media/_"),
        ("media/objects=org", "media/org=objects"),
    ],
)
def test_neighbours_are_strangers(server: ServerProcess, owner: str, intruder: str) -> None:
    """Names that differ by a letter, its case, or where they stand, are different: every request is 403, or is none."""
    with contextlib.closing(Wire(server)) as wire:
        theirs, own = _tenant(owner), _tenant(intruder)
        things = Belongings(wire, theirs, "key")
        token = own.token
        for method, family in itertools.product(METHODS, FAMILIES):
            for name in (things.small, things.begun):
                target = f"{family}/{owner}/{name}?upload_id={things.upload}&part_number=1"
                answer = wire.ask(method, target, token, b"intruded")
                assert answer.status in {403, 404, 405}, (method, target, answer)
                assert answer.status == 403 or "%" in family or answer.status == 405 or "batch" in family
                _check_unseen(answer, things)
        things.check()
        things.remove()


@settings(max_examples=30)
@given(owner=tenants(), intruder=tenants(), key=KEYS, data=st.data())
def test_a_link_is_for_one_object(
    server: ServerProcess, owner: Tenant, intruder: Tenant, key: str, data: st.DataObject
) -> None:
    """Whoever has a pre-signed URL of one object can read that one, and makes no URL of another out of it."""
    assume(owner.place != intruder.place)
    with contextlib.closing(Wire(server)) as wire:
        things = Belongings(wire, owner, key)
        base = f"http://{HOST}:{server.port}"
        own = f"/v1/objects/{intruder.place}/{quote(key, '/')}"
        theirs = f"/v1/objects/{owner.place}/{data.draw(spelt(things.small))}"
        assert wire.ask("PUT", own, intruder.token, b"own").status == 200
        link = presign_url(
            PRIVATE, KID, base + own, method="GET", now=SystemClock().now(), valid_seconds=60, limits=Limits()
        ).removeprefix(base)
        path, _, query = link.partition("?")
        parameters, _, signature = query.rpartition("&os_sig=")
        assert wire.ask("GET", link, None).body == b"own"
        forged = b64(hashlib.sha512(PUBLIC_PEM).digest())
        for target in (
            f"{theirs}?{query}",
            f"{theirs}?{parameters}&os_sig={forged}",
            f"{path}/../../../{owner.place}/{quote(key, '/')}?{query}",
            f"{theirs}?{query}&os_path={path}",
            f"{theirs}?x={link}",
            f"{theirs}?{parameters}&OS_SIG={signature}",
            f"{theirs}%3F{query}",
            f"{path}%2F..%2F{theirs}?{query}",
        ):
            for method in ("GET", "HEAD", "PUT", "DELETE", "POST"):
                _check_unseen(wire.ask(method, target, None, b"intruded"), things)
        for method in ("PUT", "DELETE", "POST", "PATCH"):
            assert wire.ask(method, link, None, b"intruded").status in {403, 405}
        assert wire.ask("GET", link, None).body == b"own"
        things.check()
        things.remove()
        assert wire.ask("DELETE", own, intruder.token).status == 204
