"""Power lost again and again in one recording: how recordings are made, which states are tried, how a failure is told.

A failure names the seed, and is reduced first: everything that need not be lost for the promise to be broken is kept.
A seed draws the same operations again but not the same order of threads, so the recording itself is kept beside it:
``python -m tests.power_loss.exploration FILE`` judges it once more.
"""

import asyncio
import contextlib
import pickle
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import msgspec

from tests.power_loss.history import STORES, Action, Recording
from tests.power_loss.journal import (
    CrashState,
    Journal,
    Made,
    Named,
    Names,
    Resized,
    Step,
    Synced,
    Wrote,
    draw,
    survivors,
)
from tests.power_loss.judge import BrokenPromise, NotYetMade, judge
from tests.power_loss.recorded_disk import REPOSITORY, recorded_disk
from tests.power_loss.workload import Workload

_REDUCTIONS_MAX = 150
_STEPS_TO_DEATH = 50, 600
"""How long a process lives that is to die, in steps of the journal: the least and the most."""
_STEPS_EACH = 50
"""Steps of the journal for one of the workload, about."""
_OPERATIONS_TOLD = 4


def record(seed: int, steps: int, before: Journal = ()) -> Recording:
    """What a workload does to a disk, going on where ``before`` ends. Raises `DiskUnavailable`."""
    return _record(lambda disk: asyncio.run(Workload(disk, seed).run(steps)), before)


def record_played(seed: int, actions: Sequence[Action], before: Journal = (), failing: Sequence[int] = ()) -> Recording:
    """As `record`, of a process that does the given, on a disk of which these steps fail."""
    disk_fails = bool(failing)
    return _record(
        lambda disk: asyncio.run(Workload(disk, seed, disk_fails=disk_fails).play(actions)), before, failing=failing
    )


def record_failures(seed: int, steps: int, failures: int) -> Recording:
    """As `record`, on a disk of which up to so many steps fail."""
    before = record(seed, 1).journal
    failing = Random(seed).sample(range(len(before), len(before) + steps * _STEPS_EACH), failures)
    return _record(lambda disk: asyncio.run(Workload(disk, seed, disk_fails=True).run(steps)), before, failing=failing)


def record_deaths(seed: int, steps: int, deaths: int) -> Recording:
    """As `record`, by processes of which up to so many die between two steps."""
    random = Random(seed)
    before = record(seed, 1).journal  # the first start is whole, since an interrupted one asks for a person
    fatal = [len(before)]
    for _ in range(deaths):
        fatal.append(fatal[-1] + random.randint(*_STEPS_TO_DEATH))
    return record_processes(seed, [steps] * (deaths + 1), before, fatal[1:])[0]


def record_processes(
    seed: int, plays: Sequence[int | Sequence[Action]], before: Journal, fatal: Sequence[int]
) -> tuple[Recording, list[bool]]:
    """As `record`, by one process after the other that take so many steps or do the given, and die at ``fatal`` ones.

    Tells of each whether it lived to its end.
    """
    random = Random(seed)
    lived: list[bool] = []

    def run_all(disk: Path) -> None:
        for play in plays:
            command = [sys.executable, "-m", "tests.power_loss.workload", str(disk)]
            command += [str(random.getrandbits(32)), msgspec.json.encode(play).decode()]
            done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
            if done.returncode not in {0, -signal.SIGKILL}:
                raise RuntimeError(f"seed {seed}: a workload ended by itself: {done.stderr}")
            lived.append(done.returncode == 0)

    return _record(run_all, before, fatal), lived


def _record(
    work: Callable[[Path], None], before: Journal, fatal: Sequence[int] = (), failing: Sequence[int] = ()
) -> Recording:
    with scratch() as directory:
        with recorded_disk(directory, before, fatal, failing) as disk:
            work(disk.path)
        return Recording(disk.journal, len(before))


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A directory for a moment, in memory where there is such a place: what is judged need not be durable."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as directory:
        yield Path(directory)


@dataclass(frozen=True, slots=True)
class Failure:
    """A promise that a loss of power has broken."""

    recording: Recording
    state: CrashState
    seed: int
    """Of the judgement."""
    error: BrokenPromise

    def reduced(self) -> "Failure":
        """The failure with as little lost as it needs."""
        least, tries = self, 0
        size = max(1, len(self.state.lost) // 2)
        while size and tries < _REDUCTIONS_MAX:
            ordered = sorted(least.state.lost | set(least.state.torn))
            for start in range(0, len(ordered), size):
                tries += 1
                least = least.without(set(ordered[start : start + size])) or least
            size //= 2
        return least

    def without(self, kept: set[int]) -> "Failure | None":
        """The failure that there still is when these steps are kept."""
        torn = {index: sectors for index, sectors in self.state.torn.items() if index not in kept}
        state = CrashState(self.state.point, self.state.lost - kept, torn)
        try:
            try_state(self.recording, state, self.seed)
        except BrokenPromise as still:
            return replace(self, state=state, error=still)
        except NotYetMade:
            return None
        return None

    def __str__(self) -> str:
        journal, state = self.recording.journal, self.state
        names = Names()
        for step in journal:
            names.follow(step)
        lines = [f"{self.error}", f"power lost after step {state.point} of {len(journal)}, and with it:"]
        for index in sorted(state.lost | set(state.torn)):
            torn = f" (sectors {sorted(state.torn[index])} of it)" if index in state.torn else ""
            lines.append(f"  step {index}: {described(journal[index], names)}{torn}")
        operations = list(self.recording.history(state.point).operations.values())
        return "\n".join([*lines, "the last operations:", *(f"  {each}" for each in operations[-_OPERATIONS_TOLD:])])

    def keep(self) -> Path:
        """Leave what `main` needs in a file."""
        with tempfile.NamedTemporaryFile(prefix="power-loss-", suffix=".pickle", delete=False) as file:
            pickle.dump((self.recording.journal, self.recording.start, self.state, self.seed), file)
        return Path(file.name)


def search(recording: Recording, seed: int, states: int) -> tuple[Counter[str], Failure | None]:
    """Lose power up to ``states`` times; return how many of what was judged, and the first failure."""
    random = Random(seed)
    counts: Counter[str] = Counter(journal_steps=len(recording.journal) - recording.start)
    points = set()
    failure = None
    for _ in range(states):
        point = random.choice(recording.promises if random.random() < 0.5 else recording.points)
        state = draw(recording.journal, point, random)
        judged_with = random.getrandbits(64)
        points.add(point)
        counts.update(states=1, lost_steps=len(state.lost), torn_writes=len(state.torn))
        try:
            try_state(recording, state, judged_with)
        except NotYetMade:
            counts["interrupted_first_starts"] += 1
        except BrokenPromise as error:
            failure = Failure(recording, state, judged_with, error)
            break
    counts["points"] = len(points)
    return counts, failure


def explore(recording: Recording, seed: int, states: int) -> Counter[str]:
    """As `search`; raises `BrokenPromise` for a failure, reduced."""
    counts, failure = search(recording, seed, states)
    if failure is not None:
        reduced = failure.reduced()
        raise BrokenPromise(f"seed {seed}, recording kept in {reduced.keep()}: {reduced}")
    return counts


def try_state(recording: Recording, state: CrashState, seed: int) -> None:
    """Judge the stores after one loss of power. Raises `BrokenPromise` or `NotYetMade`."""
    with scratch() as directory:
        tree = survivors(recording.journal, state)
        stores = tree.find(STORES)
        target = directory / STORES
        if stores is not None:
            target.mkdir()
            tree.write(stores, target)
        asyncio.run(judge(target, recording.history(state.point), Random(seed)))


def described(step: Step, names: Names) -> str:
    """A step in words."""
    match step:
        case Made(inode):
            return f"made {names.path(inode)}"
        case Named(changes):
            return " and ".join(
                f"{names.path(directory)}/{name} " + ("removed" if inode is None else f"names inode {inode}")
                for directory, name, inode in changes
            )
        case Wrote(inode, offset, content):
            return f"{len(content)} bytes at {offset} of {names.path(inode)}"
        case Resized(inode, size):
            return f"{names.path(inode)} resized to {size}"
        case Synced(inode):
            return f"{names.path(inode)} synced"


def main() -> None:
    """Judge a kept failure again; raises what it broke, if it still does."""
    journal, start, state, seed = pickle.loads(Path(sys.argv[1]).read_bytes())
    try_state(Recording(journal, start), state, seed)


if __name__ == "__main__":
    main()
