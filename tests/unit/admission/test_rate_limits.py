"""Laws of `tierstore.admission.rate_limits`: which buckets a request and its bytes use."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore.admission.buckets import BucketTable
from tierstore.admission.conditions import Condition
from tierstore.admission.rate_limits import Bandwidth, Rate, RateLimiter, Throughput, ThroughputRule, rate_of
from tierstore.testing.clock import ManualClock
from tierstore.types.ids import Scope

A, B = (Scope("org", "1"),), (Scope("org", "2"),)
USECASE, OTHER = "attachments", "profiles"


def _limiter() -> tuple[RateLimiter, ManualClock]:
    clock = ManualClock()
    return RateLimiter(BucketTable.private(), clock), clock


def _admitted(limiter: RateLimiter, limits: Throughput, count: int, scopes: tuple[Scope, ...] = A) -> int:
    return sum(limiter.take_request(limits, USECASE, scopes, None) is None for _ in range(count))


def test_nothing_set_limits_nothing() -> None:
    """The default admits whatever comes."""
    limiter, _ = _limiter()
    assert _admitted(limiter, Throughput(), 10_000) == 10_000
    assert limiter.check_bytes(Bandwidth(), USECASE, A) is None
    limiter.add_bytes(Bandwidth(), USECASE, A, 10**15)
    assert limiter.check_bytes(Bandwidth(), USECASE, A) is None
    assert limiter.requests_used(Throughput()) == limiter.bytes_used(Bandwidth()) == 0


@given(
    st.integers(1, 200),
    st.integers(1, 50),
    st.lists(st.tuples(st.floats(0, 3), st.integers(1, 80)), min_size=1, max_size=30),
)
def test_over_any_time_the_burst_and_the_rate_are_admitted(
    per_second: int, burst: int, arrivals: list[tuple[float, int]]
) -> None:
    """Between any two moments at most the burst and what the rate gives; and no less, while there is demand."""
    limiter, clock = _limiter()
    limits = Throughput(all_requests=rate_of(per_second, burst))
    history: list[tuple[float, int]] = []
    refused = False
    for pause, count in arrivals:
        clock.advance(pause)
        admitted = _admitted(limiter, limits, count)
        history.append((clock.monotonic(), admitted))
        refused = refused or admitted < count
    for first in range(len(history)):
        total = 0
        for moment, admitted in history[first:]:
            total += admitted
            assert total <= burst + per_second * (moment - history[first][0]) + 1e-6
    assert refused or sum(admitted for _, admitted in history) == sum(count for _, count in arrivals)


def test_a_refusal_tells_when_there_is_room() -> None:
    """After that time, and no earlier, the next request is admitted."""
    limiter, clock = _limiter()
    limits = Throughput(all_requests=rate_of(4, 2))
    assert _admitted(limiter, limits, 2) == 2
    exceeded = limiter.take_request(limits, USECASE, A, None)
    assert exceeded is not None
    assert (exceeded.limit, exceeded.seconds) == ("global", 0.25)
    clock.advance(0.24)
    assert limiter.take_request(limits, USECASE, A, None) is not None
    clock.advance(0.01)
    assert limiter.take_request(limits, USECASE, A, None) is None


def test_a_usecase_and_a_scope_have_their_shares() -> None:
    """One usecase, and one full set of scopes, cannot take what is left for others; order makes other scopes."""
    whole = rate_of(100, None)
    limits = Throughput(all_requests=whole, each_usecase=whole.share(50), each_scope=whole.share(10))
    limiter, _ = _limiter()
    assert _admitted(limiter, limits, 50) == 10
    assert _admitted(limiter, limits, 50, B) == 10
    assert _admitted(limiter, limits, 50, A + B) == 10
    assert _admitted(limiter, limits, 50, B + A) == 10
    assert sum(_admitted(limiter, limits, 50, (Scope("org", str(n)),)) for n in range(3, 40)) == 10
    exceeded = limiter.take_request(limits, USECASE, (), None)
    assert exceeded is not None
    assert exceeded.limit == "usecase"
    # Another usecase has its own half, in the same scopes too.
    assert sum(limiter.take_request(limits, OTHER, A, None) is None for _ in range(50)) == 10


def test_a_refused_request_has_used_nothing() -> None:
    """Who is refused for its scope takes none of the server's rate from others."""
    limiter, _ = _limiter()
    whole = rate_of(100, None)
    limits = Throughput(all_requests=whole, each_scope=whole.share(1))
    _admitted(limiter, limits, 1000)
    assert limiter.requests_used(limits) == 0.01
    assert sum(_admitted(limiter, limits, 2, (Scope("n", str(n)),)) for n in range(200)) == 99
    assert limiter.requests_used(limits) == 1


def test_even_a_small_share_admits_a_request() -> None:
    """One percent of five requests a second is one in twenty seconds, and not none."""
    limiter, clock = _limiter()
    limits = Throughput(each_scope=Rate(per_second=5, burst=5).share(1))
    assert _admitted(limiter, limits, 5) == 1
    clock.advance(19.9)
    assert _admitted(limiter, limits, 5) == 0
    clock.advance(0.2)
    assert _admitted(limiter, limits, 5) == 1


def test_each_rule_has_one_bucket_for_all_that_it_means() -> None:
    """Rules that mean a request must all have room; those that do not are not used."""
    rules = (
        ThroughputRule(condition=Condition(service="relay*"), rate=rate_of(3, None)),
        ThroughputRule(condition=Condition(usecase=USECASE, scopes=A), rate=rate_of(5, None)),
    )
    limits = Throughput(rules=rules)
    limiter, _ = _limiter()
    assert sum(limiter.take_request(limits, OTHER, B, "relay-eu") is None for _ in range(9)) == 3
    assert sum(limiter.take_request(limits, USECASE, A, "relay-eu") is None for _ in range(9)) == 0
    assert _admitted(limiter, limits, 9, A + B) == 5
    assert sum(limiter.take_request(limits, OTHER, B, "other") is None for _ in range(999)) == 999
    exceeded = limiter.take_request(limits, USECASE, A, None)
    assert exceeded is not None
    assert exceeded.limit == "rule"


def test_bytes_are_a_debt() -> None:
    """A transfer of any size is admitted while nothing is overdrawn; what comes then waits until it has drained."""
    limiter, clock = _limiter()
    limits = Bandwidth(all_bytes=1000)
    assert limiter.check_bytes(limits, USECASE, A) is None
    limiter.add_bytes(limits, USECASE, A, 6000)
    exceeded = limiter.check_bytes(limits, OTHER, B)
    assert exceeded is not None
    assert (exceeded.limit, exceeded.seconds) == ("global", 5.0)
    assert limiter.bytes_used(limits) == 6
    clock.advance(4.9)
    assert limiter.check_bytes(limits, OTHER, B) is not None
    clock.advance(0.2)
    assert limiter.check_bytes(limits, OTHER, B) is None


@pytest.mark.parametrize(
    ("limits", "limit", "others"),
    [
        (Bandwidth(each_usecase=1000), "usecase", [(OTHER, A)]),
        (Bandwidth(each_scope=1000), "scope", [(OTHER, A), (USECASE, B), (USECASE, A + B)]),
    ],
)
def test_the_bytes_of_one_are_not_the_debt_of_others(
    limits: Bandwidth, limit: str, others: list[tuple[str, tuple[Scope, ...]]]
) -> None:
    """A usecase's limit, and a scope's, count for each of them alone."""
    limiter, _ = _limiter()
    limiter.add_bytes(limits, USECASE, A, 2001)
    exceeded = limiter.check_bytes(limits, USECASE, A)
    assert exceeded is not None
    assert exceeded.limit == limit
    assert all(limiter.check_bytes(limits, usecase, scopes) is None for usecase, scopes in others)


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(0, 3000)), min_size=1, max_size=40))
def test_transfers_that_follow_the_answers_hold_the_rate(arrivals: list[tuple[float, int]]) -> None:
    """Of requests that come one by one, over any time no more bytes than the rate gives, a second's, and the last."""
    limiter, clock = _limiter()
    limits = Bandwidth(all_bytes=1000)
    total, last = 0, 0
    for pause, size in arrivals:
        clock.advance(pause)
        if limiter.check_bytes(limits, USECASE, A) is None:
            limiter.add_bytes(limits, USECASE, A, size)
            total, last = total + size, size
        assert total - last <= 1000 * clock.monotonic() + 1000 + 1e-6


def test_limits_that_change_keep_what_is_used() -> None:
    """A bucket that is empty under one limit is empty under the next; a limit that is taken away limits nothing."""
    limiter, clock = _limiter()
    assert _admitted(limiter, Throughput(all_requests=rate_of(100, None)), 100) == 100
    low = Throughput(all_requests=rate_of(10, None))
    assert _admitted(limiter, low, 100) == 0
    assert _admitted(limiter, Throughput(), 100) == 100
    clock.advance(0.11)
    assert _admitted(limiter, low, 100) == 1
    assert _admitted(limiter, Throughput(all_requests=rate_of(1000, None)), 2000) == 990


def test_a_limit_that_is_lowered_stops_nobody_for_long() -> None:
    """What was admitted under a high rate is no debt under a low one: who waits then waits no longer than before."""
    limiter, clock = _limiter()
    assert _admitted(limiter, Throughput(all_requests=rate_of(10_000, None)), 20_000) == 10_000
    low = Throughput(all_requests=rate_of(10, None))
    exceeded = limiter.take_request(low, USECASE, A, None)
    assert exceeded is not None
    assert exceeded.seconds <= 1
    clock.advance(1)
    assert _admitted(limiter, low, 100) == 10


def test_bytes_owed_are_not_owed_for_longer_when_the_rate_falls() -> None:
    """A debt of five seconds stays one of five seconds; a higher rate pays it off sooner."""
    limiter, _ = _limiter()
    limiter.add_bytes(Bandwidth(all_bytes=1000), USECASE, A, 6000)
    for rate, seconds in ((1000, 5.0), (10, 5.0), (1000, 5.0), (6000, 0.0)):
        exceeded = limiter.check_bytes(Bandwidth(all_bytes=rate), USECASE, A)
        assert (0.0 if exceeded is None else exceeded.seconds) == pytest.approx(seconds, abs=1e-9), rate


def test_rules_keep_their_buckets_wherever_they_stand() -> None:
    """A rule that is put before another, or taken out, takes over nothing of what others have used."""
    busy = ThroughputRule(condition=Condition(service="busy"), rate=rate_of(10_000, None))
    slow = ThroughputRule(condition=Condition(service="slow"), rate=rate_of(0.1, 1))
    limiter, _ = _limiter()

    def admitted(rules: tuple[ThroughputRule, ...], service: str, count: int) -> int:
        limits = Throughput(rules=rules)
        return sum(limiter.take_request(limits, USECASE, A, service) is None for _ in range(count))

    assert admitted((busy,), "busy", 10_001) == 10_000
    assert admitted((slow, busy), "slow", 2) == 1
    assert admitted((slow, busy), "busy", 1) == 0
    assert admitted((busy, slow), "slow", 1) == 0
