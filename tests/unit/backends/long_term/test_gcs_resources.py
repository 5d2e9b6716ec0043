"""What Google Cloud Storage keeps of an object, and what is kept there of ours."""

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from tierstore.backends.long_term.gcs_resources import (
    PATH_BYTES_MAX,
    MediaHead,
    blob_of,
    checksum_of,
    date_of,
    kept_path,
    told_revision,
)
from tierstore.errors import CorruptObject, Unavailable
from tierstore.limits import Limits
from tierstore.object_storage.names import Names, is_cut
from tierstore.testing.hostile import HOSTILE_IDS
from tierstore.testing.ids import SeededIds
from tierstore.types.ids import ObjectId, Revision, Scope

NAMES = Names("p")
CUSTOM_METADATA_BYTES_MAX = 8 * 1024
RESOURCE = {"name": "n", "size": "3", "crc32c": "4waSgw==", "timeCreated": "2026-01-02T03:04:05.678Z"}


def head(*fields: tuple[str, str]) -> "CIMultiDictProxy[str]":
    """The head of an answer."""
    return CIMultiDictProxy(CIMultiDict(fields))


def test_paths_that_names_cannot_hold_come_back() -> None:
    """They are in the metadata, in ASCII, within the service's bound; other blobs have none."""
    ids = SeededIds(1)
    for object_id in HOSTILE_IDS:
        revision = Revision(object_id, ids.uuid())
        kept = kept_path(revision)
        assert bool(kept) == is_cut(object_id)
        if kept:
            assert sum(len(key) + len(value) for key, value in kept.items()) <= CUSTOM_METADATA_BYTES_MAX
            assert all(value.isascii() and value.isprintable() for value in kept.values())
            assert told_revision({"name": NAMES.blob(revision), "metadata": kept}) == revision


def test_a_path_that_no_place_can_hold_is_kept_nowhere() -> None:
    """Its blob does not say which it is: listings pass over it."""
    scopes = tuple(Scope(f"s{number}" + "n" * 200, "v" * 256) for number in range(Limits().scopes_max))
    revision = Revision(ObjectId("photos", scopes, "k" * 4096), SeededIds(1).uuid())
    assert len(revision.object_id.storage_path) > PATH_BYTES_MAX
    assert kept_path(revision) == {}
    with pytest.raises(CorruptObject):
        told_revision({"name": NAMES.blob(revision)})


@pytest.mark.parametrize(
    "metadata", [None, {}, {"tierstore-path": ""}, {"tierstore-path": "é"}, {"tierstore-path": "eA=="}]
)
def test_what_does_not_say_which_blob_it_is(metadata: object) -> None:
    """It is corrupt, whatever is there instead."""
    with pytest.raises(CorruptObject):
        told_revision({"name": f"p/blobs/~h0/~u{'0' * 32}", "metadata": metadata})


@pytest.mark.parametrize(
    "changed", [{"size": "x"}, {"size": "-1"}, {"crc32c": ""}, {"crc32c": "AAAA"}, {"crc32c": "?"}, {"crc32c": None}]
)
def test_a_damaged_record_is_corrupt(changed: dict[str, object]) -> None:
    """A size or a checksum that is none."""
    revision = Revision(HOSTILE_IDS[0], SeededIds(1).uuid())
    assert blob_of(revision, RESOURCE).stored == 1_767_323_045_678_000
    assert blob_of(revision, RESOURCE).size == 3
    with pytest.raises(CorruptObject):
        blob_of(revision, RESOURCE | changed)


def test_checksums_in_any_spelling() -> None:
    """In one header or in several, beside others or alone; what is none is not taken for one."""
    crc32c = bytes.fromhex("e3069283")
    assert checksum_of(head(("x-goog-hash", "crc32c=4waSgw==,md5=AAAA"))) == crc32c
    assert checksum_of(head(("X-Goog-Hash", "md5=AAAA"), ("x-goog-hash", "crc32c=4waSgw=="))) == crc32c
    assert checksum_of(head(("x-goog-hash", "md5=AAAA"))) is None
    assert checksum_of(head(("x-goog-hash", "crc32c=4waS"))) is None
    assert checksum_of(head()) is None


def test_the_head_of_media() -> None:
    """The length of the whole object, of which the answer may have a range; and what was stored."""
    whole = MediaHead.of(head(("Content-Length", "5"), ("x-goog-stored-content-length", "6")))
    assert whole is not None
    assert (whole.size, whole.stored_size) == (5, 6)
    part = MediaHead.of(head(("Content-Length", "2"), ("Content-Range", "bytes 1-2/5")))
    assert part is not None
    assert (part.size, part.stored_size) == (5, 5)
    for broken in (head(), head(("Content-Length", "x")), head(("Content-Range", "bytes 1-2/*"))):
        assert MediaHead.of(broken) is None


def test_the_date_of_an_answer() -> None:
    """To the second; an answer without one is not guessed to be of now."""
    assert date_of(head(("Date", "Fri, 02 Jan 2026 03:04:05 GMT"))) == 1_767_323_045_000_000
    for broken in (head(), head(("Date", "yesterday"))):
        with pytest.raises(Unavailable):
            date_of(broken)
