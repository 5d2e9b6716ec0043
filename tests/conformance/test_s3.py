"""A bucket of SeaweedFS keeps the laws of a long-term store."""

import itertools
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from uuid import UUID
from xml.etree import ElementTree as ET

import pytest
import xxhash

from tests.engines.seaweedfs import ACCESS_KEY, SECRET_KEY, SeaweedFs
from tierstore.backends.long_term.contract import LongTermBackend
from tierstore.backends.long_term.s3 import S3LongTerm
from tierstore.limits import KIB, MIB, Limits
from tierstore.testing.clock import ManualClock
from tierstore.testing.ids import SeededIds
from tierstore.testing.laws.long_term import BlobLaws, LongTermSuite, UploadLaws
from tierstore.types.ids import Revision
from tierstore.types.multipart import UploadId

UPLOAD_VERSION = 8
TRAILER = struct.Struct(">8sBxHIQ16s16s8s")
"""Behind a payload or a part: magic, version, bytes of a path before it, number, size, checksum, nonce, seal."""
CHECKSUM_FROM_END = 40


def sealed(revision: Revision, content: bytes) -> bytes:
    """A blob as the format's table says, and not as the code under test does; of a path that is not long."""
    fields = struct.pack(
        ">8sBxHIQ16s16s", b"TIERBLOB", 1, 0, 0, len(content), xxhash.xxh3_128_digest(content), bytes(16)
    )
    return content + fields + xxhash.xxh3_64_digest(fields + revision.storage_path.encode())


def encoded(path: str) -> str:
    """A path as it is in names; of one that is not long."""
    segments = ["".join(re.sub(r"[^A-Za-z0-9_]", escaped, segment)) or "~e" for segment in path.split("/")]
    return "/".join(segments)


def escaped(found: "re.Match[str]") -> str:
    """A character as it is in names."""
    return "".join(f"~{byte:02X}" for byte in found[0].encode())


def payload_of(uuid: UUID, content: bytes) -> bytes:
    """The payload in what is stored: before the trailer, or before each of the parts' trailers."""
    parts = []
    while content:
        fields = TRAILER.unpack(content[-TRAILER.size :])
        path_bytes, size = fields[2], fields[4]
        content = content[: -TRAILER.size - path_bytes]
        if uuid.version != UPLOAD_VERSION:
            return content
        parts.append(content[len(content) - size :])
        content = content[: len(content) - size]
    return b"".join(parts[::-1])


def texts(document: bytes, path: str) -> Iterator[Sequence[str]]:
    """The texts of the children of each element at ``path``, as pairs of a name and a text, flattened."""
    root = ET.fromstring(re.sub(rb' xmlns="[^"]*"', b"", document, count=1))
    for element in root.findall(path):
        yield [text for child in element for text in (child.tag, child.text or "")]


def fields(document: bytes, path: str) -> Sequence[Mapping[str, str]]:
    """The children of each element at ``path``, by name."""
    return [dict(zip(flat[::2], flat[1::2], strict=True)) for flat in texts(document, path)]


class OnSeaweedFs(LongTermSuite):
    """A bucket of SeaweedFS, and its back door."""

    tells_parts = True
    forgets_replaced_parts = False
    stored_seconds_apart = 2.0
    moments = 10
    races = 4

    @pytest.fixture(autouse=True)
    def _store(self, seaweedfs: SeaweedFs, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        self.engine = seaweedfs
        self.clock = ManualClock()
        self.prefix = seaweedfs.new_prefix()
        self.seeds = itertools.count(100)

    async def open(self, limits: Limits) -> LongTermBackend:
        return await S3LongTerm.open(
            bucket=self.engine.bucket,
            endpoint=self.engine.url,
            prefix=self.prefix,
            timeout_seconds=10.0,
            limits=replace(limits, part_bytes_min=max(limits.part_bytes_min, 1)),
            clock=self.clock,
            ids=SeededIds(next(self.seeds)),
        )

    def name(self, revision: Revision) -> str:
        """The name of a blob."""
        return f"{self.prefix}/blobs/{encoded(revision.object_id.storage_path)}/~u{revision.uuid.hex}"

    def raw(self, method: str, name: str, body: bytes = b"", query: str = "") -> bytes:
        """What the store answers."""
        answer = self.engine.ask(method, name, body, query)
        assert answer.ok, answer.text
        return answer.content

    def names(self, below: str) -> Sequence[str]:
        """The names of all that is stored below a folder."""
        found: list[str] = []
        while True:
            after = f"&start-after={found[-1].replace('/', '%2F')}" if found else ""
            page = self.raw("GET", "", query=f"list-type=2&prefix={self.prefix}%2F{below}{after}")
            listed = [each["Key"] for each in fields(page, "Contents")]
            found += listed
            if b"<IsTruncated>true" not in page:
                return found

    async def stored(self) -> Mapping[UUID, bytes]:
        found = {}
        for name in self.names("blobs%2F"):
            if leaf := re.fullmatch(r"~u([0-9a-f]{32})", name.rpartition("/")[2]):
                uuid = UUID(leaf[1])
                found[uuid] = payload_of(uuid, self.raw("GET", name))
        return found

    async def plant(self, revision: Revision, content: bytes) -> None:
        self.raw("PUT", self.name(revision), sealed(revision, content))

    async def replace_payload(self, revision: Revision, content: bytes) -> None:
        trailer = self.raw("GET", self.name(revision))[-TRAILER.size :]
        self.raw("PUT", self.name(revision), content + trailer)

    async def damage_header(self, revision: Revision) -> None:
        content = bytearray(self.raw("GET", self.name(revision)))
        content[-CHECKSUM_FROM_END] ^= 1
        self.raw("PUT", self.name(revision), bytes(content))

    async def damage_upload(self, upload: UploadId) -> bool:
        return False  # the store keeps it, and we have nothing beside it

    @contextmanager
    def watched(self, revision: Revision) -> Iterator[Callable[[], bool]]:
        yield lambda: self.name(revision) in self.names("blobs%2F")  # what the store lists, it keeps

    async def leftovers(self) -> int:
        names = self.names("")
        blobs = {name for name in names if re.fullmatch(r".*/~u[0-9a-f]{32}", name)}
        count = sum(name.endswith("_layout") and name.removesuffix("_layout") not in blobs for name in names)
        count += sum("/probes/" in name for name in names)
        replaced = {
            (name.rpartition("_part")[0], int(name.rpartition("_part")[2])) for name in names if "_part" in name
        }
        uploads = fields(self.raw("GET", "", query=f"prefix={self.prefix}%2F&uploads="), "Upload")
        for each in uploads:
            listed = self.raw("GET", each["Key"], query=f"uploadId={each['UploadId']}")
            replaced |= {(each["Key"], int(part["PartNumber"])) for part in fields(listed, "Part")}
        return count + len(uploads) + len(replaced)


class TestS3(OnSeaweedFs, BlobLaws):
    """Blobs that are put at once."""


class TestS3Uploads(OnSeaweedFs, UploadLaws):
    """Uploads, with parts as large as S3 wants them."""

    limits = replace(
        Limits.tiny(),
        part_bytes_min=5 * MIB,
        part_bytes_max=32 * MIB,
        object_bytes_max=16 * MIB,
        stream_chunk_bytes=256 * KIB,
    )
