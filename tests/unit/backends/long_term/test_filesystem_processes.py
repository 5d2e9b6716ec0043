"""The filesystem store and other processes, which are killed or come and go."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from uuid import UUID

from tests.unit.backends.long_term.conftest import Open
from tierstore.backends.long_term.filesystem import FilesystemLongTerm
from tierstore.testing.laws.long_term import Source, listed, payload, read
from tierstore.types.ids import ObjectId, Revision

CONTENT = bytes(range(256)) * 2

_PREAMBLE = """
import asyncio, sys
from pathlib import Path
from tierstore.backends.long_term.filesystem import FilesystemLongTerm
from tierstore.clock import SystemClock
from tierstore.idsource import SystemIds
from tierstore.limits import Limits
from tierstore.types.ids import ObjectId, Revision

ids = SystemIds()

async def opened():
    return await FilesystemLongTerm.open(Path(sys.argv[1]), limits=Limits.tiny(), clock=SystemClock(), ids=ids)

async def source(stop_after=None):
    content = bytes(range(256)) * 2
    for start in range(0, len(content), 64):
        if start == stop_after:
            print("writing", flush=True)
            await asyncio.sleep(1000)
        yield content[start : start + 64]

async def put(store, stop_after=None):
    revision = Revision(ObjectId("photos", (), "k"), ids.uuid())
    await store.put(revision, source(stop_after), None)
    print(revision.uuid, flush=True)
"""
_HALF_WAY = """
async def main():
    store = await opened()
    await asyncio.gather(*(put(store, stop_after=64 * 5) for _ in range(3)))
"""
_WITHOUT_END = """
async def writer(store):
    while True:
        await put(store)

async def main():
    store = await opened()
    await asyncio.gather(*(writer(store) for _ in range(8)))
"""
_COMING_AND_GOING = """
async def main():
    for _ in range(10):
        store = await opened()
        await put(store)
        await store.close()
"""


async def started(program: str, root: Path) -> Process:
    """A process that runs ``program`` on the store."""
    run = "\nimport asyncio\nasyncio.run(main())\n"
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PREAMBLE + program + run, str(root), stdout=PIPE, env=dict(os.environ)
    )


async def lines(process: Process, count: int) -> list[str]:
    """The next lines of a process's output."""
    assert process.stdout is not None
    return [(await process.stdout.readline()).decode().strip() for _ in range(count)]


async def killed(process: Process) -> list[str]:
    """Kill a process as no process can expect; return what it had still said."""
    process.send_signal(signal.SIGKILL)
    output, _ = await process.communicate()
    assert process.returncode == -signal.SIGKILL
    return output.decode().split()


def temporary_files(root: Path) -> list[Path]:
    """The files of writes that have not ended."""
    return [file for file in (root / "tmp").rglob("*") if file.is_file() and file.name != "lock"]


async def test_killed_half_way(store: FilesystemLongTerm, root: Path, revision: Revision) -> None:
    """What a process leaves that is killed while it writes is removed by another, and nothing of the living."""
    source = Source([payload(100)], pause_at=1)
    mine = asyncio.create_task(store.put(revision, source, None))
    await source.reached.wait()
    process = await started(_HALF_WAY, root)
    assert await lines(process, 3) == ["writing"] * 3
    assert await store.remove_debris() == 0, "it is alive"
    assert len(temporary_files(root)) == 4
    await killed(process)
    assert await store.remove_debris() == 3 + 1
    assert len(temporary_files(root)) == 1
    source.release.set()
    await mine
    assert await listed(store) == [revision]
    assert await read(store, revision) == payload(100)


async def test_killed_under_load(store: FilesystemLongTerm, root: Path) -> None:
    """Every blob whose put had returned when the process was killed is whole; every other is whole or nothing."""
    acknowledged: set[UUID] = set()
    for count in (5, 20):
        process = await started(_WITHOUT_END, root)
        acknowledged |= {UUID(line) for line in await lines(process, count)}
        acknowledged |= {UUID(line) for line in await killed(process) if len(line) == 36}
    await store.remove_debris()
    assert temporary_files(root) == []
    found = await listed(store)
    assert {revision.uuid for revision in found} >= acknowledged
    for revision in found:
        assert revision.object_id == ObjectId("photos", (), "k")
        assert await read(store, revision) == CONTENT


async def test_processes_come_and_go_while_debris_is_removed(store: FilesystemLongTerm, root: Path) -> None:
    """A process that starts while another collects never loses its directory, however the two meet."""
    processes = [await started(_COMING_AND_GOING, root) for _ in range(3)]
    ends = asyncio.gather(*(process.communicate() for process in processes))
    while not ends.done():
        await store.remove_debris()
        await asyncio.sleep(0.0005)
    await ends
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(await listed(store)) == 30
    assert len(list((root / "tmp").iterdir())) == 1


async def test_stores_share_a_directory(open_store: Open, store: FilesystemLongTerm, root: Path) -> None:
    """What another process has put is there at once for those that were open before."""
    other = await open_store(root)
    process = await started(_COMING_AND_GOING, root)
    (first,) = await lines(process, 1)
    revision = Revision(ObjectId("photos", (), "k"), UUID(first))
    for instance in (store, other):
        assert await read(instance, revision) == CONTENT
    await other.delete(revision)
    assert await store.head(revision) is None
    await process.communicate()
