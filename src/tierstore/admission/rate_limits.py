"""Rate limits: how many requests, and how many bytes, a server takes in a second.

Throughput is counted in requests, before anything is done: a request is refused if any bucket that it needs is used up
(the server's, its usecase's, its scopes', those of the extra rules that mean it), and then it has used none of them.

Bandwidth is counted in bytes of payload, in and out, as they flow. How many a request will need is not known when it
comes, or is only what its client says; so one is admitted as long as its buckets are not overdrawn, what it then
transfers is charged whatever it is, and those that come later are refused until that debt has drained. Transfers under
way are neither cut off nor slowed down.

Guarantees: over any time, no more than a bucket's depth and what its rate gives is admitted, by all workers together
(`tierstore.admission.buckets`); of bytes, besides, what the requests still transfer that were under way when a bucket
was used up. Values alone: what is counted and what a caller is told is `tierstore.admission.controls`'.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tierstore.admission.buckets import BucketTable, Charge, Region
from tierstore.admission.conditions import Condition
from tierstore.clock import Clock
from tierstore.types.ids import Scope

LimitName = Literal["global", "usecase", "scope", "rule"]

_GLOBAL_REQUESTS, _GLOBAL_BYTES = 0, 1
_PERCENT = 100.0
_BURST_SECONDS = 1.0
"""What a bucket holds where no burst is set: what its rate gives in this time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Requests a second, and how many of them may come at once."""

    per_second: float
    burst: float

    def share(self, percent: float) -> "Rate":
        """A part of it; at least one request may always come."""
        return Rate(per_second=self.per_second * percent / _PERCENT, burst=max(1.0, self.burst * percent / _PERCENT))


def rate_of(per_second: float, burst: int | None) -> Rate:
    """A rate as settings have it."""
    return Rate(per_second=per_second, burst=max(1.0, per_second * _BURST_SECONDS if burst is None else burst))


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputRule:
    """An extra limit on the requests that a condition means, all of them together."""

    condition: Condition
    rate: Rate
    name: str = field(init=False, repr=False, compare=False)
    """Of its bucket: the same in every process, and wherever the rule stands among others."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"{self.condition} {self.rate}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """The limits on requests. What is None is not limited."""

    all_requests: Rate | None = None
    each_usecase: Rate | None = None
    each_scope: Rate | None = None
    """Of requests with the same usecase and all the same scopes."""
    rules: tuple[ThroughputRule, ...] = ()
    report_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidth:
    """The limits on bytes a second. What is None is not limited."""

    all_bytes: int | None = None
    each_usecase: int | None = None
    each_scope: int | None = None
    report_only: bool = False


@dataclass(frozen=True, slots=True)
class Exceeded:
    """A limit that has no room, and when it will have some."""

    limit: LimitName
    seconds: float


class RateLimiter:
    """Judges requests and bytes by limits that are given with each, so that these can change at any time."""

    def __init__(self, table: BucketTable, clock: Clock) -> None:
        self._table = table
        self._clock = clock

    def take_request(
        self, limits: Throughput, usecase: str, scopes: Sequence[Scope], service: str | None
    ) -> Exceeded | None:
        """Count a request; return None. Or return the limit that it would exceed, and count nothing."""
        return self._take(list(self._request(limits, usecase, scopes, service)))

    def _request(
        self, limits: Throughput, usecase: str, scopes: Sequence[Scope], service: str | None
    ) -> Iterator[tuple[LimitName, Charge]]:
        if (rate := limits.all_requests) is not None:
            yield "global", Charge(self._table.fixed(_GLOBAL_REQUESTS), rate.per_second, rate.burst, 1.0)
        for rule in limits.rules:
            if rule.condition.holds(usecase, scopes, service):
                bucket = self._table.named(Region.RULE_REQUESTS, rule.name)
                yield "rule", Charge(bucket, rule.rate.per_second, rule.rate.burst, 1.0)
        if (rate := limits.each_usecase) is not None:
            bucket = self._table.named(Region.USECASE_REQUESTS, usecase)
            yield "usecase", Charge(bucket, rate.per_second, rate.burst, 1.0)
        if (rate := limits.each_scope) is not None:
            bucket = self._table.named(Region.SCOPE_REQUESTS, _scope_name(usecase, scopes))
            yield "scope", Charge(bucket, rate.per_second, rate.burst, 1.0)

    def check_bytes(self, limits: Bandwidth, usecase: str, scopes: Sequence[Scope]) -> Exceeded | None:
        """The limit that is overdrawn, if one is."""
        return self._take(list(self._bytes(limits, usecase, scopes, 0)))

    def add_bytes(self, limits: Bandwidth, usecase: str, scopes: Sequence[Scope], count: int) -> None:
        """Count bytes that were transferred."""
        charges = [charge for _, charge in self._bytes(limits, usecase, scopes, count)]
        if charges:
            self._table.add(charges, self._clock.monotonic())

    def _bytes(
        self, limits: Bandwidth, usecase: str, scopes: Sequence[Scope], count: int
    ) -> Iterator[tuple[LimitName, Charge]]:
        if (rate := limits.all_bytes) is not None:
            yield "global", Charge(self._table.fixed(_GLOBAL_BYTES), rate, rate * _BURST_SECONDS, count)
        if (rate := limits.each_usecase) is not None:
            bucket = self._table.named(Region.USECASE_BYTES, usecase)
            yield "usecase", Charge(bucket, rate, rate * _BURST_SECONDS, count)
        if (rate := limits.each_scope) is not None:
            bucket = self._table.named(Region.SCOPE_BYTES, _scope_name(usecase, scopes))
            yield "scope", Charge(bucket, rate, rate * _BURST_SECONDS, count)

    def _take(self, named: Sequence[tuple[LimitName, Charge]]) -> Exceeded | None:
        if not named:
            return None
        waits = self._table.take([charge for _, charge in named], self._clock.monotonic())
        if not waits:
            return None
        seconds, (limit, _) = max(zip(waits, named, strict=True), key=lambda pair: pair[0])
        return Exceeded(limit, seconds)

    def requests_used(self, limits: Throughput) -> float:
        """How much of the server's burst of requests is used: 0 to 1, at which requests are refused."""
        rate = limits.all_requests
        if rate is None:
            return 0.0
        used = self._table.used(self._table.fixed(_GLOBAL_REQUESTS), rate.per_second, self._clock.monotonic())
        return used / rate.burst

    def bytes_used(self, limits: Bandwidth) -> float:
        """How much of what the server may transfer at once is used: above 1, requests are refused."""
        rate = limits.all_bytes
        if rate is None:
            return 0.0
        used = self._table.used(self._table.fixed(_GLOBAL_BYTES), rate, self._clock.monotonic())
        return used / (rate * _BURST_SECONDS)


def _scope_name(usecase: str, scopes: Sequence[Scope]) -> str:
    return usecase + "/" + ";".join([f"{scope.name}={scope.value}" for scope in scopes])
