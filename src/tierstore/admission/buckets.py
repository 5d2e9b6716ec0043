"""Token buckets in memory that the workers of a server share.

A bucket is how much of it is used, when that was true, and at which rate it drained. Use drains at the limit's rate,
and a request is refused if with it more would be used than the bucket holds. The buckets lie in one file that every
worker maps into its memory, and are changed under the file's lock, so a limit holds for the server however connections
are spread over its workers. A server of one worker has the same table in memory of its own, without a lock.

Guarantees:

- Memory is bounded and has its size from the start, whatever names clients invent. Buckets with names (of a usecase, of
  a scope) are found by a keyed hash in sets of 8. A name that finds its set full takes over the least used bucket of it
  *with its use*: so a set never admits more than eight buckets do, and inventing names frees nobody of a debt.
- A rate that rises drains a debt faster. One that falls leaves it as long as it was: what was admitted by a high limit
  never stops everybody for hours because the limit is low now.
- `take` charges all of its buckets, or none.
- A worker that dies gives up the lock (the system sees to it). While one has stopped in the middle of a change, which
  takes microseconds, the others do not wait for it: each then judges by buckets of its own, and charges the shared
  ones as soon as it can.

Does not: know what is limited (`tierstore.admission.rate_limits`), or survive a restart: buckets begin empty. The
monotonic clock has to be one for the whole machine, as it is on Linux and macOS.
"""

import contextlib
import fcntl
import hashlib
import mmap
import os
import struct
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from tierstore.invariants import invariant
from tierstore.limits import LIMIT_RULES_MAX

_WAYS = 8
_SLOT = struct.Struct("<Qddd")
"""The name's tag (0: never used), how much is used, the monotonic time at which that was so, and the rate then."""
_TAG = struct.Struct("<Q")
_KEY_BYTES = 16
_LOCK_ATTEMPTS_MAX = 200
_LATE_CHARGES_MAX = 4096
_REMEMBERED_NAMES_MAX = 4096


class Region(Enum):
    """The kinds of buckets, each with how many of it there are."""

    FIXED = (0, 2, 1)
    """Global limits, found by number."""
    USECASE_REQUESTS = (1, 4096, _WAYS)
    SCOPE_REQUESTS = (2, 32_768, _WAYS)
    USECASE_BYTES = (3, 4096, _WAYS)
    SCOPE_BYTES = (4, 32_768, _WAYS)
    RULE_REQUESTS = (5, 2 * LIMIT_RULES_MAX, 2 * LIMIT_RULES_MAX)
    """Extra rules: those in force, and those before a reload, all in one set."""

    @property
    def slots(self) -> int:
        """How many buckets of this kind there are."""
        return self.value[1]

    @property
    def ways(self) -> int:
        """How many of them there are in one set."""
        return self.value[2]


def _layout() -> tuple[dict[Region, int], int]:
    begins, end = {}, _KEY_BYTES
    for region in Region:
        begins[region] = end
        end += region.slots * _SLOT.size
    return begins, end


_BEGINS, TABLE_BYTES = _layout()
"""Where each region begins; and the bytes of a whole table."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where a bucket is: in one slot, or, with a name, in one of a set."""

    region: Region
    offset: int
    ways: int
    tag: int


@dataclass(frozen=True, slots=True)
class Charge:
    """Something that uses a bucket: ``cost`` of what it holds, which is ``depth``, and drains at ``rate`` a second."""

    bucket: Bucket
    rate: float
    depth: float
    cost: float


class _Place(NamedTuple):
    """A slot, how much of it is used, and since when: now, or later, for another worker, which looked at the clock a
    little later, may have come first. Time that is ahead drains nothing.
    """

    offset: int
    used: float
    since: float


class Lock(ABC):
    """Keeps the workers apart."""

    @abstractmethod
    def acquire(self) -> bool:
        """Take the lock, unless somebody has it for longer than a change takes; return whether it was taken."""

    @abstractmethod
    def release(self) -> None:
        """Give it up."""


class _Unshared(Lock):
    """The lock of memory that only one worker has."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None


class _FileLock(Lock):
    """The lock of an open file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def acquire(self) -> bool:
        for _ in range(_LOCK_ATTEMPTS_MAX):
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.sched_yield()
            else:
                return True
        return False

    def release(self) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)


class BucketTable:
    """The buckets of a server, as one worker sees them. Used from one thread."""

    def __init__(
        self,
        memory: bytearray | mmap.mmap,
        lock: Lock,
        close: contextlib.ExitStack,
        note_apart: Callable[[], None] = lambda: None,
    ) -> None:
        invariant(len(memory) == TABLE_BYTES, "a table of buckets has its size")
        self._memory = memory
        self._lock = lock
        self._close = close
        self._key = bytes(memory[:_KEY_BYTES])
        self._own: BucketTable | None = None
        """What is judged by while the lock cannot be had."""
        self._late: deque[Charge] = deque(maxlen=_LATE_CHARGES_MAX)
        """What was charged there, and not yet here."""
        self._note_apart = note_apart
        self.named = lru_cache(maxsize=_REMEMBERED_NAMES_MAX)(self._named)
        """The bucket of a region that a name has."""

    @classmethod
    def private(cls, key: bytes = bytes(_KEY_BYTES)) -> "BucketTable":
        """A table of one worker alone. ``key`` is unknown to clients, who else could choose names that collide."""
        memory = bytearray(TABLE_BYTES)
        memory[:_KEY_BYTES] = key
        return cls(memory, _Unshared(), contextlib.ExitStack())

    @classmethod
    def create(cls, file: Path, key: bytes) -> None:
        """Make the file of a shared table, with all its blocks: no disk that fills up can take them away.

        Raises `OSError`.
        """
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, TABLE_BYTES)
            os.pwrite(descriptor, key, 0)
        finally:
            os.close(descriptor)

    @classmethod
    def shared(cls, file: Path, note_apart: Callable[[], None]) -> "BucketTable":
        """The table in a file that `create` made. To be closed. Raises `OSError`.

        ``note_apart`` is called when something was admitted by buckets of this worker's own.
        """
        with contextlib.ExitStack() as stack:
            descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            memory = stack.enter_context(mmap.mmap(descriptor, TABLE_BYTES))
            return cls(memory, _FileLock(descriptor), stack.pop_all(), note_apart)

    def close(self) -> None:
        """Let go of the memory."""
        self._close.close()

    def fixed(self, number: int) -> Bucket:
        """The bucket of a number, which has no name."""
        invariant(0 <= number < Region.FIXED.slots, "a fixed bucket has a number below their count")
        return Bucket(Region.FIXED, _BEGINS[Region.FIXED] + number * _SLOT.size, 1, 1)

    def _named(self, region: Region, name: str) -> Bucket:
        digest = hashlib.blake2b(name.encode(), digest_size=16, key=self._key).digest()
        number = int.from_bytes(digest[:8]) % (region.slots // region.ways)
        tag = int.from_bytes(digest[8:]) or 1
        return Bucket(region, _BEGINS[region] + number * region.ways * _SLOT.size, region.ways, tag)

    def take(self, charges: Sequence[Charge], now: float) -> tuple[float, ...]:
        """Charge all, and return nothing, if every bucket has room; else charge none.

        Then return for each charge how many seconds it is until its bucket has room; 0 if it has.
        """
        if not self._lock.acquire():
            return self._take_apart(charges, now)
        try:
            self._catch_up(now)
            return self._take(charges, now)
        finally:
            self._lock.release()

    def add(self, charges: Sequence[Charge], now: float) -> None:
        """Charge all, be there room or not."""
        if not self._lock.acquire():
            self._late.extend(charges)
            return
        try:
            self._catch_up(now)
            self._add(charges, now)
        finally:
            self._lock.release()

    def used(self, bucket: Bucket, rate: float, now: float) -> float:
        """How much of a bucket is used; for those who watch, as it is without a lock."""
        found = self._match(bucket, rate, now)
        return 0.0 if found is None else found.used

    def _take(self, charges: Sequence[Charge], now: float) -> tuple[float, ...]:
        found = self._find_all(charges, now)
        waits = tuple(
            max(0.0, (place.used + charge.cost - charge.depth) / charge.rate)
            for charge, place in zip(charges, found, strict=True)
        )
        if any(waits):
            return waits
        for charge, place in zip(charges, found, strict=True):
            self._write(charge, place)
        return ()

    def _add(self, charges: Sequence[Charge], now: float) -> None:
        for charge in charges:
            self._write(charge, *self._find_all([charge], now))

    def _write(self, charge: Charge, place: "_Place") -> None:
        _SLOT.pack_into(
            self._memory, place.offset, charge.bucket.tag, place.used + charge.cost, place.since, charge.rate
        )

    def _find_all(self, charges: Sequence[Charge], now: float) -> "list[_Place]":
        """Where the buckets are, or the least used of their sets, which they then take over, each another one."""
        matched = [self._match(charge.bucket, charge.rate, now) for charge in charges]
        held = {place.offset for place in matched if place is not None}
        found = []
        for charge, match in zip(charges, matched, strict=True):
            place = match or self._least_used(charge, now, held)
            held.add(place.offset)
            found.append(place)
        return found

    def _match(self, bucket: Bucket, rate: float, now: float) -> "_Place | None":
        """Where the bucket is, if it is anywhere."""
        for offset in range(bucket.offset, bucket.offset + bucket.ways * _SLOT.size, _SLOT.size):
            if _TAG.unpack_from(self._memory, offset)[0] == bucket.tag:
                return self._place(offset, rate, now)
        return None

    def _least_used(self, charge: Charge, now: float, held: Collection[int]) -> "_Place":
        bucket = charge.bucket
        offsets = range(bucket.offset, bucket.offset + bucket.ways * _SLOT.size, _SLOT.size)
        places = [self._place(offset, charge.rate, now) for offset in offsets if offset not in held]
        return min(places, key=lambda place: place.used)

    def _place(self, offset: int, rate: float, now: float) -> "_Place":
        _, used, since, rate_then = _SLOT.unpack_from(self._memory, offset)
        if rate < rate_then:
            used *= rate / rate_then
        return _Place(offset, max(0.0, used - rate * max(0.0, now - since)), max(now, since))

    def _take_apart(self, charges: Sequence[Charge], now: float) -> tuple[float, ...]:
        if self._own is None:
            self._own = BucketTable.private(self._key)
        waits = self._own.take(charges, now)
        if not waits:
            self._late.extend(charges)
            self._note_apart()
        return waits

    def _catch_up(self, now: float) -> None:
        if self._late:
            self._add(tuple(self._late), now)
            self._late.clear()
