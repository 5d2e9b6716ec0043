"""Every long-term store keeps the laws."""

import itertools
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
import xxhash

from tierstore.backends.long_term.contract import LongTermBackend
from tierstore.backends.long_term.filesystem import FilesystemLongTerm
from tierstore.backends.long_term.memory import MemoryBlobs, MemoryLongTerm, Repeats, StoredBlob
from tierstore.limits import Limits
from tierstore.testing.clock import ManualClock
from tierstore.testing.ids import SeededIds
from tierstore.testing.laws.long_term import LongTermLaws
from tierstore.types.ids import Revision

CHECKSUM_OFFSET = 32
"""Where the header of a blob file has the payload's checksum."""


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

    async def stored(self) -> Mapping[UUID, bytes]:
        files = [file for file in (self.root / "blobs").rglob("*") if file.is_file()]
        return {UUID(file.stem): file.read_bytes()[payload_offset(file) :] for file in files}

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

    async def leftovers(self) -> int:
        return sum(file.is_file() and file.name != "lock" for file in (self.root / "tmp").rglob("*"))


class TestMemory(LongTermLaws):
    """A dict."""

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

    async def leftovers(self) -> int:
        return len(self.blobs.unfinished)


class TestMemoryThatRepeats(TestMemory):
    """A dict that answers success to a repeated complete or abort."""

    repeats = Repeats.SUCCEED
