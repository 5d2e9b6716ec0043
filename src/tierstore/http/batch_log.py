"""What is kept of each operation of a batch: a count, and a line in the log like that of a request of its own.

Guarantees: one line for every operation that was read whole and refused or begun, with who asked for it (the key id),
its kind, its key and the status that answers it; 499 if nobody was left to be told. Never a payload; of a key, what
looks like a token or a signature is left out.

Where requests are audited, the line of an insert or a delete, and of every refusal, has ``audit``, as that of a single
request has (`tierstore.http.request_log`); and so has a second line, if the mutation outlives its batch.
"""

import asyncio
import logging
from functools import cache, partial
from typing import Any

import structlog
from prometheus_client import Counter

from tierstore import audit, telemetry
from tierstore.errors import ClientDisconnected, Refusal, Unavailable
from tierstore.http.exchange import Exchange
from tierstore.http.request_log import MUTATION_ENDED, without_credentials
from tierstore.http.responses import STATUS_DISCONNECTED, status_of
from tierstore.service.batch import BatchKind, Outcome, Stored
from tierstore.tiering.objects import OpenObject
from tierstore.types.objects import FoundObject

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

OPERATION = "batch operation"
_MUTATIONS = frozenset({BatchKind.INSERT, BatchKind.DELETE})


def tell_of_failure(error: BaseException) -> None:
    """Log what the client is not told of a failed operation."""
    if status_of(error) == 500:
        _log.error("batch operation failed", exc_info=error)
    elif isinstance(error, Unavailable) and error.__cause__ is not None:
        _log.warning("store failed", error=str(error), cause=repr(error.__cause__))


class OperationRecords:
    """Keeps the records of the operations of one batch."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._mutations: dict[int, asyncio.Task[Any]] = {}
        """What operations have begun to do to the stores, by their index; where that is audited."""
        self._ended: dict[int, audit.Outcome] = {}
        """How those have ended that are not there any more: a task that has failed holds what it was about."""

    def note_mutation(self, index: int, task: asyncio.Task[Any]) -> None:
        """An operation has begun to change something, and may be left to end by itself."""
        self._mutations[index] = task
        task.add_done_callback(partial(self._note_end, index))

    def _note_end(self, index: int, mutation: asyncio.Task[Any]) -> None:
        del self._mutations[index]
        self._ended[index] = _outcome_of(mutation)

    def add(self, outcome: Outcome, status: int) -> None:
        """Keep what is to be known of an operation that is answered with ``status``."""
        self._add(outcome, status, self._audit_of(outcome))

    def add_left(self, outcome: Outcome) -> None:
        """Keep what is to be known of one whose client has gone away."""
        mutation, ended = self._mutations.get(outcome.index), self._ended.get(outcome.index)
        if mutation is not None and mutation.done():  # just now: what it calls back has not been called yet
            ended = _outcome_of(mutation)
            mutation = None
        if isinstance(outcome.result, ClientDisconnected) and mutation is not None:
            self._add(outcome, STATUS_DISCONNECTED, None)
            mutation.add_done_callback(partial(self._add_end, outcome))
        elif isinstance(outcome.result, ClientDisconnected) and ended is not None:
            self._add(outcome, STATUS_DISCONNECTED, ended)
        else:
            # It has ended, or changed nothing: the refusals and failures are as they are.
            status = status_of(outcome.result) if isinstance(outcome.result, Exception) else STATUS_DISCONNECTED
            self._add(outcome, status, self._audit_of(outcome))

    def _add_end(self, outcome: Outcome, mutation: asyncio.Task[Any]) -> None:
        """Keep how a mutation has ended that has outlived its batch."""
        error = None if mutation.cancelled() else mutation.exception()
        fields = self._fields(outcome, STATUS_DISCONNECTED) | self._asked()
        for name in ("error", "detail"):
            fields.pop(name, None)
        if error is not None:
            fields |= {"error": type(error).__name__, "detail": str(error)}
        audit.log.info(MUTATION_ENDED, **fields, audit=_outcome_of(mutation))

    def _audit_of(self, outcome: Outcome) -> audit.Outcome | None:
        """How an operation ended that an audit wants to know of; None of others."""
        if not self._exchange.audited:
            return None
        error = outcome.result if isinstance(outcome.result, Exception) else None
        if audit.is_refusal(error):
            return "refused"
        if outcome.kind not in _MUTATIONS:
            return None
        return "failed" if isinstance(error, ClientDisconnected) else audit.outcome_of(error)

    def _add(self, outcome: Outcome, status: int, ended: audit.Outcome | None) -> None:
        _operations(outcome.kind, status).inc()
        if ended is not None:
            audit.log.info(OPERATION, **self._fields(outcome, status), **self._asked(), audit=ended)
        elif _log.is_enabled_for(logging.INFO):
            _log.info(OPERATION, **self._fields(outcome, status))

    def _fields(self, outcome: Outcome, status: int) -> dict[str, object]:
        exchange, result = self._exchange, outcome.result
        fields: dict[str, object] = {"operation": _label(outcome.kind), "index": outcome.index, "status": status}
        if outcome.key is not None:
            fields["key"] = without_credentials(outcome.key)
        if exchange.address is not None:
            fields["usecase"] = exchange.address.namespace.usecase
            fields["scopes"] = exchange.address.namespace.scopes_text
        kid = result.kid if isinstance(result, Refusal) and result.kid is not None else exchange.kid
        if kid is not None:
            fields["kid"] = kid
        fields["request_id"] = exchange.request_id
        if isinstance(result, Stored | FoundObject | OpenObject):
            fields["tier"] = result.tier.value
        elif isinstance(result, Exception):
            fields |= {"error": type(result).__name__, "detail": str(result)}
        return fields

    def _asked(self) -> dict[str, object]:
        """What an audit wants to know besides, of all operations of the batch."""
        exchange = self._exchange
        path = exchange.raw_path[: exchange.limits.target_bytes_max].decode("ascii", "backslashreplace")
        fields: dict[str, object] = {"method": exchange.method, "path": without_credentials(path)}
        if exchange.client is not None:
            fields["client"], fields["client_port"] = exchange.client[:2]
        return fields


def _outcome_of(mutation: asyncio.Task[Any]) -> audit.Outcome:
    return "unknown" if mutation.cancelled() else audit.outcome_of(mutation.exception())


def _label(kind: BatchKind | None) -> str:
    return "unknown" if kind is None else kind.value


@cache
def _operations(kind: BatchKind | None, status: int) -> Counter:
    return telemetry.batch_operations.labels(_label(kind), str(status))
