"""``python -m bench complete``: completing a large upload beside copying its bytes, and completing one of many parts.

The upload is a real one, sent over loopback. The copy is the least that any store must do that has to assemble an
object out of its parts: the kernel copies the parts' files one after the other into one, which is synced once; nothing
is checksummed, and what was just uploaded is likely to be still in memory. CPU time of completing is the server's, of
the request and of the cleanup behind it; that of the copy is the copier's.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.uploads import Plan, Uploader
from bench.usage import cpu_seconds, require_proc, require_room
from tierstore.limits import GIB, KIB, MIB
from tierstore.testing.server import HOST, ServerProcess

_SETTLE_SECONDS = 0.3
"""Cleanup goes on after the answer, and belongs to what caused it."""
_AT_ONCE = 16
"""Small parts that are sent at the same time; large ones are sent one after the other."""
_MANY_CPU_SECONDS_MAX = 1.0


@dataclass(frozen=True, slots=True)
class Taken:
    """What something took."""

    wall_seconds: float
    cpu_seconds: float


def run(folder: Path | None, mib: int, parts: int, many: int, ratio_min: float) -> None:
    """Measure, print, and end with 1 if a bound does not hold."""
    require_proc()
    if not 1 <= parts <= mib or not 1 <= many <= 10_000:
        sys.exit("an upload has 1 to 10,000 parts, and a large part a MiB or more")
    sizes = [(mib * number // parts - mib * (number - 1) // parts) * MIB for number in range(1, parts + 1)]
    large, small = Plan("large", sizes), Plan("many", [KIB] * many)
    with tempfile.TemporaryDirectory(prefix="tierstore-bench-", dir=folder) as temporary:
        require_room(Path(temporary), 2 * large.size + small.size)
        with ServerProcess(Path(temporary) / "data") as server:
            uploader = Uploader(HOST, server.port)
            holds = [
                _large(uploader, server, large, Path(temporary), ratio_min),
                _many(uploader, server, small),
            ]
    sys.exit(0 if all(holds) else 1)


def _large(uploader: Uploader, server: ServerProcess, plan: Plan, folder: Path, ratio_min: float) -> bool:
    _print_heading(f"{plan.size / GIB:.1f} GiB in {len(plan.sizes)} parts")
    upload_id = uploader.begin(plan)
    named: list[dict[str, object]] = []
    sent = _served(server, lambda: named.extend(uploader.send_all(plan, upload_id)))
    _print_line("sending the parts", sent)
    files = _part_files(server.data, plan)
    completed = _served(server, lambda: uploader.complete(plan, upload_id, named))
    _print_line("completing", completed)
    uploader.check_ends(plan)
    copied = _copied(files, folder / "copy", plan.size)
    _print_line("copying its bytes", copied)
    ratio = Taken(copied.wall_seconds / completed.wall_seconds, copied.cpu_seconds / completed.cpu_seconds)
    holds = min(ratio.wall_seconds, ratio.cpu_seconds) >= ratio_min
    verdict = f"{ratio_min:g} or more: {'yes' if holds else 'NO'}"
    print(
        f"{'copying / completing':<24}{ratio.wall_seconds:>12.0f}{ratio.cpu_seconds:>12.0f}   {verdict}\n", flush=True
    )
    return holds


def _many(uploader: Uploader, server: ServerProcess, plan: Plan) -> bool:
    _print_heading(f"{len(plan.sizes)} parts of 1 KiB")
    upload_id = uploader.begin(plan)
    named: list[dict[str, object]] = []
    _print_line(
        "sending the parts", _served(server, lambda: named.extend(uploader.send_all(plan, upload_id, _AT_ONCE)))
    )
    completed = _served(server, lambda: uploader.complete(plan, upload_id, named))
    holds = completed.cpu_seconds < _MANY_CPU_SECONDS_MAX
    _print_line("completing", completed, f"less than {_MANY_CPU_SECONDS_MAX:g} s of CPU: {'yes' if holds else 'NO'}")
    uploader.read(plan)
    return holds


def _served(server: ServerProcess, work: Callable[[], None]) -> Taken:
    """How long ``work`` took, and what it cost the server."""
    (pid,) = server.worker_pids
    cpu_before, before = cpu_seconds(pid), time.perf_counter()
    work()
    wall = time.perf_counter() - before
    time.sleep(_SETTLE_SECONDS)
    return Taken(wall, cpu_seconds(pid) - cpu_before)


def _part_files(data: Path, plan: Plan) -> Sequence[Path]:
    """The files of the parts, in order, as the only upload of their store."""
    files = sorted((data / "long-term").rglob("*.part"))
    if len(files) != len(plan.sizes):
        raise RuntimeError(f"the store has {len(files)} files of parts, and {len(plan.sizes)} were sent")
    return files


def _copied(files: Sequence[Path], target: Path, size: int) -> Taken:
    """What it takes to copy ``files`` into one and to sync that; it is removed again."""
    cpu_before, before = time.process_time(), time.perf_counter()
    with target.open("wb") as copy:
        for file in files:
            with file.open("rb") as part:
                while os.sendfile(copy.fileno(), part.fileno(), None, GIB):
                    continue
        os.fsync(copy.fileno())
    taken = Taken(time.perf_counter() - before, time.process_time() - cpu_before)
    if target.stat().st_size < size:
        raise RuntimeError("the copy is too short")
    target.unlink()
    return taken


def _print_heading(title: str) -> None:
    heading = f"{title:<24}{'wall s':>12}{'CPU s':>12}"
    print(f"{heading}\n{'-' * len(heading)}", flush=True)


def _print_line(title: str, taken: Taken, verdict: str = "") -> None:
    line = f"{title:<24}{taken.wall_seconds:>12.3f}{taken.cpu_seconds:>12.3f}   {verdict}"
    print(line.rstrip(), flush=True)
