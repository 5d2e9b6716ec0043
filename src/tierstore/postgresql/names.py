"""Storage paths as keys: of any length, compared byte by byte, NUL and all.

An index of PostgreSQL takes entries of at most 2,704 bytes, and a path may have more. So a path is kept in two halves,
and a key consists of the first half and, only if there is a second one, the SHA-256 of the whole path: keys of short
paths and of long ones are never the same, and those of two long ones only if they have the same digest.

Ordering by the two halves is the order of the paths, and the key's index gives it, but for long paths with the same
first half, which PostgreSQL sorts by itself (an incremental sort).
"""

import hashlib
from typing import Final

_FIRST_BYTES_MAX: Final = 1000


def halves(path: bytes) -> tuple[bytes, bytes]:
    """The path's beginning, and what follows it."""
    return path[:_FIRST_BYTES_MAX], path[_FIRST_BYTES_MAX:]


def key_of(path: bytes) -> tuple[bytes, bytes]:
    """What is looked up: the path's beginning, and the digest of a long one, or nothing."""
    if len(path) <= _FIRST_BYTES_MAX:
        return path, b""
    return path[:_FIRST_BYTES_MAX], hashlib.sha256(path).digest()


def digest_of(path: bytes) -> bytes:
    """SHA-256 of the path, in its place where order does not matter."""
    return hashlib.sha256(path).digest()
