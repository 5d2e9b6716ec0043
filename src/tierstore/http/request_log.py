"""What is kept of a finished request: a line in the log, and the metrics.

Guarantees: one line for each request, with the path as it came and never a payload, a query (it may hold a signature)
or a header; metrics for all but the internal routes. Does not: configure logging (that is `tierstore.logs`).
"""

import logging
from functools import cache

import structlog
from prometheus_client import Counter, Histogram

from tierstore import telemetry
from tierstore.errors import ClientMistake
from tierstore.http.exchange import Exchange
from tierstore.http.responses import status_of
from tierstore.types.objects import Tier

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)


def record(exchange: Exchange, seconds: float) -> None:
    """Keep what is to be known of a request that took ``seconds``."""
    if not exchange.internal:
        _count(exchange, seconds)
    level = logging.DEBUG if exchange.internal else logging.WARNING if _failed_late(exchange) else logging.INFO
    if _log.is_enabled_for(level):
        _log.log(level, "request", **_fields(exchange, seconds))


def _cut_off(exchange: Exchange) -> bool:
    """Whether the response failed after its status had been sent, and not because its reader went away."""
    return exchange.error is not None and exchange.responding and exchange.status < 400 and exchange.outcome is None


def _failed_late(exchange: Exchange) -> bool:
    """Whether a failure, other than a client's mistake, is hidden behind a status that tells of success."""
    told_in_body = exchange.outcome is not None and exchange.status < 400 and exchange.error is not None
    return _cut_off(exchange) or (told_in_body and not isinstance(exchange.error, ClientMistake))


def _fields(exchange: Exchange, seconds: float) -> dict[str, object]:
    raw_path = exchange.raw_path[: exchange.limits.target_bytes_max]
    fields: dict[str, object] = {
        "method": exchange.method,
        "path": raw_path.decode("ascii", "backslashreplace"),
        "operation": exchange.operation,
        "status": exchange.status,
        "bytes_in": 0 if exchange.body is None else exchange.body.received,
        "bytes_out": exchange.bytes_out,
        "duration_ms": round(seconds * 1000, 3),
        "request_id": exchange.request_id,
    }
    if exchange.address is not None:
        fields["usecase"] = exchange.address.namespace.usecase
        fields["scopes"] = exchange.address.namespace.scopes_text
    if exchange.upload is not None:
        fields["upload"] = str(exchange.upload)
    if exchange.tier is not None:
        fields["tier"] = exchange.tier.value
    if exchange.outcome is not None:
        fields["outcome"] = exchange.outcome
    if exchange.error is not None:
        fields["error"] = type(exchange.error).__name__
        fields["detail"] = str(exchange.error)
    return fields


def _count(exchange: Exchange, seconds: float) -> None:
    tier = exchange.tier
    _requests(exchange.operation, tier, _status_label(exchange)).inc()
    _request_seconds(exchange.operation, tier).observe(seconds)
    if tier is None or exchange.error is not None:
        return
    if exchange.operation == "put" and exchange.body is not None:
        _object_bytes("put", tier).observe(exchange.body.received)
    elif exchange.operation == "get":
        _object_bytes("get", tier).observe(exchange.bytes_out)


def _status_label(exchange: Exchange) -> str:
    """The status, or what went wrong behind it: an alert on failures must not miss one that a 200 hides."""
    if _cut_off(exchange):
        return "cut_off"
    if exchange.outcome is not None and exchange.status < 400 and exchange.error is not None:
        return str(status_of(exchange.error))
    return str(exchange.status)


# A child of a metric is looked up once for each of its few label values: ``labels()`` costs as much as the increment.


@cache
def _requests(operation: str, tier: Tier | None, status: str) -> Counter:
    return telemetry.requests.labels(operation, _tier_label(tier), status)


@cache
def _request_seconds(operation: str, tier: Tier | None) -> Histogram:
    return telemetry.request_seconds.labels(operation, _tier_label(tier))


@cache
def _object_bytes(operation: str, tier: Tier) -> Histogram:
    return telemetry.object_bytes.labels(operation, tier.value)


def _tier_label(tier: Tier | None) -> str:
    return "none" if tier is None else tier.value
