"""Storage paths as keys of PostgreSQL."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore.postgresql.names import digest_of, halves, key_of

_PATHS = st.binary(max_size=12) | st.builds(lambda stem, end: stem * 250 + end, st.binary(max_size=6), st.binary())
"""Short ones, and long ones that begin alike."""


@given(_PATHS, _PATHS)
def test_halves_are_in_the_order_of_paths(one: bytes, other: bytes) -> None:
    """Two pairs of halves compare as their paths do, and joined they are the path."""
    assert (halves(one) < halves(other)) == (one < other)
    assert b"".join(halves(one)) == one


@given(_PATHS, _PATHS)
def test_keys_are_apart(one: bytes, other: bytes) -> None:
    """Different paths have different keys."""
    assert (key_of(one) == key_of(other)) == (one == other)


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 1032, 100_000])
def test_keys_fit_into_an_index(size: int) -> None:
    """A key is the path itself up to 1,000 bytes, and never more than what an index takes; it begins as the path."""
    path = b"p" * size
    first, digest = key_of(path)
    assert len(first) + len(digest) <= 1032
    assert path.startswith(first)
    assert digest == (b"" if size <= 1000 else hashlib.sha256(path).digest())


def test_a_long_path_is_not_the_key_of_another() -> None:
    """A path that spells out the key of another one, digest and all, has a key of its own."""
    long = b"p" * 2000
    spelled = b"".join(key_of(long))
    assert key_of(spelled) != key_of(long)


@given(_PATHS)
def test_a_digest_is_that_of_the_whole_path(path: bytes) -> None:
    """Of short paths, too."""
    assert digest_of(path) == hashlib.sha256(path).digest()
