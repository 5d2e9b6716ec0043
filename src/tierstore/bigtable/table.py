"""One table of Bigtable: calls that have bounds, and errors that are ours.

Guarantees: at most ``bigtable_calls_max`` calls are under way, each for at most ``seconds_max``; beyond that `Busy`, at
once. What was `accepted` is finished before `close` lets go of the channel. Conditional mutations and appends are sent
once; reads, and writes of whole index rows, which are the same however often they come, are repeated by the client
while their time lasts. The client also warms its channel, and replaces it every 35 to 45 minutes, before Bigtable
closes it.

Does not: make anything consistent by itself. Reads see every acknowledged write only through an app profile that routes
to a single cluster, which `tierstore.bigtable.connection` checks.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

from google.cloud.bigtable.data import (
    BigtableDataClientAsync,
    Mutation,
    ReadRowsQuery,
    RowMutationEntry,
    RowRange,
    TableAsync,
)
from google.cloud.bigtable.data.read_modify_write_rules import AppendValueRule
from google.cloud.bigtable.data.row_filters import RowFilter

from tierstore.bigtable.failures import translated
from tierstore.errors import Busy
from tierstore.invariants import invariant
from tierstore.limits import KIB, Limits

Cells = Mapping[tuple[str, bytes], bytes]
"""The latest value of each column of a row, by family and qualifier."""

_KEYS_BYTES_MAX = 512 * KIB
"""Of the keys of one request, with what is around each: the service takes 1 MiB of them."""
_KEY_OVERHEAD_BYTES = 8
_ATTEMPT_SHARE = 0.5
"""How much of a read's time one attempt may take, so that there is a second one."""


class BigtableTable:
    """A table and the client that it is reached by."""

    def __init__(
        self, client: BigtableDataClientAsync, table: TableAsync, limits: Limits, *, seconds_max: float
    ) -> None:
        self._client = client
        self._table = table
        self._limits = limits
        self._seconds_max = seconds_max
        self._calls = 0
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = asyncio.Lock()
        self._closed = False

    @contextmanager
    def accepted(self) -> Iterator[None]:
        """An operation of several calls: `close` waits for its end."""
        invariant(not self._closed, "a closed store is not used")
        self._under_way += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    @contextmanager
    def _call(self, *, writes: bool) -> Iterator[None]:
        if self._calls >= self._limits.bigtable_calls_max:
            raise Busy("as many calls to Bigtable are under way as may be")
        self._calls += 1
        try:
            with self.accepted(), translated(writes=writes):
                yield
        finally:
            self._calls -= 1

    async def read(self, key: bytes, wanted: RowFilter) -> Cells | None:
        """What ``wanted`` lets through of a row, or None if that is nothing."""
        with self._call(writes=False):
            row = await self._table.read_row(key, row_filter=wanted, **self._read_times())
        return None if row is None else _cells(row)

    async def read_many(self, keys: Sequence[bytes], wanted: RowFilter) -> Mapping[bytes, Cells]:
        """The same of many rows at once; those that have nothing are left out."""
        found: dict[bytes, Cells] = {}
        with self.accepted():
            for few in in_requests(keys):
                with self._call(writes=False):
                    query = ReadRowsQuery(row_keys=[*few], row_filter=wanted)
                    rows = await self._table.read_rows(query, **self._read_times())
                found |= {row.row_key: _cells(row) for row in rows}
        return found

    async def page(
        self, first: bytes, end: bytes, wanted: RowFilter, limit: int, *, inclusive: bool = True
    ) -> Sequence[tuple[bytes, Cells]]:
        """At most ``limit`` rows with keys from ``first`` on, or behind it, and before ``end``."""
        if first >= end:
            return []
        rows = RowRange(start_key=first, end_key=end, start_is_inclusive=inclusive)
        with self._call(writes=False):
            query = ReadRowsQuery(row_ranges=[rows], row_filter=wanted, limit=limit)
            found = await self._table.read_rows(query, **self._read_times())
        return [(row.row_key, _cells(row)) for row in found]

    async def pages(
        self, first: bytes, end: bytes, wanted: RowFilter, rows: int
    ) -> AsyncIterator[Sequence[tuple[bytes, Cells]]]:
        """The whole range, ``rows`` rows at a time, or fewer where they are long; no page is empty."""
        inclusive, ended = True, first >= end
        while not ended:
            page, ended = await self._short_page(RowRange(first, end, start_is_inclusive=inclusive), wanted, rows)
            if page:
                yield page
                first, inclusive = page[-1][0], False

    async def _short_page(
        self, range_: RowRange, wanted: RowFilter, limit: int
    ) -> tuple[Sequence[tuple[bytes, Cells]], bool]:
        """At most ``limit`` rows, and few bytes of them if there are two or more; whether they are all of the range."""
        page: list[tuple[bytes, Cells]] = []
        bytes_left = self._limits.bigtable_page_bytes
        with self._call(writes=False):
            query = ReadRowsQuery(row_ranges=[range_], row_filter=wanted, limit=limit)
            async with aclosing(await self._table.read_rows_stream(query, **self._read_times())) as rows:
                async for row in rows:
                    cells = _cells(row)
                    page.append((row.row_key, cells))
                    bytes_left -= sum(map(len, cells.values()))
                    if bytes_left <= 0:
                        return page, False
        return page, len(page) < limit

    async def check_and_mutate(
        self,
        key: bytes,
        predicate: RowFilter,
        *,
        held: Sequence[Mutation] = (),
        not_held: Sequence[Mutation] = (),
        seconds_max: float | None = None,
    ) -> bool:
        """Do one or the other to a row, in one atomic step; return whether the predicate held. Never sent twice."""
        with self._call(writes=True):
            return bool(
                await self._table.check_and_mutate_row(
                    key,
                    predicate,
                    true_case_mutations=list(held),
                    false_case_mutations=list(not_held),
                    operation_timeout=self._seconds(seconds_max),
                )
            )

    async def append(self, key: bytes, values: Mapping[tuple[str, bytes], bytes]) -> Cells:
        """Append to columns of a row, in one atomic step, and return what they hold then. Never sent twice."""
        rules = [AppendValueRule(family, qualifier, value) for (family, qualifier), value in values.items()]
        with self._call(writes=True):
            return _cells(
                await self._table.read_modify_write_row(key, list(rules), operation_timeout=self._seconds(None))
            )

    async def write_rows(self, rows: Mapping[bytes, Sequence[Mutation]]) -> None:
        """Change rows, each by itself, by mutations that are the same however often they are applied."""
        if not rows:
            return
        with self._call(writes=True):
            await self._table.bulk_mutate_rows(
                [RowMutationEntry(key, list(mutations)) for key, mutations in rows.items()], **self._read_times()
            )

    async def close(self) -> None:
        """Wait for what was accepted, for as long as calls may take, then close the channel. Safe to repeat."""
        async with self._closing:
            if self._closed:
                return
            await self._idle.wait()
            self._closed = True
            await self._table.close()
            await self._client.close()

    def _seconds(self, seconds_max: float | None) -> float:
        return self._seconds_max if seconds_max is None else min(self._seconds_max, seconds_max)

    def _read_times(self) -> dict[str, Any]:
        return {"operation_timeout": self._seconds_max, "attempt_timeout": self._seconds_max * _ATTEMPT_SHARE}


def in_requests(keys: Sequence[bytes]) -> Iterator[list[bytes]]:
    """The keys in as many lists as there have to be requests, none of them empty."""
    few: list[bytes] = []
    few_bytes = 0
    for key in keys:
        if few and few_bytes + len(key) + _KEY_OVERHEAD_BYTES > _KEYS_BYTES_MAX:
            yield few
            few, few_bytes = [], 0
        few.append(key)
        few_bytes += len(key) + _KEY_OVERHEAD_BYTES
    if few:
        yield few


def _cells(row: Any) -> Cells:
    cells: dict[tuple[str, bytes], bytes] = {}
    for cell in row.cells:
        cells.setdefault((cell.family, cell.qualifier), cell.value)
    return cells
