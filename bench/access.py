"""``python -m bench access``: what a GET costs with authentication beside the same GET without.

Three servers, alike but for their settings: one does not ask for credentials, two enforce them. All are asked at the
same time, request by request in turn (`bench.interleaved`), so that what disturbs one disturbs the others. A client
keeps its token for many requests, so the first of them alone pays for the signature; that is what the bound is on.
Beside it, for orientation: another token with every request, which is the worst that well-meaning clients do.

CPU time is the server's alone, user and system, of all its threads. The result is over all rounds; the quartiles of the
rounds tell how much a run was disturbed all the same.
"""

import itertools
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.usage import cpu_seconds, require_proc
from bench.workloads import CONCURRENCY, NAMES
from tierstore.admission.keys import new_key_pair, private_key_of
from tierstore.admission.signing import mint_token
from tierstore.clock import SystemClock
from tierstore.limits import KIB
from tierstore.testing.server import ServerProcess
from tierstore.types.permissions import ALL_PERMISSIONS

_KID = "bench"
_SIZE = 16 * KIB
_LOAD_SECONDS_MAX = 120
_SETTLE_SECONDS = 0.2
_TITLES = ("GET without authentication", "GET with a token", "GET with another token each")


def run(folder: Path | None, rounds: int, count: int, percent_max: float) -> None:
    """Measure, print, and end with 1 if the bound does not hold."""
    require_proc()
    if rounds < 1 or count < 1:
        sys.exit("there is at least one round, of at least one request")
    with tempfile.TemporaryDirectory(prefix="tierstore-bench-", dir=folder) as temporary, ExitStack() as stack:
        root = Path(temporary)
        private, public = new_key_pair()
        tokens = _tokens(private)
        once, each = root / "once", root / "each"
        once.write_text(next(tokens))
        key = {
            "max_permissions": [permission.value for permission in ALL_PERMISSIONS],
            "public_keys": [public.decode()],
        }
        config = {"auth": {"keys": {_KID: key}}}
        servers = [
            stack.enter_context(ServerProcess(root / "open")),
            stack.enter_context(ServerProcess(root / "once-data", auth=True, config=config)),
            stack.enter_context(ServerProcess(root / "each-data", auth=True, config=config)),
        ]
        for server in servers:
            _fill(server, once)
        costs: list[list[float]] = []
        for number in range(rounds + 1):
            each.write_text("\n".join(itertools.islice(tokens, count)))
            measured = _round(servers, ("-", str(once), str(each)), count)
            if number:  # the first one warms up
                costs.append(measured)
    _report(costs, percent_max)


def _report(rounds: Sequence[Sequence[float]], percent_max: float) -> None:
    print(f"{CONCURRENCY} clients at once, {_SIZE // KIB} KiB, {len(rounds)} rounds, all three servers in turn\n")
    print(f"{'':<36}{'CPU µs':>10}{'more':>10}{'quartiles of the rounds':>28}")
    means = [statistics.fmean(column) for column in zip(*rounds, strict=True)]
    holds = means[1] / means[0] <= 1 + percent_max / 100
    for number, (title, mean) in enumerate(zip(_TITLES, means, strict=True)):
        line = f"{title:<36}{mean:>10.1f}"
        if number:
            ratios = [costs[number] / costs[0] - 1 for costs in rounds]
            first, _, third = statistics.quantiles(ratios) if len(ratios) > 1 else ratios * 3
            line += f"{mean / means[0] - 1:>+10.1%}{f'{first:+.1%} to {third:+.1%}':>28}"
        if number == 1:
            line += f"   at most {percent_max:g} %: {'yes' if holds else 'NO'}"
        print(line)
    if not holds:
        sys.exit(1)


def _tokens(private_pem: bytes) -> Iterator[str]:
    """Tokens without end, no two of them alike."""
    key, clock = private_key_of(private_pem), SystemClock()
    for number in itertools.count():
        yield mint_token(
            key,
            _KID,
            usecase="bench",
            scopes={"run": "1"},
            permissions=ALL_PERMISSIONS,
            now=clock.now(),
            valid_seconds=3600,
            claims={"jti": str(number)},
        )


def _round(servers: Sequence[ServerProcess], tokens: Sequence[str], count: int) -> list[float]:
    """CPU time of one request to each of the servers, in microseconds."""
    targets: list[str] = []
    for server, file in zip(servers, tokens, strict=True):
        targets += [_address(server), file]
    before = [cpu_seconds(server.pid) for server in servers]
    numbers = [str(number) for number in (count, CONCURRENCY, NAMES)]
    subprocess.run(
        [sys.executable, "-m", "bench.interleaved", *numbers, *targets],
        check=True,
        stdin=subprocess.DEVNULL,
        timeout=_LOAD_SECONDS_MAX,
    )
    time.sleep(_SETTLE_SECONDS)
    return [(cpu_seconds(server.pid) - then) / count * 1e6 for server, then in zip(servers, before, strict=True)]


def _fill(server: ServerProcess, token: Path) -> None:
    """Write the objects that are read."""
    for number in range(NAMES):
        request = urllib.request.Request(
            _address(server).replace("NAME", str(number)),
            bytes(_SIZE),
            {"x-os-auth": token.read_text()},
            method="PUT",
        )
        with urllib.request.urlopen(request, timeout=_LOAD_SECONDS_MAX) as response:
            response.read()


def _address(server: ServerProcess) -> str:
    return f"{server.url}/v1/objects/bench/run=1/NAME"
