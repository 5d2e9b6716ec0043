"""Object ids, scopes and revisions, and the storage paths that name them in every store.

Guarantees: an `ObjectId` that exists is valid; `ObjectId.storage_path` and `ObjectId.from_storage_path` are inverse;
two different ids have different storage paths. Does not: percent-decode (that is `tierstore.http.parsing`) or make a
name safe for a particular store (each backend encodes what its store cannot hold).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from tierstore.errors import InvalidRequest
from tierstore.limits import Limits

UPLOAD_UUID_VERSION = 8
"""Of the UUIDs of revisions that multipart uploads make (RFC 9562: free for the application); others never have it."""
SESSION_UUID_BIT = 1
"""Of the UUIDs of uploads: set where the upload is resumable, and its parts are the server's to make."""

_USECASE = re.compile(r"[A-Za-z0-9_-]{3,64}")
_SCOPE_WORD = re.compile(r"[A-Za-z0-9_\-()$!+']+")
_OBJECTS = "objects"
_DEFAULT_LIMITS = Limits()

AS_STORED = Limits(key_bytes_max=1 << 31, scopes_max=1 << 31, scope_bytes_max=1 << 31)
"""For names read back from a store: they were accepted once, and lowering a limit must not hide what has them."""

Version = bytes
"""The identity of a row's content: 16 bytes, new with every write of content, never used twice."""


@dataclass(frozen=True, slots=True)
class Scope:
    """One ``name=value`` of the ordered scopes that keep tenants apart."""

    name: str
    value: str


def parse_usecase(text: str) -> str:
    """Return ``text`` if it is a usecase: 3 to 64 characters of ``A-Za-z0-9_-``. Raises `InvalidRequest`."""
    if _USECASE.fullmatch(text) is None:
        raise InvalidRequest("a usecase has 3 to 64 characters of A-Z a-z 0-9 _ -")
    return text


def parse_scopes(text: str, limits: Limits = _DEFAULT_LIMITS) -> tuple[Scope, ...]:
    """Parse ``name=value;name=value``, order kept; ``_`` alone means no scopes. Raises `InvalidRequest`."""
    if text == "_":
        return ()
    pairs = text.split(";")
    if len(pairs) > limits.scopes_max:
        raise InvalidRequest(f"an object has at most {limits.scopes_max} scopes")
    scopes = []
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise InvalidRequest("scopes are written name=value;name=value, or _ for none")
        scopes.append(Scope(_scope_word(name, limits), _scope_word(value, limits)))
    return check_scopes(scopes, limits)


def check_scopes(scopes: Sequence[Scope], limits: Limits = _DEFAULT_LIMITS) -> tuple[Scope, ...]:
    """Return the scopes as a tuple, or raise `InvalidRequest`: too many, or a bad word."""
    if len(scopes) > limits.scopes_max:
        raise InvalidRequest(f"an object has at most {limits.scopes_max} scopes")
    for scope in scopes:
        _scope_word(scope.name, limits)
        _scope_word(scope.value, limits)
    return tuple(scopes)


def _scope_word(word: str, limits: Limits) -> str:
    if _SCOPE_WORD.fullmatch(word) is None:
        raise InvalidRequest("scope names and values are not empty and hold only A-Z a-z 0-9 _ - ( ) $ ! + '")
    if len(word) > limits.scope_bytes_max:
        raise InvalidRequest(f"a scope name or value has at most {limits.scope_bytes_max} characters")
    return word


def check_key(key: str, limits: Limits = _DEFAULT_LIMITS) -> str:
    """Return ``key`` if it can be an object's key: not empty, UTF-8 encodable, not too long. Else `InvalidRequest`.

    Any character is allowed, ``/``, ``..`` and NUL among them: a key is data, no backend reads it as a path.
    """
    if not key:
        raise InvalidRequest("a key is not empty")
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise InvalidRequest("a key is valid Unicode text") from None
    if size > limits.key_bytes_max:
        raise InvalidRequest(f"a key has at most {limits.key_bytes_max} bytes in UTF-8, this one has {size}")
    return key


@dataclass(frozen=True, slots=True)
class ObjectId:
    """What names an object: usecase, ordered scopes, key.

    Build it from already checked parts (`parse_usecase`, `parse_scopes`, `check_key`) or with `from_storage_path`.
    """

    usecase: str
    scopes: tuple[Scope, ...]
    key: str
    storage_path: str = field(init=False, repr=False, compare=False, hash=False)
    """``{usecase}/{name}.{value}/…/objects/{key}``: unique for the id, and parses back to it."""

    def __post_init__(self) -> None:
        scopes = "".join(f"{scope.name}.{scope.value}/" for scope in self.scopes)
        object.__setattr__(self, "storage_path", f"{self.usecase}/{scopes}{_OBJECTS}/{self.key}")

    @classmethod
    def from_storage_path(cls, path: str, limits: Limits = _DEFAULT_LIMITS) -> "ObjectId":
        """The id whose `storage_path` is ``path``. Raises `InvalidRequest` for text that is no storage path."""
        usecase, _, rest = path.partition("/")
        scopes = []
        for _ in range(limits.scopes_max + 1):
            segment, slash, rest = rest.partition("/")
            if not slash:
                raise InvalidRequest("not a storage path: it has no objects/ segment")
            if segment == _OBJECTS:  # never a scope: those hold a dot, which is no scope character
                break
            name, dot, value = segment.partition(".")
            if not dot:
                raise InvalidRequest("not a storage path: a scope is written name.value")
            scopes.append(Scope(name, value))
        else:
            raise InvalidRequest(f"an object has at most {limits.scopes_max} scopes")
        return cls(parse_usecase(usecase), check_scopes(scopes, limits), check_key(rest, limits))


@dataclass(frozen=True, slots=True)
class Revision:
    """The name of one blob: an object and a UUID. A new one for every large write and upload, never reused."""

    object_id: ObjectId
    uuid: UUID

    @property
    def is_upload(self) -> bool:
        """Whether a multipart upload makes its blob. It is in the name, so that telling costs no look anywhere."""
        return self.uuid.version == UPLOAD_UUID_VERSION

    @property
    def is_session(self) -> bool:
        """Whether that upload is a resumable one. In the name as well: whoever holds it cannot say otherwise."""
        return self.is_upload and bool(self.uuid.int & SESSION_UUID_BIT)

    @property
    def storage_path(self) -> str:
        """``{object's storage path}/{uuid}``."""
        return f"{self.object_id.storage_path}/{self.uuid}"

    @classmethod
    def from_storage_path(cls, path: str, limits: Limits = _DEFAULT_LIMITS) -> "Revision":
        """The revision whose `storage_path` is ``path``. Raises `InvalidRequest` for any other text."""
        object_path, _, name = path.rpartition("/")
        try:
            uuid = UUID(name)
        except ValueError:
            raise InvalidRequest("not a revision's storage path: it does not end in a UUID") from None
        if str(uuid) != name:
            raise InvalidRequest("not a revision's storage path: its UUID is not in the canonical form")
        return cls(ObjectId.from_storage_path(object_path, limits), uuid)
