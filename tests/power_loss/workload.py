"""Clients of the tiered store: what a seed makes them do, and what they are told, in the ledger.

Every key and every upload has one client at a time, so that of each it is known what was acknowledged last; several
keys are busy at once. As a process of its own (``python -m tests.power_loss.workload``) it can be killed, and another
one goes on from its ledger: whoever does not know what became of a request tries it again.
"""

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import msgspec

from tests.power_loss.history import LEDGER, STORES, Action, History, Line, Operation, Upload, parse
from tests.power_loss.stores import LIMITS, Opened, Payload, object_id, opened
from tierstore.clock import MICROS_PER_SECOND, UnixMicros
from tierstore.errors import NoSuchUpload, StartupError, Unavailable
from tierstore.limits import KIB
from tierstore.types.metadata import MANUAL, Metadata, TimeToLive
from tierstore.types.multipart import PartName, UploadId

_KEYS = 5
_START = 1_700_000_000_000_000
_TTL_SECONDS = 500_000
_LARGE_BYTES_MAX = 12 * KIB
_BUSY_KEYS_MAX = 3
_ATTEMPTS_MAX = 12
_SECONDS_MAX = 900_000
"""How much time passes in a run: less than uploads and their outcomes are kept."""


@dataclass(frozen=True, slots=True)
class _Open:
    """The stores of this process, for as long as they are open."""

    stack: AsyncExitStack
    stores: Opened


class Workload:
    """The clients, and the process that serves them."""

    def __init__(self, disk: Path, seed: int, *, disk_fails: bool = False) -> None:
        self._disk = disk
        self._disk_fails = disk_fails
        """Whether work off the clients' paths may fail, and is left to the sweeper."""
        self._random = Random(seed)
        self._ledger = os.open(disk / LEDGER, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        lines = parse((disk / LEDGER).read_bytes())
        self._history = History(lines)
        self._closed_at = self._history.now or _START
        self._open: _Open | None = None

    async def run(self, steps: int) -> None:
        """Take so many steps, then close. Each is a few operations at once, a sweep or a restart."""
        try:
            for _ in range(steps):
                match self._random.random():
                    case drawn if self._open is None or drawn < 0.04:
                        await self._restart()
                    case drawn if drawn < 0.12:
                        await self._sweep()
                    case _:
                        await self._serve_some()
            await self._close()
        finally:
            os.close(self._ledger)

    async def play(self, actions: Sequence[Action]) -> None:
        """Open the stores, try again what is in doubt, then do these things, one after the other."""
        try:
            await self._restart()
            for action in actions:
                await self._acknowledged(action)
            await self._close()
        finally:
            os.close(self._ledger)

    async def _restart(self) -> None:
        await self._close()
        await self._acknowledged(Action("open"))
        for action in self._history.in_doubt:
            await self._acknowledged(action)

    async def _close(self) -> None:
        if self._open is not None:
            self._closed_at = self._now
            await self._open.stack.aclose()
            if self._open.stores.failures and not self._disk_fails:
                raise ExceptionGroup("cleanup failed", [_exception(error) for _, error in self._open.stores.failures])
            self._open = None

    async def _sweep(self) -> None:
        later = self._random.choice([700, 1_000, 100_000])
        if self._now + later * MICROS_PER_SECOND > _START + _SECONDS_MAX * MICROS_PER_SECOND:
            later = 1
        await self._stores.drain()
        self._stores.clock.advance(later)
        await self._acknowledged(Action("sweep"))

    async def _serve_some(self) -> None:
        keys = self._random.sample(range(_KEYS), self._random.randint(1, _BUSY_KEYS_MAX))
        await asyncio.gather(*(self._acknowledged(self._draw(f"k{key}")) for key in keys))
        if self._random.random() < 0.3:
            await self._stores.drain()

    @property
    def _now(self) -> UnixMicros:
        return self._closed_at if self._open is None else self._open.stores.clock.now()

    @property
    def _stores(self) -> Opened:
        if self._open is None:
            raise LookupError("the stores are closed")
        return self._open.stores

    def _draw(self, key: str) -> Action:
        random = self._random
        uploads = [
            (number, upload)
            for number, upload in self._history.uploads.items()
            if upload.begun.action.key == key and upload.in_progress
        ]
        if uploads and random.random() < 0.7:
            return self._draw_of_upload(key, *random.choice(uploads))
        ttl = random.choice([None, None, _TTL_SECONDS, 1_500])
        match random.random():
            case drawn if drawn < 0.3:
                return Action("put", key, random.randint(0, LIMITS.inline_bytes_max), ttl)
            case drawn if drawn < 0.65:
                return Action("put", key, random.randint(LIMITS.inline_bytes_max + 1, _LARGE_BYTES_MAX), ttl)
            case drawn if drawn < 0.8:
                return Action("delete", key)
            case _:
                return Action("initiate", key, ttl=ttl)

    def _draw_of_upload(self, key: str, number: int, upload: Upload) -> Action:
        random = self._random
        drawn = random.random()
        if upload.parts and drawn < 0.3:
            chosen = sorted(part for part in upload.parts if random.random() < 0.8) or sorted(upload.parts)
            parts = tuple((part, upload.parts[part][-1].result or "") for part in chosen)
            return Action("complete", key, upload=number, parts=parts)
        if drawn < 0.38:
            return Action("abort", key, upload=number)
        return Action("part", key, random.randint(0, _LARGE_BYTES_MAX), upload=number, part=random.randint(1, 4))

    async def _acknowledged(self, action: Action) -> None:
        """Do it, with a line in the ledger before and after; and again, as a new operation, if it fails."""
        for attempt in range(_ATTEMPTS_MAX):
            number = len(self._history.operations) + 1
            self._write(Line(number, self._now, action))
            try:
                result = await self._perform(self._history.operations[number])
            except (Unavailable, StartupError):
                if attempt == _ATTEMPTS_MAX - 1:
                    raise
                continue
            self._write(Line(number, self._now, result=result))
            return

    def _write(self, line: Line) -> None:
        left = msgspec.json.encode(line) + b"\n"
        while left:
            with suppress(*[OSError] if self._disk_fails else []):
                left = left[os.write(self._ledger, left) :]
        self._history.add(line)

    async def _perform(self, operation: Operation) -> str:
        """Ask the stores; return what the client needs later."""
        action = operation.action
        match action.verb:
            case "open":
                stack = AsyncExitStack()
                seed = self._random.getrandbits(64)
                stores = await stack.enter_async_context(opened(self._disk / STORES, self._now, seed))
                self._open = _Open(stack, stores)
            case "sweep":
                with suppress(*[ExceptionGroup] if self._disk_fails else []):
                    await self._stores.sweep(0)
            case "put":
                metadata = _metadata(operation)
                await self._stores.tiering.store.put(object_id(action.key), metadata, Payload(operation.payload))
            case "delete":
                await self._stores.tiering.store.delete(object_id(action.key))
            case "initiate":
                upload = await self._stores.tiering.uploads.initiate(object_id(action.key), _metadata(operation))
                return upload.encode()
            case _:
                return await self._perform_of_upload(operation)
        return ""

    async def _perform_of_upload(self, operation: Operation) -> str:
        action = operation.action
        uploads = self._stores.tiering.uploads
        upload = upload_id(self._history.uploads[action.upload or 0])
        match action.verb:
            case "part":
                return (await uploads.upload_part(upload, action.part, Payload(operation.payload), None)).etag
            case "complete":
                await uploads.complete(upload, [PartName(part, etag) for part, etag in action.parts])
            case "abort":
                await self._abort(upload)
            case _:
                raise ValueError(f"{action.verb} is nothing that is done to an upload")
        return ""

    async def _abort(self, upload: UploadId) -> None:
        """Abort it, or find it aborted; whom another one is settling it for, that one is waited for."""
        try:
            await self._stores.tiering.uploads.abort(upload)
        except NoSuchUpload:
            return
        except Unavailable:
            await self._stores.sweep(LIMITS.sweep_lease_seconds + 1)
            await self._stores.tiering.uploads.abort(upload)


def upload_id(upload: Upload) -> UploadId:
    """The id that the client of an upload was given."""
    begun = upload.begun
    return UploadId.decode(begun.result or "", object_id(begun.action.key), LIMITS)


def _metadata(operation: Operation) -> Metadata:
    ttl = operation.action.ttl
    expiration = MANUAL if ttl is None else TimeToLive(ttl)
    return Metadata(expiration=expiration, custom=(("operation", str(operation.number)),))


def _exception(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else RuntimeError(repr(error))


def main() -> None:
    """Run on the disk and with the seed that the arguments name, for so many steps, or what a JSON list says."""
    disk, seed, play = sys.argv[1:]
    workload = Workload(Path(disk), int(seed))
    if play.isdecimal():
        asyncio.run(workload.run(int(play)))
    else:
        asyncio.run(workload.play(msgspec.json.decode(play, type=list[Action])))


if __name__ == "__main__":
    main()
