"""The hostile corpus: requests with credentials that are wrong in some way, or right to the limit, and their statuses.

Each case is one request; the object ``/v1/objects/testing/org=1/k`` is there. A case that expects 200 or 204 shows that
its neighbours are refused for their own reason.
"""

import hashlib
import hmac
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from tests.http.credentials import LEEWAY_SECONDS, NOW_SECONDS, Signer, b64, good_claims

PATH = "/v1/objects/testing/org=1/k"
BASE = "/v1/objects/testing"
DAYS_7 = 604_800


@dataclass(frozen=True)
class Case:
    """A request, and the status that answers it."""

    name: str
    status: int
    target: str = PATH
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Keys:
    """Who signs: ``known`` may do all, ``reader`` only read, ``writer`` only write; nobody knows ``stranger``."""

    known: Signer
    reader: Signer
    writer: Signer
    stranger: Signer


def corpus(keys: Keys) -> list[Case]:
    """All cases."""
    cases = [
        *_sources(keys),
        *_algorithms(keys),
        *_key_ids(keys),
        *_forms(keys),
        *_claims(keys),
        *_times(keys),
        *_parties(keys),
        *_scopes(keys),
        *_permissions(keys),
        *_presigned_forms(keys),
        *_presigned_times(keys),
        *_presigned_requests(keys),
        *_presigned_paths(keys),
    ]
    assert len({case.name for case in cases}) == len(cases), "each case has a name of its own"
    return cases


def _bearing(name: str, status: int, token: str, target: str = PATH, method: str = "GET") -> Case:
    return Case(name, status, target, method, (("x-os-auth", f"Bearer {token}"),))


def _sources(keys: Keys) -> Iterator[Case]:
    good, bad = keys.known.token(), keys.stranger.token()
    yield Case("nothing", 400)
    for prefix in ("Bearer ", "bearer ", "BEARER ", "BeArEr   "):
        yield Case(f"x-os-auth, {prefix!r}", 200, headers=(("x-os-auth", prefix + good),))
        yield Case(f"authorization, {prefix!r}", 200, headers=(("authorization", prefix + good),))
    yield Case("x-os-auth, no scheme", 200, headers=(("x-os-auth", good),))
    yield Case("authorization, no scheme", 400, headers=(("authorization", good),))
    for scheme in ("Basic", "Digest", "Bearerx", "Token", "JWT", "Bearer:"):
        yield Case(f"authorization, {scheme}", 400, headers=(("authorization", f"{scheme} {good}"),))
    yield Case(
        "authorization of another scheme, and os_auth",
        200,
        f"{PATH}?os_auth={good}",
        headers=(("authorization", "Basic eDp5"),),
    )
    for empty in ("", " ", "Bearer", "Bearer ", "Bearer  "):
        yield Case(f"x-os-auth {empty!r}", 400, headers=(("x-os-auth", empty),))
        yield Case(
            f"x-os-auth {empty!r} is not made up for",
            400,
            headers=(("x-os-auth", empty), ("authorization", f"Bearer {good}")),
        )
    yield Case("x-os-auth first, bad", 401, headers=(("x-os-auth", bad), ("authorization", f"Bearer {good}")))
    yield Case("x-os-auth first, good", 200, headers=(("x-os-auth", good), ("authorization", f"Bearer {bad}")))
    yield Case(
        "authorization before the query", 401, f"{PATH}?os_auth={good}", headers=(("authorization", f"Bearer {bad}"),)
    )
    yield Case("x-os-auth twice", 400, headers=(("x-os-auth", good), ("x-os-auth", good)))
    yield Case(
        "authorization twice", 400, headers=(("authorization", f"Bearer {good}"), ("Authorization", f"Bearer {good}"))
    )
    yield Case("two tokens in one header", 400, headers=(("x-os-auth", f"{good}, {good}"),))
    yield Case("os_auth", 200, f"{PATH}?os_auth={good}")
    yield Case("os_auth among others", 200, f"{PATH}?a=b&os_auth={good}&c")
    yield Case("os_auth percent-encoded", 200, f"{PATH}?os_auth={good.replace('.', '%2E')}")
    yield Case("os_auth twice encoded", 400, f"{PATH}?os_auth={good.replace('.', '%252E')}")
    yield Case("os_auth twice", 400, f"{PATH}?os_auth={good}&os_auth={good}")
    yield Case("os_auth with a scheme", 400, f"{PATH}?os_auth=Bearer%20{good}")
    for name in ("OS_AUTH", "os%5Fauth", "os_auth%00", "auth", "access_token", "os-auth"):
        yield Case(f"the parameter {name}", 400, f"{PATH}?{name}={good}")
    for value in ("", "%", "%zz", "%FF", "null"):
        yield Case(f"os_auth {value!r}", 400, f"{PATH}?os_auth={value}")
    yield Case("os_auth without a value", 400, f"{PATH}?os_auth")
    for header in ("x-os-authorization", "proxy-authorization", "cookie", "x-forwarded-authorization"):
        yield Case(f"the header {header}", 400, headers=((header, f"Bearer {good}"),))


def _algorithms(keys: Keys) -> Iterator[Case]:
    kid = keys.known.kid
    for name in (
        "none",
        "None",
        "NONE",
        "nOnE",
        "HS256",
        "HS384",
        "HS512",
        "RS256",
        "PS256",
        "ES256",
        "ES256K",
        "Ed25519",
        "Ed448",
        "EDDSA",
        "eddsa",
        "EdDSA ",
        " EdDSA",
        "EdDSA\x00",
        "",
        "dir",
        "A128KW",
    ):
        header = {"alg": name, "kid": kid}
        yield _bearing(f"alg {name!r}, signed all the same", 401, keys.known.token(header=header))
        yield _bearing(f"alg {name!r}, no signature", 401, keys.known.token(header=header, sign=partial(_fixed, b"")))
    public = keys.known.public_pem.encode()
    raw = keys.known.private.public_key().public_bytes_raw()
    for digest in ("sha256", "sha384", "sha512"):
        header = {"alg": f"HS{digest[3:]}", "kid": kid}
        for what, secret in (("PEM", public), ("PEM, stripped", public.strip()), ("raw", raw), ("empty", b"")):
            signed = keys.known.token(header=header, sign=partial(_mac, secret, digest))
            yield _bearing(f"{digest} with the public key as the secret, {what}", 401, signed)
    header = {"alg": "EdDSA", "kid": kid}
    for what, signature in (
        ("a MAC", hmac.new(public, b"x", hashlib.sha512).digest()),
        ("zeros", bytes(64)),
        ("ones", b"\xff" * 64),
        ("nothing", b""),
        ("one byte", b"\x00"),
        ("63 bytes", bytes(63)),
        ("65 bytes", bytes(65)),
        ("the identity", b"\x01" + bytes(63)),
    ):
        yield _bearing(
            f"the signature is {what}", 401, keys.known.token(header=header, sign=partial(_fixed, signature))
        )
    yield _bearing(
        "the signature is right, but for a multiple of the group's order",
        401,
        keys.known.token(sign=partial(_shifted, keys.known)),
    )
    values: tuple[Any, ...] = (None, 1, True, ["EdDSA"], {"alg": "EdDSA"})
    for value in values:
        yield _bearing(f"alg is {value!r}", 400, keys.known.token(header={"alg": value, "kid": kid}))
    yield _bearing("no alg", 400, keys.known.token(header={"kid": kid}))
    stranger = keys.stranger
    own = {"kty": "OKP", "crv": "Ed25519", "x": b64(stranger.private.public_key().public_bytes_raw())}
    for name, hint in (
        ("jwk", own),
        ("jku", "http://127.0.0.1/keys"),
        ("x5u", "http://127.0.0.1/x"),
        ("x5c", [b64(b"x")]),
        ("x5t", "x"),
    ):
        yield _bearing(f"a header with {name} of a stranger", 401, stranger.token(header={**header, name: hint}))
        yield _bearing(f"a header with {name} that has no effect", 200, keys.known.token(header={**header, name: hint}))
    extensions: tuple[dict[str, Any], ...] = (
        {"crit": ["b64"], "b64": False},
        {"crit": ["exp"]},
        {"crit": []},
        {"b64": False},
        {"b64": True},
        {"crit": "x"},
    )
    for extension in extensions:
        yield _bearing(f"a header with {extension}", 400, keys.known.token(header={**header, **extension}))


def _mac(secret: bytes, digest: str, text: bytes) -> bytes:
    return hmac.new(secret, text, digest).digest()


def _shifted(signer: Signer, text: bytes) -> bytes:
    """Another signature that satisfies the equation of RFC 8032, section 5.1.7, with a scalar that it forbids."""
    signature = signer.private.sign(text)
    scalar = int.from_bytes(signature[32:], "little") + 2**252 + 27742317777372353535851937790883648493
    return signature[:32] + scalar.to_bytes(32, "little")


def _fixed(signature: bytes, _text: bytes) -> bytes:
    return signature


def _key_ids(keys: Keys) -> Iterator[Case]:
    kid = keys.known.kid
    for value in ("", None, 1, 1.5, True, [kid], {"kid": kid}, "k" * 129, kid * 100):
        yield _bearing(
            f"kid is {str(value)[:20]!r} ({type(value).__name__})",
            400,
            keys.known.token(header={"alg": "EdDSA", "kid": value}),
        )
    yield _bearing("no kid", 400, keys.known.token(header={"alg": "EdDSA"}))
    for value in (
        f"{kid} ",
        f" {kid}",
        kid.upper(),
        f"{kid}\x00",
        f"{kid}/",
        f"./{kid}",
        f"{kid}.public.pem",
        "../known",
        "/dev/null",
        "/etc/passwd",
        "../../../../dev/null",
        "' OR '1'='1",
        "x' UNION SELECT 'key",
        "$(id)",
        "`id`",
        "|id",
        "*",
        "%6bnown",
        "known\nknown",
        "known%00",
        "__class__",
        "0",
        "null",
        "кnown",
        "ｋnown",
        "known\u200b",
        "k" * 128,
        "\ud7ff",
    ):
        yield _bearing(f"kid {value!r}", 401, keys.known.token(header={"alg": "EdDSA", "kid": value}))
    yield _bearing("another known kid", 401, keys.known.token(header={"alg": "EdDSA", "kid": keys.reader.kid}))
    yield _bearing("a stranger under a known kid", 401, keys.stranger.token(header={"alg": "EdDSA", "kid": kid}))
    yield _bearing("a stranger", 401, keys.stranger.token())


def _forms(keys: Keys) -> Iterator[Case]:
    good = keys.known.token()
    head, body, signature = good.split(".")
    for name, token in (
        ("no dots", head + body + signature),
        ("one dot", f"{head}.{body}"),
        ("three dots", f"{good}."),
        ("five parts", f"{good}.{body}.{signature}"),
        ("only dots", ".."),
        ("a dot first", f".{good}"),
        ("text", "hello"),
        ("no header", f".{body}.{signature}"),
        ("padding", f"{head}=.{body}.{signature}"),
        ("padding of the signature", f"{good}=="),
        ("a space within", good.replace(".", " .", 1)),
        ("a tab within", f"{head}\t.{body}.{signature}"),
        ("plain base64", f"{head}.{body[:-2]}+/.{signature}"),
        ("not ASCII", f"{head}.{body}\xe9.{signature}"),
        ("a comma", f"{good},"),
        ("quotes", f'"{good}"'),
        ("JSON form", '{"payload":"x","signatures":[]}'),
        ("8 KiB and more", keys.known.token(more="x" * 8192)),
        ("an empty header", f"{b64(b'')}.{body}.{signature}"),
        ("a null header", f"{b64(b'null')}.{body}.{signature}"),
        ("a list for a header", f"{b64(b'[]')}.{body}.{signature}"),
        ("a header that is no JSON", f"{b64(b'{')}.{body}.{signature}"),
        ("a header of bytes", f"{b64(bytes([0xFF, 0xFE]))}.{body}.{signature}"),
        ("a nested header", f"{b64(b'[' * 5000)}.{body}.{signature}"),
        ("UTF-16", f"{b64('{}'.encode('utf-16'))}.{body}.{signature}"),
        ("a byte order mark", f"{b64(bytes([0xEF, 0xBB, 0xBF]) + b'{}')}.{body}.{signature}"),
    ):
        yield _bearing(f"form: {name}", 400, token)
    for name, token in (
        ("payload of another token", f"{head}.{b64(good_claims() | {'permissions': []})}.{signature}"),
        ("no payload", f"{head}..{signature}"),
        ("an empty signature", f"{head}.{body}."),
        ("a signature of the payload alone", f"{head}.{body}.{b64(keys.known.private.sign(body.encode()))}"),
        ("a signature that is cut", f"{head}.{body}.{signature[:80]}"),
        ("a signature that is cut by half", f"{head}.{body}.{signature[:40]}"),
        ("the payload is cut", f"{head}.{body[: len(body) // 4 * 4 - 4]}.{signature}"),
        (
            "the header is spelt otherwise",
            f"{b64({'kid': keys.known.kid, 'alg': 'EdDSA', 'typ': 'JWT'})}.{body}.{signature}",
        ),
        ("a bit of the signature", f"{head}.{body}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}"),
    ):
        yield _bearing(f"changed: {name}", 401, token)
    yield _bearing("changed: the last bits, which mean nothing", 400, good[:-1] + chr(ord(good[-1]) + 1))
    raw = json.dumps(good_claims()).encode()
    for name, claims in (
        ("exp twice", raw[:-1] + b',"exp":9999999999}'),
        ("res twice", raw[:-1] + b',"res":{"os:usecase":"testing"}}'),
        ("permissions twice", raw[:-1] + b',"permissions":["object.read"]}'),
        ("a scope twice", raw.replace(b'"org": "1"', b'"org": "2", "org": "1"')),
        ("the usecase twice", raw.replace(b'"os:usecase"', b'"os:usecase": "other", "os:usecase"')),
        ("the usecase twice, escaped", raw.replace(b'"os:usecase"', b'"os:usecase": "other", "os\\u003ausecase"')),
        ("NaN", raw.replace(b"1800000060", b"NaN")),
        ("Infinity", raw.replace(b"1800000060", b"Infinity")),
        ("more after it", raw + b"{}"),
        ("cut", raw[:-1]),
        ("empty", b""),
        ("null", b"null"),
        ("a list", b"[]"),
        ("a text", b'"x"'),
        ("a number", b"1"),
        ("not UTF-8", raw.replace(b"testing", b"test\xff")),
        ("nested", b'{"a":' * 1000 + b"1" + b"}" * 1000),
        ("single quotes", raw.replace(b'"', b"'")),
        ("a comment", raw + b"//"),
        ("5000 digits", raw.replace(b"1800000060", b"1" * 5000)),
        ("1e400", raw.replace(b"1800000060", b"1e400")),
        ("400 digits", raw.replace(b"1800000060", b"1" * 400)),
    ):
        yield _bearing(f"claims: {name}", 400, keys.known.token(claims))
    header = json.dumps({"alg": "EdDSA", "kid": keys.known.kid}).encode()
    for name, doubled in (
        ("alg twice", b'{"alg":"none",' + header[1:]),
        ("kid twice", b'{"kid":"stranger",' + header[1:]),
    ):
        yield _bearing(f"header: {name}", 400, keys.known.token(header=doubled))


def _claims(keys: Keys) -> Iterator[Case]:
    wrong: dict[str, tuple[Any, ...]] = {
        "exp": (None, "1800000060", True, False, [], {}, "soon"),
        "nbf": ("0", True, [], {}),
        "iat": ("0", False, []),
        "res": (
            None,
            "testing",
            [],
            ["testing"],
            {},
            1,
            True,
            {"org": "1"},
            {"os:usecase": 1},
            {"os:usecase": None},
            {"os:usecase": ["testing"]},
            {"os:usecase": "testing", "org": 1},
            {"os:usecase": "testing", "org": None},
            {"os:usecase": "testing", "org": ["1"]},
            {"os:usecase": "testing", "org": {"any": True}},
            {"os:usecase": "testing", "org": True},
        ),
        "permissions": (
            None,
            "object.read",
            {"object.read": True},
            [1],
            [None],
            [["object.read"]],
            ["object.read", 1],
            7,
            True,
        ),
        "aud": (1, None, {}, [1], True),
        "iss": (1, ["sentry"], {}, True),
    }
    for name, values in wrong.items():
        for value in values:
            if value is None and name in {"aud", "iss"}:
                continue  # left out, which is allowed
            what = "is left out" if value is None else f"is {json.dumps(value)}"
            yield _bearing(f"{name} {what}", 400, keys.known.token(**{name: value}))
    claims = good_claims()
    for name in ("exp", "res", "permissions", "aud", "iss", "nbf"):
        yield _bearing(f"{name} is null", 400, keys.known.token(claims | {name: None}))
    yield _bearing("claims that nobody knows", 200, keys.known.token(sub="x", jti="1", admin=True, scope="*"))


def _times(keys: Keys) -> Iterator[Case]:
    for name, status, changed in (
        ("it expires at the end of the leeway", 401, {"exp": NOW_SECONDS - LEEWAY_SECONDS}),
        ("it expired within the leeway", 200, {"exp": NOW_SECONDS - LEEWAY_SECONDS + 1}),
        ("it expired a fraction within the leeway", 200, {"exp": NOW_SECONDS - LEEWAY_SECONDS + 0.001}),
        ("it expires now", 200, {"exp": NOW_SECONDS}),
        ("it expired yesterday", 401, {"exp": NOW_SECONDS - 86_400}),
        ("it expired at the epoch", 401, {"exp": 0}),
        ("it expired before the epoch", 401, {"exp": -1}),
        ("it expires in milliseconds", 200, {"exp": NOW_SECONDS * 1000}),
        ("it expires at the end of the leeway, written as a float", 401, {"exp": float(NOW_SECONDS - LEEWAY_SECONDS)}),
        ("it begins at the end of the leeway", 200, {"nbf": NOW_SECONDS + LEEWAY_SECONDS}),
        ("it begins after the leeway", 401, {"nbf": NOW_SECONDS + LEEWAY_SECONDS + 1}),
        ("it begins a fraction after the leeway", 401, {"nbf": NOW_SECONDS + LEEWAY_SECONDS + 0.5}),
        ("it begins tomorrow", 401, {"nbf": NOW_SECONDS + 86_400}),
        ("it began", 200, {"nbf": 0}),
        ("it was issued at the end of the leeway", 200, {"iat": NOW_SECONDS + LEEWAY_SECONDS}),
        ("it was issued in the future", 401, {"iat": NOW_SECONDS + LEEWAY_SECONDS + 1}),
        ("it was issued long ago", 200, {"iat": 1}),
    ):
        yield _bearing(name, status, keys.known.token(**changed))


def _parties(keys: Keys) -> Iterator[Case]:
    for audience, status in (
        ("objectstore", 200),
        (["objectstore"], 200),
        (["other", "objectstore"], 200),
        ("other", 401),
        (["other"], 401),
        ([], 401),
        ("", 401),
        ("Objectstore", 401),
        ("objectstore ", 401),
        ("objectstores", 401),
        ("object", 401),
        ("*", 401),
    ):
        yield _bearing(f"aud is {audience!r}", status, keys.known.token(aud=audience))
    for issuer, status in (
        ("sentry", 200),
        ("relay", 200),
        ("other", 401),
        ("", 401),
        ("Sentry", 401),
        ("sentry,relay", 401),
        ("*", 401),
        ("sentry\x00", 401),
    ):
        yield _bearing(f"iss is {issuer!r}", status, keys.known.token(iss=issuer))


def _scopes(keys: Keys) -> Iterator[Case]:
    def granting(resources: dict[str, str]) -> str:
        return keys.known.token(res={"os:usecase": "testing", **resources})

    present = f"{BASE}/org=1/k"
    for usecase in (
        "other",
        "*",
        "",
        "test",
        "testing2",
        "Testing",
        "TESTING",
        "testing ",
        "testing/",
        "testing\x00",
        "te*",
        "testin?",
        ".*",
    ):
        token = keys.known.token(res={"os:usecase": usecase, "org": "1"})
        yield _bearing(f"the usecase {usecase!r}", 403, token, present)
    for resources, status in (
        ({"org": "1"}, 200),
        ({"org": "*"}, 200),
        ({"org": "1", "project": "2"}, 200),
        ({}, 403),
        ({"org": ""}, 403),
        ({"org": "2"}, 403),
        ({"org": "11"}, 403),
        ({"org": "01"}, 403),
        ({"org": "1 "}, 403),
        ({"org": "1*"}, 403),
        ({"org": "**"}, 403),
        ({"org": "?"}, 403),
        ({"org": ".*"}, 403),
        ({"org": "[0-9]"}, 403),
        ({"org": "%2A"}, 403),
        ({"org": "1;org=2"}, 403),
        ({"org": "1/k"}, 403),
        ({"org": "1\x00"}, 403),
        ({"or": "1"}, 403),
        ({"orgs": "1"}, 403),
        ({"ORG": "1"}, 403),
        ({"*": "*"}, 403),
        ({"*": "1"}, 403),
        ({"": "1"}, 403),
        ({"org=1": "*"}, 403),
        ({"org ": "1"}, 403),
        ({"project": "1"}, 403),
        ({"_": "*"}, 403),
        ({"os:scope": "*"}, 403),
        ({"org": "１"}, 403),
    ):
        yield _bearing(f"the grant {resources}", status, granting(resources), present)
    for path, resources, status in (
        ("org=1;project=2/k", {"org": "1", "project": "2"}, 404),
        ("org=1;project=2/k", {"project": "2", "org": "1"}, 404),
        ("org=1;project=2/k", {"org": "1"}, 403),
        ("org=1;project=2/k", {"org": "1", "project": "3"}, 403),
        ("org=1;project=2/k", {"org": "*", "project": "*"}, 404),
        ("org=1;project=2/k", {"org": "*"}, 403),
        ("org=11/k", {"org": "1"}, 403),
        ("org=1;org=2/k", {"org": "1"}, 403),
        ("org=2;org=1/k", {"org": "1"}, 403),
        ("org=1;org=1/k", {"org": "1"}, 404),
        ("org=2/k", {"org": "1"}, 403),
        ("org=2/org=1/k", {"org": "1"}, 403),
        ("org=2/../org=1/k", {"org": "1"}, 403),
        ("org=1/../org=2/k", {"org": "1"}, 404),
        ("org=1/..%2Forg=2/k", {"org": "1"}, 404),
        ("org%3D2/k", {"org": "1"}, 403),
        ("org%3D1/k", {"org": "1"}, 200),
        ("org=%31/k", {"org": "1"}, 200),
        ("org=%32/k", {"org": "1"}, 403),
        ("org=%2531/k", {"org": "1"}, 400),
        ("org=*/k", {"org": "*"}, 400),
        ("org=1%3Bproject=2/k", {"org": "1"}, 403),
        ("org=1%2Fk", {"org": "1"}, 400),
        ("org=1;/k", {"org": "1"}, 400),
        ("Org=1/k", {"org": "1"}, 403),
        ("_/k", {"org": "1"}, 404),
        ("_/k", {}, 404),
        ("os:usecase=testing/k", {"org": "1"}, 400),
    ):
        yield _bearing(f"{path} with {resources}", status, granting(resources), f"{BASE}/{path}")
    for path in ("other/org=1/k", "Testing/org=1/k", "testing2/org=1/k", "test%49ng/org=1/k"):
        yield _bearing(f"another usecase, {path}", 403, keys.known.token(), f"/v1/objects/{path}")
    yield _bearing("a usecase that is no word", 400, keys.known.token(), "/v1/objects/testing%2Forg=1/x/k")


def _permissions(keys: Keys) -> Iterator[Case]:
    for names, status in (
        (["object.read"], 200),
        ([], 403),
        (["object.write"], 403),
        (["object.delete"], 403),
        (["object.write", "object.delete"], 403),
        (["*"], 403),
        (["object.*"], 403),
        (["object"], 403),
        (["read"], 403),
        (["OBJECT.READ"], 403),
        (["object.read "], 403),
        (["object.reads"], 403),
        (["object.read,object.write"], 403),
        (["admin"], 403),
        (["object.admin", "object.read"], 200),
        (["object.read"] * 50, 200),
    ):
        yield _bearing(
            f"the permissions {names if len(names) < 9 else 'again and again'}",
            status,
            keys.known.token(permissions=names),
        )
    for method, status in (
        ("PUT", 403),
        ("DELETE", 403),
        ("POST", 405),
        ("PATCH", 403),
        ("HEAD", 204),
        ("GET", 200),
        ("OPTIONS", 405),
    ):
        yield _bearing(f"{method} by a key that may only read", status, keys.reader.token(), method=method)
    yield _bearing("GET by a key that may only write", 403, keys.writer.token())
    yield _bearing("DELETE by a key that may only write", 403, keys.writer.token(), method="DELETE")
    for header in ("x-http-method-override", "x-http-method", "x-method-override"):
        token = keys.known.token(permissions=["object.read"])
        yield Case(f"{header} changes nothing", 200, headers=(("x-os-auth", token), (header, "DELETE")))


def _presigned_forms(keys: Keys) -> Iterator[Case]:
    known = keys.known
    good = known.presigned(PATH)
    yield Case("pre-signed", 200, good)
    yield Case("pre-signed HEAD", 204, good, "HEAD")
    for name in ("os_kid", "os_timestamp", "os_duration"):
        parameter = next(pair for pair in good.partition("?")[2].split("&") if pair.startswith(name))
        yield Case(f"pre-signed without {name}", 400, good.replace(f"{parameter}&", ""))
        yield Case(f"pre-signed with {name} twice", 400, good.replace("?", f"?{parameter}&"))
        yield Case(
            f"pre-signed with {name} twice, in two spellings",
            400,
            good.replace("?", f"?{parameter.replace('os_', 'OS_')}&"),
        )
        yield Case(f"pre-signed with {name} without a value", 400, good.replace(parameter, name))
    base, _, signature = good.rpartition("os_sig=")
    yield Case("pre-signed without os_sig", 400, base.rstrip("&"))
    yield Case("pre-signed with os_sig twice", 400, f"{good}&os_sig={signature}")
    yield Case("pre-signed with OS_SIG beside os_sig", 400, f"{good}&OS_SIG={signature}")
    yield Case("pre-signed with OS_SIG", 200, f"{base}OS_SIG={signature}")
    yield Case("pre-signed with os%5Fsig", 400, f"{base}os%5Fsig={signature}")
    for name, changed, status in (
        ("empty", "", 400),
        ("padded", f"{signature}==", 400),
        ("padded, encoded", f"{signature}%3D%3D", 400),
        ("cut", signature[:-1], 400),
        ("cut by 4", signature[:-4], 400),
        ("longer", f"{signature}AAAA", 400),
        ("plain base64", f"+/{signature[2:]}", 400),
        ("hex", "ab" * 64, 400),
        ("zeros", b64(bytes(64)), 401),
        ("of another", keys.stranger.signature("GET", PATH, "x"), 401),
        ("with a space", f"{signature}%20", 400),
        ("a bit off", ("B" if signature[0] == "A" else "A") + signature[1:], 401),
        ("percent-encoded", f"%{ord(signature[0]):02x}{signature[1:]}", 200),
        ("malformed", f"%zz{signature[3:]}", 400),
        ("last bits off", signature[:-1] + chr(ord(signature[-1]) + 1), 400),
        ("null", "null", 400),
    ):
        yield Case(f"os_sig is {name}", status, f"{base}os_sig={changed}")
    for kid, status in (
        ("nobody", 401),
        ("Known", 401),
        ("known%00", 401),
        ("known%20", 401),
        ("..%2Fknown", 401),
        ("k" * 129, 400),
        ("%ff", 400),
        (keys.reader.kid, 401),
    ):
        yield Case(f"pre-signed under the kid {kid[:20]}", status, known.presigned(PATH, kid=kid))
    yield Case("pre-signed with the kid encoded", 200, known.presigned(PATH, kid="%6b" + known.kid[1:]))
    yield Case("pre-signed by a stranger", 401, keys.stranger.presigned(PATH))
    yield Case("pre-signed by a stranger under a known kid", 401, keys.stranger.presigned(PATH, kid=known.kid))
    yield Case("pre-signed by a key that may only read", 200, keys.reader.presigned(PATH))
    yield Case("pre-signed by a key that may only write", 403, keys.writer.presigned(PATH))
    for method in ("PUT", "DELETE", "PATCH"):
        yield Case(f"pre-signed {method}", 403, known.presigned(PATH, method=method), method)
        yield Case(f"pre-signed GET, used for {method}", 403, good, method)
        yield Case(f"{method} with an empty os_sig", 403, f"{PATH}?os_sig=", method)
        yield Case(
            f"{method} with a token, and os_sig", 403, f"{PATH}?os_sig=x", method, (("x-os-auth", known.token()),)
        )
    yield Case(
        "a good token does not mend a bad signature",
        401,
        f"{base}os_sig={b64(bytes(64))}",
        headers=(("x-os-auth", known.token()),),
    )
    yield Case("a bad token does not spoil a good signature", 200, good, headers=(("x-os-auth", "x"),))
    yield Case("signed as HEAD by its name", 401, known.presigned(PATH, method="HEAD"), "HEAD")
    yield Case("signed as get, in lower case", 401, known.presigned(PATH, method="get"))


def _presigned_times(keys: Keys) -> Iterator[Case]:
    known = keys.known
    for name, status, early, duration in (
        ("60 s before its timestamp", 200, 60, 600),
        ("a bit more than 60 s before", 401, 60.001, 600),
        ("61 s before", 401, 61, 600),
        ("in a year", 401, 365 * 86_400, 600),
        ("at its end", 200, -600, 600),
        ("a bit after its end", 401, -600.001, 600),
        ("after its end", 401, -601, 600),
        ("of no duration, now", 200, 0, 0),
        ("of no duration, later", 401, -1, 0),
        ("of 7 days, at its end", 200, -DAYS_7, DAYS_7),
        ("of 7 days, after its end", 401, -DAYS_7 - 1, DAYS_7),
        ("of more than 7 days", 400, 0, DAYS_7 + 1),
        ("of digits without end", 400, 0, "9" * 30),
        ("of seconds with a sign", 400, 0, "+600"),
        ("of less than nothing", 400, 0, -1),
        ("of half a second", 400, 0, "0.5"),
        ("of 1e3 seconds", 400, 0, "1e3"),
        ("of 10m", 400, 0, "10m"),
        ("of no number", 400, 0, "x"),
        ("of hexadecimal seconds", 400, 0, "0x10"),
        ("of seconds with a space", 400, 0, "%20600"),
        ("of Arabic digits", 400, 0, "%D9%A6"),
        ("of nothing", 400, 0, ""),
        ("of seconds with zeros in front", 200, 0, "0600"),
        ("of encoded seconds", 200, 0, "%36%30%30"),
        ("of 1_000 seconds", 400, 0, "1_000"),
    ):
        yield Case(f"pre-signed, {name}", status, known.presigned(PATH, early_seconds=early, duration=duration))
    for stamp, status in (
        ("2027-01-15T08:00:00Z", 200),
        ("2027-01-15t08:00:00z", 200),
        ("2027-01-15T08:00:00.000000Z", 200),
        ("2027-01-15T08%3A00%3A00Z", 200),
        ("2027-01-15T10:00:00+02:00", 200),
        ("2027-01-15T10:00:00%2B02:00", 200),
        ("2027-01-15T06:00:00-02:00", 200),
        ("2027-01-15T08:00:00", 400),
        ("2027-01-15", 400),
        ("1800000000", 400),
        ("20270115T080000Z", 400),
        ("2027-13-15T08:00:00Z", 400),
        ("2027-01-32T08:00:00Z", 400),
        ("2027-01-15T24:00:00Z", 400),
        ("0000-01-15T08:00:00Z", 400),
        ("2027-01-15T08:00:00+99:00", 400),
        ("now", 400),
        ("", 400),
        ("2027-01-15T08:00:00ZZ", 400),
        ("%202027-01-15T08:00:00Z", 400),
        ("9999-12-31T23:59:59Z", 401),
        ("0001-01-01T00:00:00Z", 401),
        ("2027-01-15T08:00:00%5a", 200),
        ("2027-01-15T08:00:00%zz", 400),
    ):
        yield Case(f"os_timestamp is {stamp!r}", status, known.presigned(PATH, timestamp=stamp))


def _presigned_requests(keys: Keys) -> Iterator[Case]:
    known = keys.known
    good = known.presigned(PATH)
    yield Case("a parameter is added", 401, f"{good}&a=b")
    yield Case("a parameter is added in front", 401, good.replace("?", "?a=b&"))
    yield Case("a name is added", 401, f"{good}&a")
    yield Case("os_auth is added", 401, f"{good}&os_auth=x")
    yield Case("the order is another", 200, f"{PATH}?{'&'.join(reversed(good.partition('?')[2].split('&')))}")
    yield Case("empty parameters are added", 200, f"{good.replace('?', '?&&')}&")
    yield Case("names are in upper case", 200, good.replace("os_kid", "OS_KID").replace("os_duration", "Os_Duration"))
    yield Case("the duration is longer", 401, good.replace("os_duration=600", "os_duration=601"))
    yield Case("the timestamp is later", 401, good.replace("08:00:00", "08:00:01"))
    yield Case("the timestamp is spelt otherwise", 401, good.replace("08:00:00", "08%3A00%3A00"))
    yield Case("the kid is another", 401, good.replace("os_kid=known", f"os_kid={keys.reader.kid}"))
    with_query = known.presigned(PATH, query="a=b&C=d&e")
    yield Case("parameters are signed", 200, with_query)
    for name, changed in (
        ("a value is another", with_query.replace("a=b", "a=c")),
        ("a value is spelt otherwise", with_query.replace("a=b", "a=%62")),
        ("a value has another case", with_query.replace("C=d", "C=D")),
        ("a parameter is gone", with_query.replace("a=b&", "")),
        ("a parameter is there twice", with_query.replace("a=b", "a=b&a=b")),
        ("a name gets a value", with_query.replace("&e&", "&e=&")),
        ("a name is encoded", with_query.replace("a=b", "%61=b")),
    ):
        yield Case(f"of the signed parameters, {name}", 401, changed)
    yield Case("of the signed parameters, a name has another case", 200, with_query.replace("C=d", "c=d"))
    parts = "/v1/objects:multipart:parts/testing/org=1/k"
    yield Case("pre-signed, a list of parts", 403, known.presigned(parts, query="upload_id=x"))
    yield Case(
        "pre-signed, for another address of the same object",
        401,
        good.replace("/v1/objects/", "/v1/objects:multipart:parts/"),
    )


def _presigned_paths(keys: Keys) -> Iterator[Case]:
    known = keys.known
    query = known.presigned(PATH).partition("?")[2]
    for path in (
        "/v1/objects/testing/org=1/%6b",
        "/v1/objects/testing/org=1/%6B",
        "/v1/objects/testing/org=1/K",
        "/v1/objects/testing/org=1/k/",
        "/v1/objects/testing/org=1//k",
        "/v1/objects/testing/org=1/./k",
        "/v1/objects/testing/org=1/x/../k",
        "/v1/objects/testing/org=1/k2",
        "/v1/objects/testing/org=1/k%00",
        "/v1/objects/testing/org=1/k%20",
        "/v1/objects/testing/org=2/k",
        "/v1/objects/testing/org%3D1/k",
        "/v1/objects/testing/_/k",
        "/v1/objects/testing/org=1;project=2/k",
        "/v1/objects/other/org=1/k",
        "/v1/objects/test%69ng/org=1/k",
    ):
        yield Case(f"the signature of another path, for {path}", 401, f"{path}?{query}")
    for path, status in (
        ("org=1/%6b", 200),
        ("org=1/k", 200),
        ("org%3D1/k", 200),
        ("org=1/a%2Fb", 404),
        ("org=1/a/b", 404),
        ("org=1/a%252Fb", 404),
        ("org=1/%F0%9F%8D%95", 404),
        ("org=1/..%2F..%2Forg=2%2Fk", 404),
        ("org=1/a+b", 404),
        ("org=1/a%20b", 404),
        ("org=1/%FF", 400),
        ("org=1/%zz", 400),
        ("org=2/k", 404),
        ("_/k", 404),
    ):
        yield Case(f"signed as it is, {path}", status, known.presigned(f"{BASE}/{path}"))
    slash, escaped = known.presigned(f"{BASE}/org=1/a/b"), known.presigned(f"{BASE}/org=1/a%2Fb")
    yield Case("a slash, signed as itself and sent encoded", 401, slash.replace("a/b", "a%2Fb"))
    yield Case("a slash, signed encoded and sent as itself", 401, escaped.replace("a%2Fb", "a/b"))
    yield Case("an escape in another case", 401, escaped.replace("%2F", "%2f"))
    yield Case(
        "an escape decoded once too often", 401, known.presigned(f"{BASE}/org=1/a%252Fb").replace("%252F", "%2F")
    )
    yield Case("a key with a question mark", 404, known.presigned(f"{BASE}/org=1/a%3Fb"))
    yield Case(
        "a path that ends early",
        401,
        known.presigned(f"{BASE}/org=1/a%3Fos_x=1").replace("%3F", "?").replace("1?os_kid", "1&os_kid"),
    )
