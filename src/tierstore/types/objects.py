"""What the service returns: an opened object, and where it lives."""

from dataclasses import dataclass
from enum import Enum

from tierstore.types.metadata import ObjectInfo


class Tier(Enum):
    """Where an object's payload lives."""

    HIGH_VOLUME = "high_volume"
    LONG_TERM = "long_term"


@dataclass(frozen=True, slots=True)
class FoundObject:
    """An object that exists now, without its payload."""

    info: ObjectInfo
    tier: Tier
