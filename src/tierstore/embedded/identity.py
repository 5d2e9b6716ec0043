"""The identity that a database file keeps: a table with one row, and its two operations.

Guarantees: the identity is drawn elsewhere, kept once, and never replaced.
"""

from typing import cast
from uuid import UUID

from tierstore.embedded.database import Connection, Database

MIGRATION = """
    CREATE TABLE identity (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        uuid BLOB NOT NULL CHECK (length(uuid) = 16)
    ) STRICT;
"""
_KEEP = "INSERT INTO identity (id, uuid) VALUES (1, ?) ON CONFLICT DO NOTHING"
_KEPT = "SELECT uuid FROM identity"


async def kept_identity(database: Database) -> UUID | None:
    """The identity that the file keeps."""
    return await database.read(_kept)


async def keep_identity(database: Database, identity: UUID) -> UUID:
    """Give the file ``identity`` unless it has one; return the one that it has."""

    def work(connection: Connection) -> UUID | None:
        connection.execute(_KEEP, (identity.bytes,)).fetchall()
        return _kept(connection)

    return await database.write(work) or identity


def _kept(connection: Connection) -> UUID | None:
    kept = cast("bytes | None", connection.execute(_KEPT).get)
    return None if kept is None else UUID(bytes=kept)
