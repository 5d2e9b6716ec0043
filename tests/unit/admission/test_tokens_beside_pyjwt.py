"""Tokens as another library reads them: whatever is taken here, it takes as well."""

import json
import time
from typing import Any

import jwt
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from tests.http.credentials import ALL, LEEWAY_SECONDS, Signer, access_of, b64
from tierstore.admission.tokens import ALGORITHM, TokenVerifier
from tierstore.clock import SystemClock
from tierstore.errors import TierstoreError
from tierstore.limits import Limits

SIGNER = Signer("kid")
ACCESS = access_of(SIGNER)
SECONDS = 5000
"""Far enough from now for both clocks to say the same."""
NOW = int(time.time())
CLAIMS = {"exp": NOW + SECONDS, "res": {"os:usecase": "testing", "org": "1"}, "permissions": list(ALL)}
HEADER = {"alg": ALGORITHM, "kid": "kid", "typ": "JWT"}

SCALARS = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, -1, NOW - SECONDS, NOW + SECONDS, NOW + 0.5 + SECONDS, 1e300, 10**30, str(NOW + SECONDS)])
    | st.sampled_from(
        ["", "kid", ALGORITHM, "none", "HS256", "eddsa", "objectstore", "sentry", "relay", "b64", "JWT", "exp"]
    )
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.just("x"), inner), max_leaves=3
)
CHANGES = st.dictionaries(
    st.sampled_from(["exp", "nbf", "iat", "aud", "iss", "sub", "jti", "res", "permissions", "crit"]), VALUES, max_size=2
)
HEADER_CHANGES = st.dictionaries(
    st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk", "jku", "x5c", "enc", "zip"]), VALUES, max_size=1
)
TEXTS = st.sampled_from(["%s", " %s", "%s\n", "\ufeff%s", "[%s]", "%s%s", "%s,", "%s\x00"])
DIRT = st.sampled_from(
    ["=", "==", ".", " ", "\n", "\t", "+", "/", "-", "_", "A", "%3D", "\u00e9", "", "..", "\x00", "a.b"]
)


def verdict_here(token: str) -> str:
    """What this project says of a token: nothing, or why not."""
    verifier = TokenVerifier(
        ACCESS.keys,
        audiences=ACCESS.audiences,
        issuers=ACCESS.issuers,
        leeway_seconds=LEEWAY_SECONDS,
        clock=SystemClock(),
        limits=Limits(),
    )
    try:
        verifier.verify(token)
    except TierstoreError as refusal:
        return type(refusal).__name__
    return ""


def verdict_there(token: str) -> str:
    """What PyJWT says, asked for the same: parties are looked at where the token names some."""
    options: Any = {"require": ["exp"], "verify_aud": False}
    key = SIGNER.private.public_key()
    try:
        if jwt.get_unverified_header(token).get("kid") != SIGNER.kid:
            return "another key"
        claims = jwt.decode(token, key, [ALGORITHM], options=options, leeway=LEEWAY_SECONDS)
        if "aud" in claims:
            options = {"require": ["exp"]}
            jwt.decode(token, key, [ALGORITHM], options, audience=list(ACCESS.audiences), leeway=LEEWAY_SECONDS)
        if "iss" in claims:
            options = {"verify_aud": False}
            jwt.decode(token, key, [ALGORITHM], options, issuer=list(ACCESS.issuers), leeway=LEEWAY_SECONDS)
    except Exception as refusal:  # noqa: BLE001  # because what is refused with a fault of its own is refused, too
        return type(refusal).__name__
    return ""


def signed(header: str, claims: str) -> str:
    """A token with a good signature over these two texts, be they JSON or not."""
    text = f"{b64(header.encode())}.{b64(claims.encode())}"
    return f"{text}.{b64(SIGNER.private.sign(text.encode()))}"


def agree(token: str) -> None:
    """Fail if a token is taken here, and there it is not."""
    here, there = verdict_here(token), verdict_there(token)
    event("taken" if not here else "refused here alone" if not there else "refused")
    assert here or not there, f"taken here, and there {there}: {token}"


def test_a_good_token_is_taken_by_both() -> None:
    """Or what is below shows nothing."""
    for changes in ({}, {"aud": "objectstore"}, {"aud": ["x", "objectstore"], "iss": "sentry"}, {"nbf": NOW - SECONDS}):
        token = signed(json.dumps(HEADER), json.dumps(CLAIMS | changes))
        assert (verdict_here(token), verdict_there(token)) == ("", "")


@settings(max_examples=400, deadline=None)
@given(HEADER_CHANGES, CHANGES, TEXTS, TEXTS)
def test_what_is_signed_is_read_no_more_freely(
    header: dict[str, object], claims: dict[str, object], around_header: str, around_claims: str
) -> None:
    """Headers and claims of every type, well-formed or not, with a good signature."""
    texts = (json.dumps(HEADER | header), json.dumps(CLAIMS | claims))
    framed = [around.replace("%s", text) for around, text in zip((around_header, around_claims), texts, strict=True)]
    agree(signed(texts[0], texts[1]))
    agree(signed(texts[0], framed[1]))
    agree(signed(framed[0], texts[1]))


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2000), st.integers(0, 3), DIRT)
@example(10**6, 0, "=")
@example(10**6, 0, "\n")
@example(0, 0, " ")
def test_a_token_that_was_touched_is_read_no_more_freely(place: int, left_out: int, put_in: str) -> None:
    """A good token with something left out or put in anywhere: the last bits of each part, padding, white space."""
    token = signed(json.dumps(HEADER), json.dumps(CLAIMS))
    for position in {place % len(token), len(token), *(at for at, each in enumerate(token) if each == ".")}:
        agree(token[:position] + put_in + token[position + left_out :])
