"""``python -m bench memory``: the peak of the server's memory while large payloads stream through it.

What is measured is ``VmHWM`` of the one worker, the most that it had in memory at once, which is set back before each
line. The server is warm by then: it has its threads, and has once done what is measured, with little. The bound for one
stream is two chunks and two batches of 512 KiB, the socket's buffers, and what the allocators of the threads that take
turns keep back for the next ones: 8 MiB, whatever the size of the payload.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.uploads import Plan, Uploader
from bench.usage import forget_peak, peak_bytes, require_proc, require_room
from tierstore.limits import GIB, MIB
from tierstore.testing.server import HOST, ServerProcess

_STREAM_BYTES_MAX = 8 * MIB
"""What one stream may add to the server's memory."""
_AT_ONCE = 16


def run(folder: Path | None, mib: int) -> None:
    """Measure, print, and end with 1 if a bound does not hold."""
    require_proc()
    if not 16 <= mib <= 5 * GIB // MIB:
        sys.exit("a part has at most 5 GiB (5120 MiB), and less than 16 MiB would show nothing")
    plan = Plan("large", [mib * MIB, mib // 8 * MIB, 1])
    parallel = Plan("parallel", [min(mib // _AT_ONCE, 64) * MIB] * _AT_ONCE)
    with tempfile.TemporaryDirectory(prefix="tierstore-bench-", dir=folder) as temporary:
        require_room(Path(temporary), plan.size + parallel.size)
        with ServerProcess(Path(temporary)) as server:
            uploader = Uploader(HOST, server.port)
            warm = Plan("warm", [4 * MIB] * 4)
            _upload(uploader, warm, 1)
            uploader.read(warm)
            (pid,) = server.worker_pids
            heading = f"{'':<40}{'before':>10}{'peak':>10}{'growth':>10}{'at most':>10}{'MiB/s':>10}"
            print(f"the server's memory, in MiB\n{heading}\n{'-' * len(heading)}", flush=True)
            upload_id = uploader.begin(plan)
            named: list[dict[str, object]] = []
            holds = [
                _measured(
                    f"a part of {_size(plan.sizes[0])} in",
                    pid, plan.sizes[0], 1, lambda: named.append(uploader.send(plan, upload_id, 1)),
                )
            ]  # fmt: skip
            named += [uploader.send(plan, upload_id, number) for number in (2, 3)]
            uploader.complete(plan, upload_id, named)
            title = f"an object of {len(plan.sizes)} parts, {_size(plan.size)}, out"
            holds.append(_measured(title, pid, plan.size, 1, lambda: uploader.read(plan)))
            title = f"{_AT_ONCE} parts of {_size(parallel.sizes[0])} in at once"
            holds.append(_measured(title, pid, parallel.size, _AT_ONCE, lambda: _upload(uploader, parallel, _AT_ONCE)))
    sys.exit(0 if all(holds) else 1)


def _upload(uploader: Uploader, plan: Plan, at_once: int) -> None:
    upload_id = uploader.begin(plan)
    uploader.complete(plan, upload_id, uploader.send_all(plan, upload_id, at_once))


def _measured(title: str, pid: int, size: int, streams: int, work: Callable[[], None]) -> bool:
    """Do ``work``, print by how much the process grew meanwhile, and return whether that is within the bound."""
    before, began = forget_peak(pid), time.perf_counter()
    work()
    seconds, peak = time.perf_counter() - began, peak_bytes(pid)
    holds = peak - before <= streams * _STREAM_BYTES_MAX
    figures = [before / MIB, peak / MIB, (peak - before) / MIB, streams * _STREAM_BYTES_MAX / MIB, size / MIB / seconds]
    print(f"{title:<40}{''.join(f'{figure:>10.1f}' for figure in figures)}{'' if holds else '   NO'}", flush=True)
    return holds


def _size(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"
