"""A look at the stores of a server that has ended, and damage to those of one that runs."""

import asyncio
import io
import re
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from tests.engines.deployment import EMBEDDED, Deployment
from tierstore.backends.high_volume.contract import Tombstone
from tierstore.backends.long_term.blob_file import read_header
from tierstore.backends.long_term.store_directory import part_name, part_numbers, upload_beside
from tierstore.build import Stores, open_stores
from tierstore.clock import SystemClock
from tierstore.config import limits_from
from tierstore.idsource import SystemIds
from tierstore.testing.server import ServerProcess
from tierstore.types.ids import Revision

_ROWS_MAX = 100_000
_LEAF = re.compile(r"[0-9a-f]{3}")

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
    logged: set[Revision]
    """Revisions that are in the change log."""
    entries: int
    """In the change log, without those of uploads that are in progress, or done and remembered."""
    uploads: int
    """Uploads in progress."""
    strays: set[str]
    """What is in the long-term store and part of neither a blob nor the store itself, where one can look."""

    def check_recoverable(self) -> None:
        """What is true at any instant, also at that of a crash: no reference dangles, and no blob is forgotten."""
        assert self.referenced - self.blobs == set(), "dangling tombstones"
        assert self.blobs - self.referenced - self.logged == set(), "orphans that nobody knows of"

    def check_settled(self) -> None:
        """Every blob is referenced, every reference has its blob, nothing else is left."""
        assert self.blobs - self.referenced == set(), "orphans"
        assert self.referenced - self.blobs == set(), "dangling tombstones"
        assert self.entries == 0, "the change log is not empty"
        assert self.uploads == 0, "uploads are in progress"
        assert self.strays == set(), f"what is no part of a blob: {sorted(self.strays)}"


async def remains(data: Path, deployment: Deployment = EMBEDDED) -> Remains:
    """Open the stores of a server that has ended, and look; read every blob that a row points to.

    Embedded ones are below ``data``.
    """
    with deployment.environment_here():
        return await _remains(data, deployment)


async def _remains(data: Path, deployment: Deployment) -> Remains:
    config = deployment.config(data)
    # Before the stores are opened, which makes a directory.
    strays = _strays(data / "long-term") if deployment.is_embedded else set()
    async with open_stores(config, limits_from(config), SystemClock(), SystemIds()) as stores:
        rows = await stores.high_volume.scan("", None, _ROWS_MAX)
        blobs = {blob.revision for blob in await stores.long_term.list("", None, _ROWS_MAX)}
        referenced = {
            Revision(found.object_id, found.row.content.revision)
            for found in rows
            if isinstance(found.row.content, Tombstone)
        }
        for revision in referenced & blobs:
            await _read_whole(stores, revision)
        backlog = await stores.changelog.backlog()
        return Remains(
            blobs=blobs,
            referenced=referenced,
            logged={entry.revision for entry in await stores.changelog.list(None, _ROWS_MAX)},
            entries=backlog.entries,
            uploads=backlog.uploads,
            strays=strays | deployment.strays(blobs),
        )


async def _read_whole(stores: Stores, revision: Revision) -> None:
    """Read a blob to its end, which verifies it."""
    stream = await stores.long_term.get(revision)
    assert stream is not None, f"{revision.storage_path} is listed, but not there"
    try:
        assert sum([len(chunk) async for chunk in stream]) == stream.size
    finally:
        await stream.aclose()


def _strays(root: Path) -> set[str]:
    """What is below ``root``, by its relative path, and belongs neither to the store nor to a blob."""
    known = {root / name for name in ("format", "identity", "lock", "blobs", "tmp")}
    known |= {leaf for leaf in (root / "blobs").iterdir() if _LEAF.fullmatch(leaf.name)}
    for file in (root / "blobs").glob("*/*.blob"):
        known.add(file)
        header = read_header(file)
        directory = upload_beside(file)
        numbers = part_numbers(directory)
        # That those in the blob's table are among them is found out by reading it.
        if header is not None and header.parts and header.parts == len(numbers):
            known |= {directory, directory / "upload", *(directory / part_name(number) for number in numbers)}
    return {str(path.relative_to(root)) for path in root.rglob("*")} - {str(path.relative_to(root)) for path in known}


def send_once(session: aiohttp.ClientSession) -> None:
    """Let ``session`` send every request once.

    By itself it sends an idempotent one again when its connection breaks, and then tells of the second try alone: a
    write that has reached a server which then died looks as if nobody had listened.
    """
    session._retry_connection = False  # no other way is offered; aiohttp's own test client does the same


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
            text = await response.text()
        if all(f"\n{gauge} 0.0" in text for gauge in ("tierstore_changelog_entries", "tierstore_uploads_in_progress")):
            return
        await asyncio.sleep(0.1)
    raise AssertionError("the change log has not become empty")


async def until_swept(server: ServerProcess, deployment: Deployment = EMBEDDED) -> None:
    """Wait until the sweeper has settled everything, and has removed what processes that died have left.

    Only for a server that is alone on its stores.
    """
    async with aiohttp.ClientSession(server.url) as http:
        await until_log_is_empty(http)
    if not deployment.is_embedded:
        return
    instances = server.data / "long-term" / "tmp"
    for _ in range(200):
        if len(list(instances.iterdir())) == len(server.worker_pids):
            return
        await asyncio.sleep(0.1)
    raise AssertionError("the debris of processes that died has not been removed")


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
