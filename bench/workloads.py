"""What is measured: one operation at one size, a fixed number of times, by a fixed number of clients at once."""

from dataclasses import dataclass
from typing import Literal

from tierstore.limits import KIB, MIB

CONCURRENCY = 16
NAMES = 16
"""Objects that a workload reads, or overwrites in turn."""


@dataclass(frozen=True, slots=True)
class Workload:
    """``count`` operations on objects of ``size`` bytes."""

    operation: Literal["put", "get"]
    size: int
    count: int

    @property
    def title(self) -> str:
        """As the report names it."""
        size = f"{self.size // MIB} MiB" if self.size >= MIB else f"{self.size // KIB} KiB"
        return f"{self.operation.upper()} {size}"


WORKLOADS = (
    Workload("put", KIB, 2000),
    Workload("get", KIB, 3000),
    Workload("put", 16 * KIB, 1500),
    Workload("get", 16 * KIB, 2000),
    Workload("put", MIB, 96),
    Workload("get", MIB, 200),
    Workload("put", 8 * MIB, 16),
    Workload("get", 8 * MIB, 32),
)
"""Up to 1 MiB objects are inline, 8 MiB ones are blobs. The counts make the run about a minute with three servers."""
