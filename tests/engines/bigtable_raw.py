"""A back door to a table of the emulator: Google's synchronous client, and no code of ours.

What it reads is all cells, superseded ones too, and what it writes may have any timestamp.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from google.cloud.bigtable.data import BigtableDataClient, DeleteAllFromRow, Mutation, ReadRowsQuery, SetCell

from tests.engines.bigtable_emulator import INSTANCE, PROJECT


@dataclass(frozen=True, slots=True)
class RawCell:
    """One cell as it is stored."""

    family: str
    qualifier: bytes
    timestamp: int
    value: bytes


class RawTable:
    """One table. ``BIGTABLE_EMULATOR_HOST`` says where."""

    def __init__(self, name: str) -> None:
        self.name = name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            self._client = BigtableDataClient(project=PROJECT)
        self._table = self._client.get_table(INSTANCE, name)

    def cells(self, key: bytes) -> list[RawCell]:
        """All cells of a row, of each column the latest first."""
        return self._all([key]).get(key, [])

    def rows(self) -> dict[bytes, list[RawCell]]:
        """All cells of all rows."""
        return self._all(None)

    def _all(self, keys: Sequence[bytes] | None) -> dict[bytes, list[RawCell]]:
        query = ReadRowsQuery(row_keys=None if keys is None else list(keys))
        return {
            row.row_key: [RawCell(cell.family, cell.qualifier, cell.timestamp_micros, cell.value) for cell in row.cells]
            for row in self._table.read_rows(query)
        }

    def put(self, key: bytes, *cells: RawCell) -> None:
        """Add cells to a row."""
        mutations: list[Mutation] = [
            SetCell(cell.family, cell.qualifier, cell.value, timestamp_micros=cell.timestamp) for cell in cells
        ]
        self._table.mutate_row(key, mutations)

    def remove(self, key: bytes) -> None:
        """Remove a row."""
        self._table.mutate_row(key, DeleteAllFromRow())

    def collect(self, key: bytes, *columns: tuple[str, bytes]) -> None:
        """Remove these columns of a row, as garbage collection may at any time after their cells' time."""
        kept = [cell for cell in self.cells(key) if (cell.family, cell.qualifier) not in columns]
        self.remove(key)
        if kept:
            self.put(key, *kept)

    def close(self) -> None:
        """Let go of the connection."""
        self._table.close()  # type: ignore[no-untyped-call]  # because it is not typed
        self._client.close()
