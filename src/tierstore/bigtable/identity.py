"""The identity of a store on Bigtable: a row of its own, which the first writer makes and nobody changes."""

from uuid import UUID

from google.cloud.bigtable.data import SetCell

from tierstore.bigtable.keys import IDENTITY_KEY
from tierstore.bigtable.predicates import exists, family
from tierstore.bigtable.table import BigtableTable
from tierstore.errors import CorruptObject

INDEX = "index"
"""The column family of all rows that are no object's: no store collects anything of it by age."""
_QUALIFIER = b"uuid"


async def kept_identity(table: BigtableTable) -> UUID | None:
    """The identity that the table keeps, or None."""
    cells = await table.read(IDENTITY_KEY, family(INDEX))
    if cells is None:
        return None
    try:
        return UUID(bytes=cells[INDEX, _QUALIFIER])
    except (KeyError, ValueError) as error:
        raise CorruptObject("the row with the store's identity is damaged") from error


async def keep_identity(table: BigtableTable, identity: UUID) -> UUID:
    """Give the table ``identity`` if it has none; return the one that it has."""
    given = SetCell(INDEX, _QUALIFIER, identity.bytes, timestamp_micros=0)
    with table.accepted():
        await table.check_and_mutate(IDENTITY_KEY, exists(INDEX, _QUALIFIER), not_held=[given])
        kept = await kept_identity(table)
    if kept is None:
        raise CorruptObject("the row with the store's identity has gone")
    return kept
