"""Row keys from storage paths, and instants as bytes that sort.

Bigtable's row keys have at most 4,096 bytes, and storage paths may have more. A path of up to `_PLAIN_BYTES_MAX` bytes
is its own row key. Of a longer one the key is that many bytes, a byte that UTF-8 does not have, and the SHA-256 of the
whole: so it is unique, it stands behind all shorter paths with that beginning, as the path itself does, and the rows
whose order is another than that of their paths are all in one row range (`group_of`), which a listing sorts. The row
keeps the path.

Keys of indexes begin with a NUL, which no storage path does.
"""

from hashlib import sha256

from tierstore.clock import UnixMicros

_PLAIN_BYTES_MAX = 4_000
_CUT = b"\xff"
_INSTANT_OFFSET = 1 << 63
INSTANT_BYTES = 8

IDENTITY_KEY = b"\x00identity"
FIRST_PATH_KEY = b"\x01"
"""Before every storage path, and behind every other row."""
LAST_KEY = b"\xff"
"""Behind every row."""


def is_long(path: bytes) -> bool:
    """Whether the path is longer than its row key, so that the row has to keep it."""
    return len(path) > _PLAIN_BYTES_MAX


def row_key(path: bytes) -> bytes:
    """The key of the row of a storage path in UTF-8: at most 4,033 bytes."""
    return path if not is_long(path) else path[:_PLAIN_BYTES_MAX] + _CUT + sha256(path).digest()


def group_of(key: bytes) -> bytes | None:
    """What the keys of all long paths begin with that begin as this key's path does; None for a plain key."""
    return key[: _PLAIN_BYTES_MAX + 1] if key[_PLAIN_BYTES_MAX : _PLAIN_BYTES_MAX + 1] == _CUT else None


def first_key(path: bytes) -> bytes:
    """The first key that can be a row's whose path is ``path`` or follows it."""
    return path if not is_long(path) else path[:_PLAIN_BYTES_MAX]


def behind(prefix: bytes) -> bytes:
    """The first key behind all that begin with ``prefix``."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else LAST_KEY


def instant_bytes(instant: UnixMicros) -> bytes:
    """Eight bytes that compare as the instants do."""
    return (instant + _INSTANT_OFFSET).to_bytes(INSTANT_BYTES)


def instant_of(encoded: bytes) -> UnixMicros:
    """The instant whose `instant_bytes` these are."""
    return int.from_bytes(encoded) - _INSTANT_OFFSET
