"""Names of what is kept in a bucket: storage paths written so that no user's key can break a store's rules.

A blob is ``{prefix}/blobs/{path}/~u{uuid}``. In ``path`` each byte of the object's storage path is itself if it is one
of ``A-Za-z0-9_``, a slash is a slash, and all others are ``~XX``. An empty segment is ``~e``; one that becomes longer
than `SEGMENT_BYTES_MAX` goes on in the next segment, which begins with ``~c``. A path that is too long for the name of
an object is cut, and has ``/~h`` and the checksum of all of it at its end: then the path is not in the name, and the
blob itself has to say it (see `tierstore.object_storage.trailer`).

Guarantees: different revisions have different names, in stores that tell case apart; names have unreserved characters
of RFC 3986 only, no segment that is empty, ``.`` or ``..``, none longer than 255 bytes, and at most `NAME_BYTES_MAX` in
all; no name is a folder of another one; all characters sort behind the slash, so that stores that sort whole names and
stores that sort segment by segment agree; all blobs whose paths begin alike have names that begin alike.
"""

import re
from uuid import UUID

import xxhash

from tierstore.errors import CorruptObject, InvalidRequest, StartupError
from tierstore.types.ids import AS_STORED, ObjectId, Revision

NAME_BYTES_MAX = 1024
"""What Amazon S3 and Google Cloud Storage allow."""
SEGMENT_BYTES_MAX = 240
"""What filesystems below some stores allow is 255; the marks of a segment come on top."""
PREFIX_BYTES_MAX = 128
_PATH_BYTES_MAX = 720
"""Of the encoded path: the rest is for the prefix, marks, UUID and what belongs to a blob beside it."""
_PREFIX = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")
_OWN = frozenset({"blobs", "probes", "identity"})
"""What stands behind the prefix: below these no other store may be, for its names would look like this one's."""
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")
_ENCODED = tuple(chr(byte) if byte in _PLAIN else f"~{byte:02X}" for byte in range(256))
_ESCAPE = re.compile(r"~([0-9A-F]{2})")
_LEAF = re.compile(r"~u([0-9a-f]{32})")
_EMPTY, _CONTINUED, _CUT = "~e", "~c", "~h"
_IN_A_UUID = re.compile(r"[0-9a-f-]*")


class Names:
    """The names below ``prefix`` of a bucket."""

    def __init__(self, prefix: str) -> None:
        """Raises `StartupError` for a prefix that cannot be one."""
        if prefix and (_PREFIX.fullmatch(prefix) is None or len(prefix) > PREFIX_BYTES_MAX):
            raise StartupError(
                f"the prefix {prefix!r} of the long-term store's bucket is not one: it has at most {PREFIX_BYTES_MAX} "
                "characters of A-Z a-z 0-9 _ - /, and no slash at its beginning, at its end or beside another one"
            )
        if own := _OWN.intersection(prefix.split("/")):
            raise StartupError(
                f"the prefix {prefix!r} of the long-term store's bucket has {min(own)!r} between its slashes: that is "
                "what a store with a shorter prefix calls its own; choose another word"
            )
        self.root = f"{prefix}/" if prefix else ""
        """What all names begin with."""
        self.blobs = f"{self.root}blobs/"
        """What the names of all blobs begin with."""
        self.probes = f"{self.root}probes/"
        """What the names begin with of what is made to see how the store behaves."""
        self.identity = f"{self.root}identity"
        """Where the identity of the store is."""

    def blob(self, revision: Revision) -> str:
        """The name of a blob."""
        return f"{self.blobs}{_path(revision.object_id)}/~u{revision.uuid.hex}"

    def layout(self, revision: Revision) -> str:
        """The name of what is kept beside a blob of parts: `tierstore.object_storage.layout`."""
        return f"{self.blob(revision)}_layout"

    def replaced_parts(self, revision: Revision) -> str:
        """What the names begin with of what says which parts of an upload have taken the place of others."""
        return f"{self.blob(revision)}_part"

    def replaced_part(self, revision: Revision, number: int) -> str:
        """The name of what says which one part ``number`` is."""
        return f"{self.replaced_parts(revision)}{number:05}"

    def probe(self, uuid: UUID) -> str:
        """The name of something that is made to see how the store behaves, and removed again."""
        return f"{self.probes}~u{uuid.hex}"

    def listing(self, prefix: str) -> str:
        """What the names of all blobs begin with whose storage paths begin with ``prefix``; others may as well."""
        path, slash, rest = prefix.rpartition("/")
        if _IN_A_UUID.fullmatch(rest):  # which may be that of a revision
            rest = ""
        encoded = _encoded(f"{path}{slash}{rest}".encode(), is_whole=False)
        return f"{self.blobs}{encoded[:_PATH_BYTES_MAX].rstrip('/') if len(encoded) > _PATH_BYTES_MAX else encoded}"

    def revision(self, name: str) -> Revision | None:
        """The revision whose blob has this name; None if the name does not say, but the blob itself.

        Raises `CorruptObject` for what is the name of no blob.
        """
        path, _, leaf = name.removeprefix(self.blobs).rpartition("/")
        found = _LEAF.fullmatch(leaf)
        if found is None or not name.startswith(self.blobs):
            raise CorruptObject(f"{name} is not the name of a blob")
        if path.rpartition("/")[2].startswith(_CUT):
            return None
        try:
            object_id = ObjectId.from_storage_path(_decoded(path), AS_STORED)
        except (InvalidRequest, UnicodeDecodeError) as error:
            raise CorruptObject(f"{name} is not the name of a blob") from error
        return Revision(object_id, UUID(found[1]))

    @staticmethod
    def is_blob(name: str) -> bool:
        """Whether this is the name of a blob, and not of what is kept beside one."""
        return _LEAF.fullmatch(name.rpartition("/")[2]) is not None

    @staticmethod
    def uuid(name: str) -> UUID | None:
        """The UUID in the name of a blob, or of what belongs to it; None in other names."""
        found = _LEAF.match(name.rpartition("/")[2])
        return None if found is None else UUID(found[1])


def is_cut(object_id: ObjectId) -> bool:
    """Whether the names of an object's blobs do not hold all of its path."""
    return len(_encoded(object_id.storage_path.encode(), is_whole=True)) > _PATH_BYTES_MAX


def _path(object_id: ObjectId) -> str:
    path = object_id.storage_path.encode()
    encoded = _encoded(path, is_whole=True)
    if len(encoded) <= _PATH_BYTES_MAX:
        return encoded
    return f"{encoded[:_PATH_BYTES_MAX].rstrip('/')}/{_CUT}{xxhash.xxh3_128_hexdigest(path)}"


def _encoded(path: bytes, *, is_whole: bool) -> str:
    """``path`` as it is in names; the last segment of one that is not whole may go on."""
    segments = path.split(b"/")
    written = ["".join(map(_ENCODED.__getitem__, segment)) for segment in segments]
    last = len(written) - 1
    return "/".join(
        _pieces(segment) if segment or (number == last and not is_whole) else _EMPTY
        for number, segment in enumerate(written)
    )


def _pieces(segment: str) -> str:
    """An encoded segment, in as many as it takes."""
    if len(segment) <= SEGMENT_BYTES_MAX:
        return segment
    starts = range(0, len(segment), SEGMENT_BYTES_MAX)
    return f"/{_CONTINUED}".join(segment[start : start + SEGMENT_BYTES_MAX] for start in starts)


def _decoded(encoded: str) -> str:
    """The inverse of `_encoded`. Raises `UnicodeDecodeError`."""
    whole = encoded.replace(f"/{_CONTINUED}", "")
    segments = ["" if segment == _EMPTY else _ESCAPE.sub(_unescaped, segment) for segment in whole.split("/")]
    return "/".join(segments).encode("latin-1").decode()


def _unescaped(found: "re.Match[str]") -> str:
    return chr(int(found[1], 16))
