"""Stores in memory, each call of which is written down."""

from dataclasses import dataclass
from typing import Any

from tierstore.backends.high_volume.memory import MemoryHighVolume, MemoryRows
from tierstore.backends.long_term.contract import BlobStream
from tierstore.backends.long_term.memory import MemoryBlobs, MemoryLongTerm, Repeats
from tierstore.build import Stores
from tierstore.changelog.memory import MemoryChangeLog, MemoryEntries
from tierstore.clock import UnixMicros
from tierstore.errors import TierstoreError
from tierstore.limits import Limits
from tierstore.testing.clock import ManualClock
from tierstore.testing.ids import SeededIds
from tierstore.testing.traces import Called, Kept, Recorder, recorded


@dataclass(frozen=True, slots=True)
class Asked:
    """One call, and what came of it."""

    at: UnixMicros
    by: str
    name: str
    kept: Kept
    error: TierstoreError | None


class Scene:
    """Three stores in memory and their clock."""

    def __init__(self, seed: int, limits: Limits, repeats: Repeats, began: UnixMicros) -> None:
        self.limits = limits
        self.repeats = repeats
        self.began = began
        self.clock = ManualClock(began)
        self._recorder = Recorder(keeping=True)
        self._stores = recorded(
            Stores(
                MemoryHighVolume(MemoryRows(), clock=self.clock, ids=SeededIds(seed)),
                MemoryLongTerm(MemoryBlobs(), limits=limits, clock=self.clock, repeats=repeats),
                MemoryChangeLog(MemoryEntries(), clock=self.clock),
            ),
            self._recorder,
            self.clock,
        )
        self.asked: list[Asked] = []

    async def ask(self, by: str, name: str, /, **arguments: Any) -> Any:
        """Make a call; return what it answers, or the error that it fails with. A stream is read to its end."""
        store, _, method = name.partition(".")
        try:
            answer = await getattr(getattr(self._stores, store), method)(**arguments)
        except TierstoreError as error:
            answer = error
        if isinstance(answer, BlobStream):
            async for _ in answer:
                continue
            await answer.aclose()
        record = self._recorder.records[-1]
        assert isinstance(record, Called)
        assert record.kept is not None
        self.asked.append(Asked(record.at, by, name, record.kept, record.error))
        return answer
