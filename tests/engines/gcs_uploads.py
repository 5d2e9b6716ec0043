"""Multipart uploads as the XML API keeps them, and the rules by which it completes them."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise

from tests.engines.gcs_documents import NO_SUCH_UPLOAD, NamedPart, Refused

PARTS_MAX = 10_000


class State(Enum):
    """What has become of an upload."""

    IN_PROGRESS = "in progress"
    COMPLETING = "completing"
    COMPLETED = "completed"
    ABORTED = "aborted"


@dataclass
class StoredPart:
    """A part of an upload in progress."""

    number: int
    content: bytes
    stored: float = field(default_factory=time.time)

    @property
    def etag(self) -> str:
        """Without quotes."""
        return hashlib.md5(self.content, usedforsecurity=False).hexdigest()


@dataclass
class StoredUpload:
    """An upload, also after its end: repeated requests are answered by what it became."""

    bucket: str
    name: str
    upload_id: str
    metadata: Mapping[str, object]
    """What its object is to have, as the JSON API names it."""
    begun: float = field(default_factory=time.time)
    parts: dict[int, StoredPart] = field(default_factory=dict)
    state: State = State.IN_PROGRESS


class Uploads:
    """All uploads of a server."""

    def __init__(self, part_bytes_min: int) -> None:
        self.part_bytes_min = part_bytes_min
        self._by_id: dict[str, StoredUpload] = {}

    def begin(self, bucket: str, name: str, metadata: Mapping[str, object]) -> StoredUpload:
        """A new upload; there may be any number for one name."""
        upload_id = f"ABPnzm{len(self._by_id) + 1:08}+/=-_x"
        upload = StoredUpload(bucket, name, upload_id, metadata)
        self._by_id[upload_id] = upload
        return upload

    def known(self, bucket: str, name: str, upload_id: str) -> StoredUpload:
        """The upload, whatever has become of it. Raises `Refused` for one that never was."""
        upload = self._by_id.get(upload_id)
        if upload is None or (upload.bucket, upload.name) != (bucket, name):
            raise NO_SUCH_UPLOAD
        return upload

    def in_progress(self, bucket: str, name: str, upload_id: str) -> StoredUpload:
        """The upload, if parts may still come. Raises `Refused`."""
        upload = self.known(bucket, name, upload_id)
        if upload.state is not State.IN_PROGRESS:
            raise NO_SUCH_UPLOAD
        return upload

    def all_in_progress(self, bucket: str, prefix: str = "") -> Sequence[StoredUpload]:
        """Those that have not ended, by name."""
        found = [
            upload
            for upload in self._by_id.values()
            if upload.bucket == bucket
            and upload.name.startswith(prefix)
            and upload.state in {State.IN_PROGRESS, State.COMPLETING}
        ]
        return sorted(found, key=lambda upload: (upload.name, upload.upload_id))

    def chosen(self, upload: StoredUpload, named: Sequence[NamedPart]) -> Sequence[StoredPart]:
        """The parts that ``named`` names. Raises `Refused` if they cannot be one object."""
        if any(before.number >= after.number for before, after in pairwise(named)):
            raise Refused(400, "InvalidPartOrder", "The list of parts was not in ascending order.")
        chosen = []
        for part in named:
            stored = upload.parts.get(part.number)
            if stored is None or stored.etag != part.etag:
                raise Refused(400, "InvalidPart", "One or more of the specified parts could not be found.")
            chosen.append(stored)
        if any(len(part.content) < self.part_bytes_min for part in chosen[:-1]):
            raise Refused(400, "EntityTooSmall", "Your proposed upload is smaller than the minimum allowed part size.")
        return chosen
