"""Every long-term store keeps the laws."""

import itertools
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import UUID

import pytest
import xxhash

from tierstore.backends.long_term.contract import LongTermBackend
from tierstore.backends.long_term.filesystem import FilesystemLongTerm
from tierstore.backends.long_term.memory import MemoryBlobs, MemoryLongTerm, Repeats, StoredBlob
from tierstore.limits import Limits
from tierstore.testing.clock import ManualClock
from tierstore.testing.ids import SeededIds
from tierstore.testing.laws.long_term import LongTermLaws, object_id
from tierstore.types.ids import Revision
from tierstore.types.multipart import UploadId

CHECKSUM_OFFSET = 32
"""Where the header of a blob file has the payload's checksum."""
KIND_OFFSET = 9
PLAIN = 1
"""The kind of a blob file that holds its payload; the other kind names parts that hold it."""
PART_HEADER_BYTES = 96
PART_RECORD_BYTES = 36


def encoded(revision: Revision, content: bytes, stored: int) -> bytes:
    """A blob file, as the format's table says and not as the code under test does."""
    path = revision.storage_path.encode()
    fixed = b"TIERBLOB" + bytes([1, 1, 0, 0]) + struct.pack(">IQQ", len(path), len(content), stored)
    fixed += xxhash.xxh3_128_digest(content)
    return fixed + xxhash.xxh3_64_digest(fixed + path) + path + content


def payload_offset(file: Path) -> int:
    """Where the payload of a blob file begins."""
    return 56 + int.from_bytes(file.read_bytes()[12:16], "big")


class TestFilesystem(LongTermLaws):
    """A directory."""

    tells_parts = True

    @pytest.fixture(autouse=True)
    def _store(self, tmp_path: Path) -> None:
        self.clock = ManualClock()
        self.root = tmp_path / "blobs of a test"
        self.seeds = itertools.count(100)

    async def open(self, limits: Limits) -> LongTermBackend:
        ids = SeededIds(next(self.seeds))
        return await FilesystemLongTerm.open(self.root, limits=limits, clock=self.clock, ids=ids, threads=4)

    def file(self, revision: Revision) -> Path:
        """Where a blob's file is."""
        return self.root / "blobs" / str(revision.uuid)[-3:] / f"{revision.uuid}.blob"

    def parts(self, uuid: UUID) -> Path:
        """Where the parts are of an upload."""
        return self.root / "blobs" / str(uuid)[-3:] / f"{uuid}.parts"

    async def stored(self) -> Mapping[UUID, bytes]:
        files = [file for file in (self.root / "blobs").glob("*/*") if file.is_file()]
        return {UUID(file.stem): self.payload(file) for file in files}

    def payload(self, file: Path) -> bytes:
        """The payload of a blob file, or of the parts that its table names."""
        raw = file.read_bytes()
        if raw[KIND_OFFSET] == PLAIN:
            return raw[payload_offset(file) :]
        return b"".join(part.read_bytes()[PART_HEADER_BYTES:] for part in self.named(file))

    def named(self, file: Path) -> list[Path]:
        """The parts that a blob file names, in order."""
        table = file.read_bytes()[payload_offset(file) :]
        numbers = [int.from_bytes(table[at : at + 4], "big") for at in range(0, len(table), PART_RECORD_BYTES)]
        return [file.with_suffix(".parts") / f"{number:05}.part" for number in numbers]

    async def plant(self, revision: Revision, content: bytes) -> None:
        self.file(revision).parent.mkdir(parents=True, exist_ok=True)
        self.file(revision).write_bytes(encoded(revision, content, self.clock.now()))

    async def replace_payload(self, revision: Revision, content: bytes) -> None:
        file = self.file(revision)
        file.write_bytes(file.read_bytes()[: payload_offset(file)] + content)

    async def damage_header(self, revision: Revision) -> None:
        raw = bytearray(self.file(revision).read_bytes())
        raw[CHECKSUM_OFFSET] ^= 1
        self.file(revision).write_bytes(raw)

    async def damage_upload(self, upload: UploadId) -> bool:
        file = self.parts(upload.revision.uuid) / "upload"
        raw = bytearray(file.read_bytes())
        raw[-1] ^= 1
        file.write_bytes(raw)
        return True

    @contextmanager
    def watched(self, revision: Revision) -> Iterator[Callable[[], bool]]:
        leaf, synced = self.file(revision).parent, set[Path]()

        def watch(frame: FrameType, event: str, called: Any) -> None:
            if event == "c_return" and called.__name__ == "fsync" and "directory" in frame.f_locals:
                synced.add(frame.f_locals["directory"])

        threading.setprofile(watch)
        try:
            yield lambda: {leaf, leaf.parent} <= synced
        finally:
            threading.setprofile(None)

    async def leftovers(self) -> int:
        temporary = sum(file.is_file() and file.name != "lock" for file in (self.root / "tmp").rglob("*"))
        of_uploads = set((self.root / "blobs").glob("*/*.parts/*"))
        for file in (self.root / "blobs").glob("*/*.blob"):
            if file.read_bytes()[KIND_OFFSET] != PLAIN:
                of_uploads -= {*self.named(file), file.with_suffix(".parts") / "upload"}
        return temporary + len(of_uploads)


class TestMemory(LongTermLaws):
    """A dict."""

    tells_parts = False

    @pytest.fixture(autouse=True)
    def _store(self) -> None:
        self.clock = ManualClock()
        self.blobs = MemoryBlobs()

    repeats = Repeats.NOT_FOUND

    async def open(self, limits: Limits) -> LongTermBackend:
        return MemoryLongTerm(self.blobs, limits=limits, clock=self.clock, repeats=self.repeats)

    async def stored(self) -> Mapping[UUID, bytes]:
        return {revision.uuid: blob.payload for revision, blob in self.blobs.by_revision.items()}

    async def plant(self, revision: Revision, content: bytes) -> None:
        checksum = xxhash.xxh3_128_digest(content)
        self.blobs.by_revision[revision] = StoredBlob(content, len(content), checksum, self.clock.now())

    async def replace_payload(self, revision: Revision, content: bytes) -> None:
        self.blobs.by_revision[revision] = replace(self.blobs.by_revision[revision], payload=content)

    async def damage_header(self, revision: Revision) -> None:
        blob = self.blobs.by_revision[revision]
        self.blobs.by_revision[revision] = replace(blob, size=blob.size ^ 1)

    async def damage_upload(self, upload: UploadId) -> bool:
        self.blobs.uploads[upload.revision].revision = Revision(object_id("another"), upload.revision.uuid)
        return True

    @contextmanager
    def watched(self, revision: Revision) -> Iterator[Callable[[], bool]]:
        yield lambda: revision in self.blobs.by_revision  # which outlives every instance

    async def leftovers(self) -> int:
        uploads = self.blobs.uploads.values()
        return len(self.blobs.unfinished) + sum(1 + len(upload.parts) for upload in uploads)


class TestMemoryThatRepeats(TestMemory):
    """A dict that answers success to a repeated complete or abort."""

    repeats = Repeats.SUCCEED
