"""Two servers on real engines under a mixed load, while servers and engines die: nothing is lost, nothing left."""

from collections import Counter
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from tests.engines.bigtable_emulator import BigtableEmulator
from tests.engines.deployment import Deployment
from tests.engines.load import on_bigtable, on_postgres, run_campaign
from tests.engines.postgres import Postgres
from tests.engines.seaweedfs import SeaweedFs
from tests.kill.plan import Fault

SECONDS_MAX = 300
"""Far more than it takes on a machine that has nothing else to do."""
ROUNDS = 1
"""It has all of the faults; what comes of several rounds, the soak finds out."""
ROUND_SECONDS = 3.0


def _run(deployed: AbstractAsyncContextManager[Deployment], directory: Path, seed: int) -> Counter[str]:
    counts = run_campaign(deployed, directory, seed, ROUND_SECONDS, lambda done: done < ROUNDS)
    for name in ("put_done", "delete_done", "read_done", "complete_done", "session_done"):
        assert counts[name], f"no {name}: it tests less than it says"
    assert counts[Fault.KILL_SERVER.value]
    return counts


@pytest.mark.timeout(SECONDS_MAX)
def test_servers_and_engines_die_on_postgresql_and_s3(postgres: Postgres, seaweedfs: SeaweedFs, tmp_path: Path) -> None:
    """A server, PostgreSQL and SeaweedFS are killed, and come back: every acknowledged object is there, no orphan."""
    counts = _run(on_postgres(postgres, seaweedfs), tmp_path, seed=7)
    for engine in (postgres, seaweedfs):
        assert counts[f"{Fault.KILL_ENGINE.value}: {engine.name}"]


@pytest.mark.timeout(SECONDS_MAX)
def test_servers_and_engines_die_on_bigtable_and_s3(
    bigtable_emulator: BigtableEmulator, seaweedfs: SeaweedFs, tmp_path: Path
) -> None:
    """A server and SeaweedFS are killed, and the line to Bigtable, which is in memory, breaks: nothing is lost."""
    counts = _run(on_bigtable(bigtable_emulator, seaweedfs), tmp_path, seed=8)
    assert counts[f"{Fault.KILL_ENGINE.value}: {seaweedfs.name}"]
    assert counts[Fault.CUT_LINE.value] + counts[Fault.BLOCK_LINE.value]
