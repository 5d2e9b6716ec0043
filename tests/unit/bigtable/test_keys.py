"""Row keys: unique, short enough, and in the order of the paths but for what a group says."""

from hypothesis import given
from hypothesis import strategies as st

from tierstore.bigtable.keys import (
    FIRST_PATH_KEY,
    LAST_KEY,
    behind,
    first_key,
    group_of,
    instant_bytes,
    instant_of,
    is_long,
    row_key,
)
from tierstore.testing.hostile import HOSTILE_IDS

ROW_KEY_BYTES_MAX = 4_096
INDEX_BYTES_MAX = 2 + 8 + 16
"""What an index row's key has before the key of the row that it is for."""
PATHS = sorted(object_id.storage_path.encode() for object_id in HOSTILE_IDS)

lengths = st.sampled_from([1, 2, 3_999, 4_000, 4_001, 4_002, 5_000])
ends = st.binary(max_size=4).filter(bytes.isascii)
paths = st.builds(lambda length, end: (b"p" * (length - len(end)) + end)[:length], lengths, ends)


def test_hostile_paths_have_keys_of_their_own() -> None:
    """Different paths have different keys, which Bigtable takes, alone and in an index row's key."""
    keys = {row_key(path) for path in PATHS}
    assert len(keys) == len(set(PATHS))
    assert max(map(len, keys)) + INDEX_BYTES_MAX <= ROW_KEY_BYTES_MAX
    assert all(FIRST_PATH_KEY < key < LAST_KEY for key in keys)


@given(st.lists(paths, unique=True))
def test_keys_are_in_the_order_of_paths(some: list[bytes]) -> None:
    """But for long paths with the same beginning, and those are together, in one group."""
    by_key = sorted(some, key=row_key)
    by_group = sorted(by_key, key=lambda path: (group_of(row_key(path)) or row_key(path), path))
    assert by_group == sorted(some)
    for path in some:
        assert (group_of(row_key(path)) is not None) == is_long(path)
        assert first_key(path) <= row_key(path)


@given(paths, paths)
def test_first_key_is_before_whatever_follows(path: bytes, after: bytes) -> None:
    """A listing that begins at the first key of a path misses nothing that follows it."""
    if after >= path:
        assert row_key(after) >= first_key(path)


@given(paths, paths)
def test_behind_is_behind_all_that_has_the_prefix(prefix: bytes, path: bytes) -> None:
    """And before nothing that comes later."""
    if path.startswith(prefix):
        assert first_key(prefix) <= row_key(path) < behind(first_key(prefix))
    assert behind(b"") == LAST_KEY
    assert behind(b"a\xff") == b"b"


@given(st.integers(-(2**62), 2**62), st.integers(-(2**62), 2**62))
def test_instants_sort_as_bytes(one: int, other: int) -> None:
    """Eight bytes each, and back."""
    assert (instant_bytes(one) < instant_bytes(other)) is (one < other)
    assert instant_of(instant_bytes(one)) == one
