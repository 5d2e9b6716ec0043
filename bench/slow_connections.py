"""``python -m bench slow-connections``: a client that behaves beside very many connections that only cost.

The same client (`bench.steady_client`) is measured twice against one server of two workers: alone, and while clients of
each kind there is (`bench.slow_clients`) hold their connections: idle ones, heads and bodies that come byte by byte,
answers that nobody reads. Judged: the server has all of these connections before the second measurement begins,
and in neither measurement does anything go wrong. Latencies and the workers' memory are for the reader: on a machine
with few cores, the slow clients, the server and the client take each other's time.
"""

import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.slow_clients import KINDS
from bench.usage import cpu_seconds, forget_peak, peak_bytes, require_proc
from tierstore.limits import KIB, MIB
from tierstore.testing.server import ServerProcess

_SMALL, _LARGE = 100 * KIB, 8 * MIB
_OPEN_SECONDS_MAX = 120
_WORKERS = 2
_FILES_BESIDES = 200


@dataclass(frozen=True, slots=True)
class _Measured:
    failures: dict[str, int]
    latencies: dict[str, list[float]]
    cpu_seconds: float
    peak_bytes: list[int]


def run(folder: Path | None, connections: int, kinds: list[str], seconds: float, max_requests: int) -> None:
    """Measure, print, and end with 1 if something went wrong."""
    require_proc()
    if not set(kinds) <= set(KINDS):
        sys.exit(f"there are these kinds: {', '.join(KINDS)}")
    _require_files(connections)
    with tempfile.TemporaryDirectory(prefix="tierstore-bench-", dir=folder) as temporary:
        config = {"http": {"max_requests": max_requests}}
        with ServerProcess(Path(temporary), workers=_WORKERS, config=config) as server:
            root = "/v1/objects/bench/run=1"
            _fill(server.url + root)
            address = f"{server.url}{root}"
            _measure(server, address, min(seconds, 2.0))  # the first one warms up
            alone = _measure(server, address, seconds)
            with _slow_clients(server.port, connections, kinds, root) as (began, ended):
                taken_seconds = _until_taken(server.url, connections)
                beside = _measure(server, address, seconds)
                held = _gauge(server.url, "tierstore_connections")
            print(f"{_WORKERS} workers, {max_requests} requests at work in each; {seconds:g} s each\n")
            _print_latencies(alone, beside)
            _print_server(alone, beside)
            _print_connections(began, ended)
            print(f"connections that the server has open: {held:.0f}; it took {taken_seconds:.1f} s to take them all")
    failures = alone.failures | beside.failures
    for failure, times in failures.items():
        print(f"{failure}: {times} times")
    holds = not failures and sum(began["open"].values()) == connections
    print(f"\nall {connections} open, and every request of the other client answered: {'yes' if holds else 'NO'}")
    sys.exit(0 if holds else 1)


def _require_files(connections: int) -> None:
    """Let this process and those that it starts open as many files as they need, or end with a sentence."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _FILES_BESIDES
    if hard != resource.RLIM_INFINITY and wanted > hard:
        sys.exit(
            f"{connections} connections need {wanted} open files, and {hard} are allowed: see --connections, ulimit -Hn"
        )
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _fill(address: str) -> None:
    for name, size in (("small", _SMALL), ("large", _LARGE)):
        request = urllib.request.Request(f"{address}/{name}", bytes(size), method="PUT")
        with urllib.request.urlopen(request, timeout=60) as response:
            response.read()


def _measure(server: ServerProcess, address: str, seconds: float) -> _Measured:
    pids = server.worker_pids
    for pid in pids:
        forget_peak(pid)
    before = sum(cpu_seconds(pid) for pid in pids)
    command = [sys.executable, "-m", "bench.steady_client", address, str(seconds)]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=seconds + 120)
    report = json.loads(ended.stdout)
    return _Measured(
        report["failures"],
        {kind: sorted(each) for kind, each in report["latencies"].items()},
        sum(cpu_seconds(pid) for pid in pids) - before,
        [peak_bytes(pid) for pid in pids],
    )


@contextlib.contextmanager
def _slow_clients(
    port: int, connections: int, kinds: list[str], root: str
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Hold them; what is told at the beginning, and, once they have ended, at the end."""
    words = [str(port), str(connections), f"{root}/small", f"{root}/large", *kinds]
    command = [sys.executable, "-m", "bench.slow_clients", *words]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    ended: dict[str, Any] = {}
    try:
        assert process.stdout is not None
        began = json.loads(process.stdout.readline())
        yield began, ended
        told, _ = process.communicate(timeout=60)
        ended.update(json.loads(told))
    finally:
        process.kill()
        process.wait()


def _until_taken(url: str, connections: int) -> float:
    """Wait until the server has accepted all that the system has taken for it; how long that was, in seconds."""
    began = time.perf_counter()
    while time.perf_counter() - began < _OPEN_SECONDS_MAX:
        if _gauge(url, "tierstore_connections") >= connections:
            return time.perf_counter() - began
        time.sleep(0.1)
    sys.exit(f"the server has not accepted {connections} connections within {_OPEN_SECONDS_MAX} s")


def _gauge(url: str, name: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as response:
        for line in response.read().decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
    raise RuntimeError(f"the server does not tell {name}")


def _print_latencies(alone: _Measured, beside: _Measured) -> None:
    heading = f"{'latency in ms':<24}{'':<8}{'requests':>10}{'p50':>8}{'p99':>8}{'p99.9':>8}{'max':>8}"
    print(f"{heading}\n{'-' * len(heading)}")
    for kind in alone.latencies:
        for title, measured in (("alone", alone), ("beside", beside)):
            sorted_ones = measured.latencies[kind]
            shown = [
                sorted_ones[min(int(len(sorted_ones) * share), len(sorted_ones) - 1)] for share in (0.5, 0.99, 0.999, 1)
            ]
            figures = "".join(f"{each * 1000:>8.1f}" for each in shown)
            print(f"{kind if measured is alone else '':<24}{title:<8}{len(sorted_ones):>10}{figures}")


def _print_server(alone: _Measured, beside: _Measured) -> None:
    print(f"\n{'the server':<24}{'':<8}{'CPU s':>10}{'peak of memory of each worker, MiB':>38}")
    for title, measured in (("alone", alone), ("beside", beside)):
        peaks = ", ".join(f"{peak / MIB:.0f}" for peak in measured.peak_bytes)
        print(f"{'':<24}{title:<8}{measured.cpu_seconds:>10.2f}{peaks:>38}")


def _print_connections(began: dict[str, Any], ended: dict[str, Any]) -> None:
    print(f"\n{'slow connections':<24}{'open at the beginning':>24}{'open at the end':>18}{'made in all':>14}")
    for kind, count in began["open"].items():
        print(f"{kind:<24}{count:>24}{ended['open'].get(kind, 0):>18}{ended['made'][kind]:>14}")
    print()
