"""What is kept of a finished request: a line in the log, and the metrics.

Guarantees: one line for each request, with the path as it came and never a payload, a query (it may hold a signature)
or a header; of the path, and of a key, what looks like a token or a signature is left out. Metrics for all but the
internal routes.

The line is also the record for an audit: that of a mutation, and of every refusal, has ``audit``, which says how it
ended, and who asked for what; it is then written whatever the level of the log is. A mutation that outlives its request
(its client has left, or the server's time to stop was up) has ``audit`` in a second line, `MUTATION_ENDED`, for only
then it is known how it ended. So there is one such line for each, unless the process is killed in between.

Does not: configure logging (that is `tierstore.logs`).
"""

import asyncio
import functools
import logging
import re
from functools import cache
from typing import Any

import structlog
from prometheus_client import Counter, Histogram

from tierstore import audit, telemetry
from tierstore.errors import ClientMistake, Refusal
from tierstore.http.exchange import Exchange
from tierstore.http.responses import status_of
from tierstore.types.objects import Tier

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

REQUEST = "request"
MUTATION_ENDED = "mutation ended after its request"
BATCH = "batch"
"""Each of its operations has a line of its own (`tierstore.http.batch_log`)."""
MUTATIONS = frozenset(
    {
        *("put", "delete", "extend", "batch", "initiate_upload", "upload_part", "complete_upload", "abort_upload"),
        *("create_session", "append", "cancel_session"),
    }
)
"""The operations that change something."""


_CREDENTIALS = re.compile(r"(os_(?:sig|auth)(?:=|%3D))[^&/]+|eyJ[\w-]{8,}(?:\.|%2E)[\w.%-]*", re.IGNORECASE)
"""A token, or what was meant to be a parameter, that a client has put into a path by mistake."""
_LEFT_OUT = "(left out)"


def record(exchange: Exchange, seconds: float, *, audited: bool) -> None:
    """Keep what is to be known of a request that took ``seconds``. ``audited``: with what an audit wants to know."""
    if not exchange.internal:
        _count(exchange, seconds)
    outcome = _outcome(exchange) if audited else None
    level = _level(exchange)
    if outcome is not None:
        audit.log.log(level, REQUEST, **_fields(exchange, seconds), **_audit_fields(exchange), audit=outcome)
    elif _log.is_enabled_for(level):
        _log.log(level, REQUEST, **_fields(exchange, seconds))
    mutation = exchange.mutation
    if audited and mutation is not None and not mutation.done():
        mutation.add_done_callback(functools.partial(_record_end, exchange))


def _record_end(exchange: Exchange, mutation: asyncio.Task[Any]) -> None:
    """Keep how a mutation has ended that has outlived its request."""
    fields = _names(exchange) | _audit_fields(exchange)
    error = None if mutation.cancelled() else mutation.exception()
    if error is not None:
        fields |= {"error": type(error).__name__, "detail": str(error)}
    audit.log.info(MUTATION_ENDED, **fields, status=exchange.status, audit=_outcome(exchange))


def _outcome(exchange: Exchange) -> audit.Outcome | None:
    """How a request ended that an audit wants to know of; None of others, and while it is not known."""
    if audit.is_refusal(exchange.error):
        return "refused"
    if exchange.operation not in MUTATIONS or exchange.operation == BATCH:
        return "would_refuse" if exchange.passed_over is not None else None
    mutation = exchange.mutation
    if mutation is None:
        return "failed"
    if not mutation.done():
        return None
    if mutation.cancelled():
        unread = exchange.body is not None and not exchange.body.complete
        return "failed" if unread else "unknown"
    return audit.outcome_of(mutation.exception())


def _level(exchange: Exchange) -> int:
    if exchange.internal:
        return logging.DEBUG
    return logging.WARNING if exchange.passed_over is not None or _failed_late(exchange) else logging.INFO


def _cut_off(exchange: Exchange) -> bool:
    """Whether the response failed after its status had been sent, and not because its reader went away."""
    return exchange.error is not None and exchange.responding and exchange.status < 400 and exchange.outcome is None


def _failed_late(exchange: Exchange) -> bool:
    """Whether a failure, other than a client's mistake, is hidden behind a status that tells of success."""
    told_in_body = exchange.outcome is not None and exchange.status < 400 and exchange.error is not None
    return _cut_off(exchange) or (told_in_body and not isinstance(exchange.error, ClientMistake))


def _fields(exchange: Exchange, seconds: float) -> dict[str, object]:
    fields = _names(exchange) | {
        "status": exchange.status,
        "bytes_in": 0 if exchange.body is None else exchange.body.received,
        "bytes_out": exchange.bytes_out,
        "duration_ms": round(seconds * 1000, 3),
    }
    if exchange.tier is not None:
        fields["tier"] = exchange.tier.value
    if exchange.outcome is not None:
        fields["outcome"] = exchange.outcome
    if exchange.error is not None:
        fields["error"] = type(exchange.error).__name__
        fields["detail"] = str(exchange.error)
    if exchange.passed_over is not None:
        fields["passed_over"] = f"{type(exchange.passed_over).__name__}: {exchange.passed_over}"
    return fields


def _names(exchange: Exchange) -> dict[str, object]:
    """What was asked for, and by whom."""
    raw_path = exchange.raw_path[: exchange.limits.target_bytes_max]
    fields: dict[str, object] = {
        "method": exchange.method,
        "path": without_credentials(raw_path.decode("ascii", "backslashreplace")),
        "operation": exchange.operation,
        "request_id": exchange.request_id,
    }
    if exchange.address is not None:
        fields["usecase"] = exchange.address.namespace.usecase
        fields["scopes"] = exchange.address.namespace.scopes_text
    kid = _kid(exchange)
    if kid is not None:
        fields["kid"] = kid
    if exchange.upload is not None:
        fields["upload"] = str(exchange.upload)
    return fields


def _kid(exchange: Exchange) -> str | None:
    for refusal in (exchange.error, exchange.passed_over):
        if isinstance(refusal, Refusal) and refusal.kid is not None:
            return refusal.kid
    return exchange.kid


def _audit_fields(exchange: Exchange) -> dict[str, object]:
    fields: dict[str, object] = {}
    if exchange.client is not None:
        fields["client"], fields["client_port"] = exchange.client[:2]
    if exchange.key is not None:
        fields["key"] = without_credentials(exchange.key)
    return fields


def without_credentials(text: str) -> str:
    """``text`` without what looks like a token or a signature."""
    if "eyJ" in text or "os_" in text.lower():
        return _CREDENTIALS.sub(lambda found: (found[1] or "") + _LEFT_OUT, text)
    return text


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
