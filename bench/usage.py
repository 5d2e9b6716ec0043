"""What a process has used until now, as Linux tells it below ``/proc``: CPU time, and the peak of its memory.

`Peer.cpu_seconds` counts in ticks of 10 ms, which is too coarse for a single operation. Guarantees: nothing of the
process is counted twice. Does not: see threads that have ended, or work on systems without ``/proc``: there it says so.
"""

import os
import shutil
import sys
from pathlib import Path

from tierstore.limits import GIB, KIB


def require_proc() -> None:
    """End with a sentence where the system does not tell."""
    if not Path("/proc/self/schedstat").exists() or not Path("/proc/self/clear_refs").exists():
        sys.exit("this measurement reads /proc/PID/schedstat and /proc/PID/clear_refs, which only Linux has")


def require_room(folder: Path, size: int) -> None:
    """End with a sentence unless ``size`` bytes fit on the disk of ``folder``, and a GiB besides."""
    free = shutil.disk_usage(folder).free
    if free < size + GIB:
        sys.exit(f"{folder} has {free / GIB:.1f} GiB free, and this needs {(size + GIB) / GIB:.1f}; see --folder")


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads that the process has now, in steps of a nanosecond."""
    threads = Path(f"/proc/{pid}/task")
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads.iterdir()) / 1e9


def forget_peak(pid: int) -> int:
    """Let the peak of the process's memory begin again at what it uses now; return that, in bytes."""
    descriptor = os.open(f"/proc/{pid}/clear_refs", os.O_WRONLY)
    try:
        os.write(descriptor, b"5")  # proc(5): resets the peak to the present value
    finally:
        os.close(descriptor)
    return peak_bytes(pid)


def peak_bytes(pid: int) -> int:
    """The most that the process has had in memory at once (``VmHWM``), since `forget_peak`."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return int(value.split()[0]) * KIB
    raise RuntimeError("the system does not tell VmHWM")
