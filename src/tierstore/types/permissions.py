"""What a caller may be permitted to do, as tokens and the key directory name it."""

from enum import StrEnum


class Permission(StrEnum):
    """One kind of access to the objects of a namespace. The values are the protocol's."""

    READ = "object.read"
    WRITE = "object.write"
    DELETE = "object.delete"


ALL_PERMISSIONS = frozenset(Permission)
