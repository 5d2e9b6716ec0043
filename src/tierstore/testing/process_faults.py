"""Faults in the stores of a real server process, scripted from another process while it serves.

Guarantees: a fault happens once, at the nth call of a contract's method from when it was armed on, counting only the
calls of the task that it names; so what sweepers and other clients do meanwhile does not move it. A process that is
told to die does so by SIGKILL, before anything else of it runs. A row that is pointed to a blob is logged as
``pointed`` before the reply can be lost, so that the log tells what was committed, whatever anybody was told.

Does not: tear streams (`tierstore.testing.faults` has more, for stores in the same process), or see what SQLite does
below the contract.

Each process that serves listens on a Unix socket of its own, `control_socket`. One connection is one exchange of a line
of JSON each way: an `order` and a `Report`.
"""

import asyncio
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar, assert_never

import structlog

from tierstore.backends.high_volume.contract import HighVolumeBackend, RowHead, Tombstone
from tierstore.clock import Clock, UnixMicros
from tierstore.config import Config
from tierstore.errors import OutcomeUnknown, Unavailable
from tierstore.idsource import IdSource
from tierstore.limits import Limits
from tierstore.testing.faults import FaultScript, FaultyChangeLog, FaultyHighVolume, FaultyLongTerm
from tierstore.types.ids import ObjectId, Revision

if TYPE_CHECKING:
    from tierstore.build import Stores

T = TypeVar("T")

CONTROL_VARIABLE: Final = "TIERSTORE_TESTING_CONTROL"
"""The environment variable with the directory of the sockets."""
FAULTS_VARIABLE: Final = "TIERSTORE_TESTING_FAULTS"
"""The environment variable with the faults that a process is armed with when it starts, as an `order`."""

log = structlog.get_logger(__name__)


class Act(Enum):
    """What happens at a call."""

    KILL_BEFORE = "kill before"
    """The process dies; the call has no effect."""
    KILL_AFTER = "kill after"
    """The call has its effect, and the process dies before the caller learns of it."""
    KILL_AMID = "kill amid"
    """The process dies during the call, before the ``step``-th change that it makes to names of files."""
    FAIL_BEFORE = "fail before"
    """The call has no effect and fails."""
    LOSE_REPLY = "lose reply"
    """The call has its effect, and fails."""
    DELAY_BEFORE = "delay before"
    """The call has its effect ``seconds`` later."""
    DELAY_AFTER = "delay after"
    """The call has its effect, and returns ``seconds`` later."""
    WATCH = "watch"
    """Nothing, but the changes to names of files that the call makes are traced."""


@dataclass(frozen=True, slots=True)
class ProcessFault:
    """``act`` happens at the ``nth`` call of ``call`` (``high_volume.point``, …) from a task named ``task``."""

    call: str
    act: Act
    task: str | None = None
    """A name that the service gives to tasks (``complete_upload``, ``finish_upload``, …). None: any task."""
    nth: int = 1
    step: int = 1
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """What a process tells when it is given its next faults: of the time since it was given the last ones."""

    trace: Sequence[str]
    """Calls, in order, as ``task:call``; below one that was watched, the changes to names as ``  os.rename`` and such.
    """
    unused: Sequence[ProcessFault]
    """Faults that have not happened."""


def order(faults: Sequence[ProcessFault]) -> str:
    """What tells a process to forget all faults and take these, on one line."""
    return json.dumps([dataclasses.asdict(fault) | {"act": fault.act.value} for fault in faults])


def report_of(line: bytes) -> Report:
    """The report that a process has sent."""
    content = json.loads(line)
    return Report(content["trace"], _faults_of(content["unused"]))


def _faults_of(content: Sequence[dict[str, Any]]) -> list[ProcessFault]:
    return [ProcessFault(**fields | {"act": Act(fields["act"])}) for fields in content]


def control_socket(directory: Path, pid: int) -> Path:
    """Where the process with ``pid`` takes its orders."""
    return directory / f"{pid}.control"


def die() -> NoReturn:
    """End this process as a crash would, at once."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise SystemError("a process has survived SIGKILL")


class ProcessScript(FaultScript):
    """The faults of one process."""

    def __init__(self, changes: "NameChanges") -> None:
        super().__init__()
        self._changes = changes
        self._armed: list[ProcessFault] = []
        self._counts: dict[ProcessFault, int] = {}

    def arm(self, faults: Sequence[ProcessFault]) -> Report:
        """Forget all faults and the trace, and take these."""
        report = Report(list(self.trace), list(self._armed))
        self._armed, self._counts = list(faults), dict.fromkeys(faults, 0)
        self.trace.clear()
        return report

    async def around(self, call: str, effect: Callable[[], Awaitable[T]]) -> T:
        task = asyncio.current_task()
        name = "" if task is None else task.get_name()
        self.trace.append(f"{name}:{call}")
        fault = self._due(name, call)
        if fault is None:
            return await effect()
        match fault.act:
            case Act.KILL_BEFORE:
                die()
            case Act.KILL_AFTER:
                await effect()
                die()
            case Act.KILL_AMID:
                with self._changes.seen(self.trace, die_before=fault.step):
                    return await effect()
            case Act.WATCH:
                with self._changes.seen(self.trace, die_before=None):
                    return await effect()
            case Act.FAIL_BEFORE:
                raise Unavailable("scripted: the call fails")
            case Act.LOSE_REPLY:
                await effect()
                raise OutcomeUnknown("scripted: the reply is lost")
            case Act.DELAY_BEFORE:
                await asyncio.sleep(fault.seconds)
                return await effect()
            case Act.DELAY_AFTER:
                result = await effect()
                await asyncio.sleep(fault.seconds)
                return result
            case _:
                assert_never(fault.act)

    def _due(self, task: str, call: str) -> ProcessFault | None:
        """The fault of this call, which is no longer armed then."""
        for fault in self._armed:
            if fault.call == call and fault.task in {None, task}:
                self._counts[fault] += 1
        for fault in self._armed:
            if self._counts[fault] == fault.nth:
                self._armed.remove(fault)
                return fault
        return None


class NameChanges:
    """Sees this process change names of files below a directory: finer steps than the calls of a contract.

    By Python's audit events, which are raised before the change. Writing to an open file, and syncing it, changes no
    name: neither can be told apart afterwards by a process that was not the one that died.
    """

    _EVENTS: Final = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link"})

    def __init__(self, root: Path) -> None:
        self._prefix = f"{root}{os.sep}"
        self._trace: list[str] | None = None
        self._left: int | None = None
        sys.addaudithook(self._audit)  # for good: a hook cannot be removed

    @contextmanager
    def seen(self, trace: list[str], *, die_before: int | None) -> Iterator[None]:
        """Append the changes to ``trace``, and die before the one with that number. For one call at a time."""
        self._trace, self._left = trace, die_before
        try:
            yield
        finally:
            self._trace = None

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if self._trace is None or not self._is_change(event, args):
            return
        self._trace.append(f"  {'create' if event == 'open' else event}")
        if self._left is not None:
            self._left -= 1
            if not self._left:
                die()

    def _is_change(self, event: str, args: tuple[Any, ...]) -> bool:
        if event == "open":
            return bool(args[2] & os.O_CREAT) and self._is_below(args[0])
        return event in self._EVENTS and self._is_below(args[0])

    def _is_below(self, path: object) -> bool:
        return isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(self._prefix)


class _Witness(FaultyHighVolume):
    """Logs every row that is pointed to a blob, whatever becomes of the reply.

    It was pointed between ``begun`` and ``ended`` (Unix seconds): others may see it before this process knows.
    """

    async def point(
        self,
        object_id: ObjectId,
        base: RowHead | None,
        content: Tombstone,
        expires: UnixMicros | None,
        *,
        not_after: UnixMicros,
    ) -> bool:
        begun = time.time()
        pointed = await super().point(object_id, base, content, expires, not_after=not_after)
        if pointed:
            revision = Revision(object_id, content.revision)
            log.info("pointed", revision=revision.storage_path, begun=begun, ended=time.time())
        return pointed


@asynccontextmanager
async def open_faulty_stores(config: Config, limits: Limits, clock: Clock, ids: IdSource) -> AsyncIterator["Stores"]:
    """The configured stores, with this process's faults; for `tierstore.process.server.serve`."""
    from tierstore.build import Stores, open_stores  # noqa: PLC0415  # because it imports the metrics

    script = ProcessScript(NameChanges(config.long_term_path))
    script.arm(_faults_of(json.loads(os.environ[FAULTS_VARIABLE])))
    async with open_stores(config, limits, clock, ids) as stores, _controlled(script):
        witness: HighVolumeBackend = _Witness(stores.high_volume, FaultScript())
        yield Stores(
            FaultyHighVolume(witness, script),
            FaultyLongTerm(stores.long_term, script),
            FaultyChangeLog(stores.changelog, script),
        )


@asynccontextmanager
async def _controlled(script: ProcessScript) -> AsyncIterator[None]:
    """Take orders for the time within."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        report = script.arm(_faults_of(json.loads(await reader.readline())))
        told = {"trace": report.trace, "unused": json.loads(order(report.unused))}
        writer.write(json.dumps(told).encode() + b"\n")
        await writer.drain()
        writer.close()

    path = control_socket(Path(os.environ[CONTROL_VARIABLE]), os.getpid())
    server = await asyncio.start_unix_server(answer, path)
    try:
        yield
    finally:
        server.close()
