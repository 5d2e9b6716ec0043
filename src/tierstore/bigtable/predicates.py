r"""Filters for reads, and predicates for conditional mutations.

Guarantees: only the latest cell of a column is looked at, because superseded ones stay until they are collected, which
may take a week; a predicate holds if its filter yields a cell. `all_of` counts: every condition yields at most one
cell, and all but the last are skipped. Conditional filters would say the same, but Bigtable does not evaluate them
atomically.

Patterns are RE2 on bytes, matched against the whole value; ``\C`` is any byte.
"""

from collections.abc import Sequence

from google.cloud.bigtable.data import row_filters
from google.cloud.bigtable.data.row_filters import RowFilter

LATEST: RowFilter = row_filters.CellsColumnLimitFilter(1)
"""For reads: what the row holds now."""


def family(name: str) -> RowFilter:
    """The latest cells of one family."""
    return row_filters.RowFilterChain(filters=[row_filters.FamilyNameRegexFilter(name), LATEST])


def first_of(name: str, count: int) -> RowFilter:
    """The latest cells of the first ``count`` columns of one family."""
    return row_filters.RowFilterChain(
        filters=[row_filters.FamilyNameRegexFilter(name), LATEST, row_filters.CellsRowLimitFilter(count)]
    )


def columns(name: str, pattern: bytes) -> RowFilter:
    """The latest cells of a family's columns whose qualifiers match."""
    return row_filters.RowFilterChain(
        filters=[row_filters.FamilyNameRegexFilter(name), row_filters.ColumnQualifierRegexFilter(pattern), LATEST]
    )


def matches(name: str, qualifier: bytes, pattern: bytes) -> RowFilter:
    """The column's latest value matches."""
    return _column(name, qualifier, row_filters.ValueRegexFilter(pattern))


def exists(name: str, qualifier: bytes) -> RowFilter:
    """The column has a value, be it empty."""
    return columns(name, quoted(qualifier))


def within(name: str, qualifier: bytes, *ranges: tuple[bytes, bytes]) -> RowFilter:
    """The column's latest value is in one of the ranges, which do not overlap; both their ends belong to them."""
    filters = [row_filters.ValueRangeFilter(first, last) for first, last in ranges]
    return _column(name, qualifier, filters[0] if len(filters) == 1 else any_of(*filters))


def any_of(*conditions: RowFilter) -> RowFilter:
    """At least one holds."""
    return row_filters.RowFilterUnion(filters=list(conditions))


def all_of(conditions: Sequence[RowFilter]) -> RowFilter:
    """All hold. Each must yield one cell, or none."""
    if len(conditions) == 1:
        return conditions[0]
    return row_filters.RowFilterChain(
        filters=[any_of(*conditions), row_filters.CellsRowOffsetFilter(len(conditions) - 1)]
    )


def quoted(value: bytes) -> bytes:
    """A pattern that matches just ``value``."""
    pattern = bytearray()
    for byte in value:
        if byte == 0:
            pattern += b"\\x00"
        elif byte < 128 and not (bytes([byte]).isalnum() or byte == ord("_")):
            pattern += bytes([ord("\\"), byte])
        else:
            pattern.append(byte)
    return bytes(pattern)


def _column(name: str, qualifier: bytes, value: RowFilter) -> RowFilter:
    return row_filters.RowFilterChain(
        filters=[
            row_filters.FamilyNameRegexFilter(name),
            row_filters.ColumnQualifierRegexFilter(quoted(qualifier)),
            LATEST,
            value,
        ]
    )
