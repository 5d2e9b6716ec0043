"""The load of ``tests/kill`` on pairs of engines: two servers side by side, and faults of servers and engines.

Guarantees: a campaign that ends without a violation has kept every acknowledged object, byte for byte; what was not
done was answered with 429, 503 or 507 and advice, or by a broken connection; all has recovered by itself; and no orphan
is left. PostgreSQL and SeaweedFS are killed and started again; the emulator of Bigtable is in memory: so its line is
cut instead.
"""

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from random import Random

from tests.engines.bigtable_emulator import BigtableEmulator
from tests.engines.deployment import Deployment
from tests.engines.deployments import bigtable_and_s3, postgres_and_s3
from tests.engines.engine import HOST
from tests.engines.load_plan import EnginePlan
from tests.engines.postgres import Postgres
from tests.engines.seaweedfs import SeaweedFs
from tests.kill.campaign import Campaign
from tierstore.testing.tcp_proxy import TcpProxy

_ROUNDS_PER_CAMPAIGN = 8
_ROUND_SECONDS = (2.0, 3.0, 5.0)
_PAIRS = 2


@asynccontextmanager
async def on_postgres(postgres: Postgres, seaweedfs: SeaweedFs) -> AsyncIterator[Deployment]:
    """PostgreSQL and SeaweedFS, both of which keep what they have."""
    yield postgres_and_s3(postgres, seaweedfs)


@asynccontextmanager
async def on_bigtable(bigtable: BigtableEmulator, seaweedfs: SeaweedFs) -> AsyncIterator[Deployment]:
    """The emulator of Bigtable, behind a line, and SeaweedFS."""
    async with TcpProxy(HOST, bigtable.port) as line:
        yield bigtable_and_s3(bigtable, seaweedfs, line)


def run_campaign(
    deployed: AbstractAsyncContextManager[Deployment],
    directory: Path,
    seed: int,
    round_seconds: float,
    goes_on: Callable[[int], bool],
) -> Counter[str]:
    """Run one campaign; return how much of what was done. Raises `tests.kill.history.Violation`."""

    async def run() -> Counter[str]:
        async with deployed as deployment:
            plan = EnginePlan(
                seed,
                small_disk=False,
                round_seconds=round_seconds,
                engines=len(deployment.engines),
                lines=len(deployment.lines),
                least=deployment.part_bytes_min,
            )
            campaign = Campaign(directory, plan, deployment=deployment)
            await campaign.run(goes_on)
            return campaign.counts

    return asyncio.run(run())


def run(seconds: float, seed: int) -> Mapping[str, int]:
    """For a soak: campaign after campaign, on each pair by turns, for ``seconds`` and then to the end of the round."""
    ends = time.monotonic() + seconds
    random = Random(seed)
    counts: Counter[str] = Counter({"campaigns": 0})

    def goes_on(done: int) -> bool:
        return done < _ROUNDS_PER_CAMPAIGN and (time.monotonic() < ends or not done)

    with Postgres() as postgres, SeaweedFs() as seaweedfs, BigtableEmulator() as bigtable:
        while time.monotonic() < ends or counts["campaigns"] < _PAIRS:
            on_a_pair = (on_postgres(postgres, seaweedfs), on_bigtable(bigtable, seaweedfs))[
                counts["campaigns"] % _PAIRS
            ]
            with tempfile.TemporaryDirectory(prefix="tierstore-engines-") as directory:
                round_seconds = random.choice(_ROUND_SECONDS)
                counts += run_campaign(on_a_pair, Path(directory), random.getrandbits(32), round_seconds, goes_on)
            counts["campaigns"] += 1
    return counts
