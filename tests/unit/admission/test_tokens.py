"""Verified tokens are remembered: within bounds, by digest, until they expire."""

import time

import pytest

from tests.http.credentials import ALL, LEEWAY_SECONDS, NOW_SECONDS, Signer, StandingClock, access_of, good_claims
from tierstore.admission.keys import KeyDirectory, verifying_key
from tierstore.admission.tokens import TokenVerifier
from tierstore.clock import SystemClock, UnixMicros
from tierstore.errors import Unauthenticated, UnreadableCredentials
from tierstore.limits import KEY_VERSIONS_MAX, Limits

SIGNER = Signer("kid")


def _verifier(clock: SystemClock | None = None, cached_max: int = 4, keys: KeyDirectory | None = None) -> TokenVerifier:
    access = access_of(SIGNER)
    return TokenVerifier(
        keys or access.keys,
        audiences=access.audiences,
        issuers=access.issuers,
        leeway_seconds=LEEWAY_SECONDS,
        clock=clock or StandingClock(),
        limits=Limits(tokens_cached_max=cached_max),
    )


def test_a_token_is_verified_once() -> None:
    """The same token again is the same grant, from memory; another one is another."""
    verifier = _verifier()
    first = verifier.verify(SIGNER.token())
    assert verifier.verify(SIGNER.token(jti="2")) is not first
    assert verifier.cached == 2


def test_the_memory_is_bounded() -> None:
    """Beyond its bound the token that was not used for longest is forgotten, and verified again when it comes."""
    verifier = _verifier(cached_max=3)
    tokens = [SIGNER.token(jti=str(number)) for number in range(4)]
    grants = [verifier.verify(token) for token in tokens[:3]]
    assert verifier.verify(tokens[0]) is grants[0]
    verifier.verify(tokens[3])
    assert verifier.cached == 3
    assert verifier.verify(tokens[0]) is grants[0]
    assert verifier.verify(tokens[2]) is grants[2]
    assert verifier.verify(tokens[1]) is not grants[1]
    for number in range(100):
        verifier.verify(SIGNER.token(jti=f"more {number}"))
    assert verifier.cached == 3


def test_what_is_refused_is_not_remembered() -> None:
    """Bad tokens take no place in the memory."""
    verifier = _verifier()
    for token, error in (
        ("x", UnreadableCredentials),
        (Signer("kid").token(), Unauthenticated),
        (SIGNER.token(exp=1), Unauthenticated),
        (SIGNER.token(exp="x"), UnreadableCredentials),
    ):
        with pytest.raises(error):
            verifier.verify(token)
    assert verifier.cached == 0


def test_an_expired_token_is_forgotten() -> None:
    """When a remembered token has expired, its place is free again, and the key's id is known for the log."""
    clock = StandingClock()
    verifier = _verifier(clock)
    token = SIGNER.token(exp=NOW_SECONDS + 1)
    verifier.verify(token)
    clock.seconds += 1 + LEEWAY_SECONDS
    with pytest.raises(Unauthenticated) as refusal:
        verifier.verify(token)
    assert (verifier.cached, refusal.value.kid) == (0, "kid")


@pytest.mark.parametrize("name", ["nbf", "iat"])
def test_a_remembered_token_is_not_valid_before_its_time(name: str) -> None:
    """The clock was ahead and is set right: a token that was verified meanwhile is refused until it is valid."""
    clock = StandingClock()
    verifier = _verifier(clock)
    token = SIGNER.token(good_claims() | {name: NOW_SECONDS})
    grant = verifier.verify(token)
    clock.seconds = NOW_SECONDS - LEEWAY_SECONDS - 0.001
    with pytest.raises(Unauthenticated, match="not valid yet") as refusal:
        verifier.verify(token)
    assert refusal.value.kid == "kid"
    clock.seconds = NOW_SECONDS - LEEWAY_SECONDS
    assert verifier.verify(token) is grant


class _CountedClock(StandingClock):
    """A clock that counts how often it is read."""

    reads = 0

    def now(self) -> UnixMicros:
        self.reads += 1
        return super().now()


def test_time_is_looked_at_each_time() -> None:
    """A remembered token is held against the time of its request."""
    clock = _CountedClock()
    verifier = _verifier(clock)
    for _ in range(3):
        verifier.verify(SIGNER.token())
    assert clock.reads == 3


def test_refusals_do_not_repeat_the_token() -> None:
    """No message holds a part of what was refused."""
    for token in (
        SIGNER.token(exp=1),
        Signer("kid").token(),
        SIGNER.token(aud="elsewhere" * 9),
        "secret.secret.secret",
    ):
        with pytest.raises((Unauthenticated, UnreadableCredentials)) as refused:
            _verifier().verify(token)
        assert not any(part in str(refused.value) for part in [*token.split("."), "elsewhere"])


def _cpu_seconds(verifier: TokenVerifier, token: str) -> float:
    """What refusing ``token`` costs, at the best of several times."""
    spent = []
    for _ in range(8):
        begun = time.process_time()
        for _ in range(10):
            with pytest.raises(Unauthenticated):
                verifier.verify(token)
        spent.append(time.process_time() - begun)
    return min(spent)


@pytest.mark.parametrize(
    "header",
    [b'"a": ' + b"1" * 4200, b", ".join(b'"%d": 1' % number for number in range(500))],
    ids=["digits", "members"],
)
def test_a_strangers_token_costs_little_more_than_its_signatures(header: bytes) -> None:
    """Whoever has no key cannot make refusing expensive: the token is read once, however many versions its key has."""
    versions = [Signer("kid").public_pem for _ in range(KEY_VERSIONS_MAX)]
    verifier = _verifier(keys=KeyDirectory([verifying_key("kid", versions, ALL)]))
    plain = SIGNER.token()
    laden = SIGNER.token(header=b'{"alg": "EdDSA", "kid": "kid", ' + header + b"}")
    assert _cpu_seconds(verifier, laden) < 2 * _cpu_seconds(verifier, plain)
