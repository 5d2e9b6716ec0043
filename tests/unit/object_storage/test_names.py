"""Names in a bucket."""

import re
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore.errors import CorruptObject, StartupError
from tierstore.object_storage.names import NAME_BYTES_MAX, PREFIX_BYTES_MAX, Names, is_cut
from tierstore.testing.hostile import HOSTILE_IDS
from tierstore.testing.ids import SeededIds
from tierstore.types.ids import ObjectId, Revision, Scope

NAMES = Names("p" * PREFIX_BYTES_MAX)
keys = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300)


def of(key: str, seed: int = 1) -> Revision:
    """A revision of an object with this key."""
    return Revision(ObjectId("photos", (Scope("org", "17"),), key), SeededIds(seed).uuid())


def check(revision: Revision) -> None:
    """That the names of what belongs to a revision keep the rules, and say whose they are."""
    for name in (NAMES.blob(revision), NAMES.layout(revision), NAMES.replaced_part(revision, 10_000)):
        assert len(name.encode()) <= NAME_BYTES_MAX
        assert re.fullmatch(r"[A-Za-z0-9_~/]+", name)
        assert all(0 < len(segment) <= 255 for segment in name.split("/"))
        assert NAMES.uuid(name) == revision.uuid
        assert NAMES.is_blob(name) == (name == NAMES.blob(revision))
    assert NAMES.revision(NAMES.blob(revision)) == (None if is_cut(revision.object_id) else revision)


def test_hostile_names_keep_the_rules_and_differ() -> None:
    """Whatever an object is called; and no name is a folder of another one."""
    revisions = [Revision(each, SeededIds(1).uuid()) for each in HOSTILE_IDS]
    for revision in revisions:
        check(revision)
    names = {NAMES.blob(revision) for revision in revisions}
    assert len(names) == len(revisions)
    folders = {name[:end] for name in names for end in range(len(name)) if name[end] == "/"}
    assert not names & folders


@given(key=keys)
def test_any_name_is_read_back(key: str) -> None:
    """The name tells the revision, or is cut."""
    check(of(key))


@given(key=keys, end=st.integers(0, 400))
def test_a_listing_finds_all_that_begin_alike(key: str, end: int) -> None:
    """Wherever a storage path is cut, the name begins with what is listed for that prefix."""
    revision = of(key)
    assert NAMES.blob(revision).startswith(NAMES.listing(revision.storage_path[:end]))


@given(one=keys, other=keys)
def test_segments_sort_as_names_do(one: str, other: str) -> None:
    """Stores that sort whole names and stores that sort segment by segment list in one order."""
    names = [NAMES.blob(of(one)), NAMES.blob(of(other, 2))]
    assert sorted(names) == sorted(names, key=lambda name: name.split("/"))


@pytest.mark.parametrize("length", [1_200, 4_096])
def test_long_paths_that_differ_at_the_end_have_names_that_differ(length: int) -> None:
    """A cut name holds a checksum of all of the path, and lists with the paths that begin like it."""
    one, other = of("k" * (length - 1) + "a"), of("k" * (length - 1) + "b")
    assert is_cut(one.object_id)
    assert NAMES.blob(one) != NAMES.blob(other)
    for end in (0, 5, 30, 700, 900, length):
        assert NAMES.blob(one).startswith(NAMES.listing(one.storage_path[:end]))


@pytest.mark.parametrize(
    "name", ["", "other", f"{NAMES.blobs}x/~u12", f"{NAMES.blobs}x/~u{UUID(int=1).hex}", f"x/~u{UUID(int=1).hex}"]
)
def test_what_is_no_blobs_name_is_refused(name: str) -> None:
    """It is damaged, and not another blob."""
    with pytest.raises(CorruptObject):
        NAMES.revision(name)


@pytest.mark.parametrize(
    "prefix",
    ["/a", "a/", "a//b", "a b", "a.b", "..", "é", "p" * (PREFIX_BYTES_MAX + 1), "a/blobs", "blobs/a", "a/probes/b"],
)
def test_a_prefix_keeps_the_rules_too(prefix: str) -> None:
    """A server does not start on another one."""
    with pytest.raises(StartupError):
        Names(prefix)


def test_without_a_prefix_names_begin_at_the_root() -> None:
    """The bucket may be for one store alone."""
    assert Names("").blob(of("k")).startswith("blobs/photos/org~2E17/objects/k/~u")
    assert Names("").identity == "identity"
