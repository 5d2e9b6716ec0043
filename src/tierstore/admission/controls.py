"""What an operator has set on requests: killswitches, policies and limits, as one thing that can change at any time.

A request asks, in this order: `check_killswitches` (before it is known who calls), `take_request` (once it is known
that the caller may), `check_policy` (where an object is inserted), `transfer` (where a payload flows).

Guarantees: `replace` is atomic, and a request that is under way keeps the bandwidth limits that it began with; every
refusal is counted, and so is every one that ``report_only`` spares. Does not: read settings.
"""

import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from tierstore import telemetry
from tierstore.admission.rate_limits import Bandwidth, Exceeded, RateLimiter
from tierstore.admission.rules import Rules
from tierstore.backends.long_term.contract import BlobStream
from tierstore.errors import Forbidden, PolicyViolation, RateLimited
from tierstore.tiering.objects import OpenObject
from tierstore.types.ids import Scope
from tierstore.types.metadata import Expiration
from tierstore.types.streams import Body, BodyPassedOn

_WHOSE = {
    "global": "of this server",
    "usecase": "of this usecase",
    "scope": "of these scopes",
    "rule": "of requests of this kind",
}


class Controls:
    """The rules in force, in one process."""

    def __init__(self, rules: Rules, limiter: RateLimiter) -> None:
        self._rules = rules
        self._limiter = limiter

    def replace(self, rules: Rules) -> None:
        """Put other rules in force, for the requests that come from now on. Buckets keep what is used of them."""
        self._rules = rules

    def check_killswitches(self, usecase: str, scopes: Sequence[Scope], service: str | None) -> None:
        """Raise `Forbidden` if requests of this kind have been stopped."""
        try:
            self._rules.killswitches.check(usecase, scopes, service)
        except Forbidden:
            telemetry.killswitched_requests.inc()
            raise

    def take_request(self, usecase: str, scopes: Sequence[Scope], service: str | None) -> None:
        """Count a request against the throughput limits. Raises `RateLimited`."""
        limits = self._rules.throughput
        exceeded = self._limiter.take_request(limits, usecase, scopes, service)
        if exceeded is not None:
            _refuse("throughput", exceeded, report_only=limits.report_only)

    def check_policy(self, usecase: str, expiration: Expiration) -> None:
        """Raise `PolicyViolation` if an object of the usecase may not be inserted with this expiration."""
        try:
            self._rules.policies.check(usecase, expiration)
        except PolicyViolation:
            telemetry.policy_violations.inc()
            raise

    def transfer(self, usecase: str, scopes: Sequence[Scope]) -> "Transfer":
        """What counts the bytes of a request that reads or sends a payload. Raises `RateLimited`."""
        limits = self._rules.bandwidth
        exceeded = self._limiter.check_bytes(limits, usecase, scopes)
        if exceeded is None:
            return Transfer(self._limiter, limits, usecase, scopes)
        _refuse("bandwidth", exceeded, report_only=limits.report_only)
        return Transfer(self._limiter, Bandwidth(), usecase, scopes)  # counted, it would spoil the report on the others

    def requests_used(self) -> float:
        """How much of the server's burst of requests is used: 1 and requests are refused. 0 without a limit."""
        return self._limiter.requests_used(self._rules.throughput)

    def bytes_used(self) -> float:
        """How much of the server's second of bandwidth is used: above 1 requests are refused. 0 without a limit."""
        return self._limiter.bytes_used(self._rules.bandwidth)


def _refuse(kind: str, exceeded: Exceeded, *, report_only: bool) -> None:
    telemetry.rate_limited.labels(kind, exceeded.limit, "reported" if report_only else "refused").inc()
    if report_only:
        return
    seconds = max(1, math.ceil(exceeded.seconds))
    raise RateLimited(f"the {kind} limit {_WHOSE[exceeded.limit]} is reached; try again in {seconds} s", seconds)


class Transfer:
    """Counts the payload of one request against the bandwidth limits, as it flows."""

    def __init__(self, limiter: RateLimiter, limits: Bandwidth, usecase: str, scopes: Sequence[Scope]) -> None:
        self._limiter = limiter
        self._limits = limits
        self._usecase = usecase
        self._scopes = scopes

    def count(self, size: int) -> None:
        """Count ``size`` bytes."""
        self._limiter.add_bytes(self._limits, self._usecase, self._scopes, size)

    def body(self, body: Body) -> Body:
        """``body``, whose bytes are counted as they come."""
        return body if self._limits == _NONE else _CountedBody(body, self)

    def opened(self, opened: OpenObject) -> OpenObject:
        """``opened``, whose bytes are counted: at once those in memory, and the others as they are read."""
        if self._limits == _NONE:
            return opened
        if isinstance(opened.payload, bytes):
            self.count(len(opened.payload))
            return opened
        return replace(opened, payload=_CountedStream(opened.payload, self))


_NONE = Bandwidth()


class _CountedBody(BodyPassedOn):
    """A body whose bytes are counted as they come."""

    def __init__(self, inner: Body, transfer: Transfer) -> None:
        super().__init__(inner)
        self._transfer = transfer

    async def __anext__(self) -> bytes:
        chunk = await anext(self._inner)
        self._transfer.count(len(chunk))
        return chunk


class _CountedStream(BlobStream):
    """A blob's payload whose bytes are counted as they are read."""

    def __init__(self, inner: BlobStream, transfer: Transfer) -> None:
        self._inner = inner
        self._transfer = transfer
        self.size = inner.size

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._inner:
            self._transfer.count(len(chunk))
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()
