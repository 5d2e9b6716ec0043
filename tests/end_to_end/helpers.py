"""A look at the stores of a server that has ended, and damage to those of one that runs."""

import asyncio
import io
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from tierstore.backends.high_volume.contract import Tombstone
from tierstore.build import open_stores
from tierstore.clock import SystemClock
from tierstore.config import Setting, load_config
from tierstore.idsource import SystemIds
from tierstore.limits import Limits
from tierstore.testing.server import ServerProcess
from tierstore.types.ids import Revision

_ROWS_MAX = 100_000

PROMPT_SWEEPER = {
    "sweeper": {"grace": 0, "second_visit": 0, "period": 1},
    "tiering": {"operation_deadline": 5},
}
"""Settings for a server that settles what others have left as soon as it can."""


@dataclass(frozen=True)
class Remains:
    """What is in the stores."""

    blobs: set[Revision]
    referenced: set[Revision]
    """Revisions that rows point to."""
    entries: int
    """In the change log."""
    files: int
    """In the directories of the long-term store that hold blobs and unfinished ones."""

    def check_settled(self) -> None:
        """Every blob is referenced, every reference has its blob, nothing else is left."""
        assert self.blobs - self.referenced == set(), "orphans"
        assert self.referenced - self.blobs == set(), "dangling tombstones"
        assert self.entries == 0, "the change log is not empty"
        assert self.files == len(self.blobs), "files that are no blobs"


async def remains(data: Path) -> Remains:
    """Open the stores below ``data``, whose server has ended, and look."""
    config = load_config(None, {}, {"data.path": Setting(str(data), "test")}).config
    files = sum(path.is_file() for part in ("blobs", "tmp") for path in (data / "long-term" / part).rglob("*"))
    async with open_stores(config, Limits(), SystemClock(), SystemIds()) as stores:
        rows = await stores.high_volume.scan("", None, _ROWS_MAX)
        blobs = await stores.long_term.list("", None, _ROWS_MAX)
        return Remains(
            blobs={blob.revision for blob in blobs},
            referenced={
                Revision(found.object_id, found.row.content.revision)
                for found in rows
                if isinstance(found.row.content, Tombstone)
            },
            entries=(await stores.changelog.backlog()).entries,
            files=files,
        )


async def put(http: aiohttp.ClientSession, path: str, payload: bytes) -> int:
    """PUT ``payload``; return the status."""
    async with http.put(path, data=io.BytesIO(payload)) as response:
        await response.read()
        return response.status


async def get(http: aiohttp.ClientSession, path: str) -> tuple[int, bytes]:
    """GET; return status and payload."""
    async with http.get(path) as response:
        return response.status, await response.read()


async def until_log_is_empty(http: aiohttp.ClientSession) -> None:
    """Wait until the sweeper of a server has settled everything that is in the change log."""
    for _ in range(200):
        async with http.get("/metrics") as response:
            if "\ntierstore_changelog_entries 0.0" in await response.text():
                return
        await asyncio.sleep(0.1)
    raise AssertionError("the change log has not become empty")


def stop(server: ServerProcess) -> None:
    """Ask the server to end, and see that it does so cleanly. Blocks."""
    server.terminate()
    assert server.wait() == 0


def flip_bit(data: Path, payload: bytes, index: int) -> int:
    """Flip a bit of byte ``index`` of ``payload`` wherever a file below ``data`` has it; return how often that was."""
    window = payload[index : index + 64]  # databases keep a long payload in pieces
    flipped = 0
    for file in data.rglob("*"):
        if not file.is_file():
            continue
        content = file.read_bytes()
        position = content.find(window)
        while position >= 0:
            with file.open("r+b") as writable:
                writable.seek(position)
                writable.write(bytes([payload[index] ^ 1]))
            flipped += 1
            position = content.find(window, position + 1)
    return flipped
