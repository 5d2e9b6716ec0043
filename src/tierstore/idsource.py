"""Identity and randomness as a parameter.

Everything that must be unique is drawn from an `IdSource`, so that a seeded one replays a run. No other module makes
UUIDs or random numbers (the tidy test checks it).
"""

import random
from abc import ABC, abstractmethod
from uuid import UUID

import uuid_utils.compat

from tierstore.types.ids import SESSION_UUID_BIT, UPLOAD_UUID_VERSION

_UUID_VERSION_SHIFT = 76
_UUID_VERSION_BITS = 0xF << _UUID_VERSION_SHIFT
"""RFC 9562, section 4.2: the most significant bits of octet 6."""


class IdSource(ABC):
    """Draws identifiers. Safe to call from any thread."""

    @abstractmethod
    def uuid(self) -> UUID:
        """A UUID that was never drawn before, by any process: revisions, change log owners, request ids."""

    def upload_uuid(self, *, session: bool = False) -> UUID:
        """A UUID as by `uuid`, marked as that of a revision that a multipart upload makes, or a resumable one."""
        unmarked = self.uuid().int & ~_UUID_VERSION_BITS & ~SESSION_UUID_BIT
        return UUID(int=unmarked | UPLOAD_UUID_VERSION << _UUID_VERSION_SHIFT | (SESSION_UUID_BIT if session else 0))

    @abstractmethod
    def version(self) -> bytes:
        """16 bytes that were never drawn before, by any process: the version of a row."""

    @abstractmethod
    def jitter(self) -> float:
        """A number in [0, 1), to spread out what would otherwise happen at once."""


class SystemIds(IdSource):
    """UUIDv7 (RFC 9562): a 48-bit time prefix keeps indexes compact, 74 random bits keep processes apart."""

    def uuid(self) -> UUID:
        return uuid_utils.compat.uuid7()

    def version(self) -> bytes:
        return uuid_utils.compat.uuid7().bytes

    def jitter(self) -> float:
        return random.random()  # noqa: S311  # because it spreads work out and protects nothing
