"""Campaign after campaign, for as long as asked: new directories, new seeds drawn from the one given."""

import asyncio
import contextlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random

import pytest

from tests.kill.campaign import Campaign
from tests.kill.plan import Plan
from tierstore.testing.mounts import small_disk

ROUNDS_PER_CAMPAIGN = 12
DISK_SIZE = "96m"
_ROUND_SECONDS = (0.6, 1.0, 2.0, 4.0)


def run(seconds: float, seed: int) -> Mapping[str, int]:
    """Run campaigns for ``seconds`` (and then to the end of the round), and return how much of what was done.

    Raises `AssertionError`, with the seed of the campaign and the history of the key, when the server did what it must
    never do. The seed decides the plan, not the run: what a fault meets depends on real time.
    """
    ends = time.monotonic() + seconds
    random = Random(seed)
    counts: Counter[str] = Counter({"campaigns": 0, "full_disks": 0})
    while time.monotonic() < ends or not counts["campaigns"]:
        counts.update(run_campaign(random.getrandbits(32), ends, random.choice(_ROUND_SECONDS)))
        counts["campaigns"] += 1
    return dict(sorted(counts.items()))


def run_campaign(seed: int, ends: float, round_seconds: float, rounds: int = ROUNDS_PER_CAMPAIGN) -> Mapping[str, int]:
    """Run one campaign of at most ``rounds``, and at least one, none of which begins after ``ends``."""

    def goes_on(done: int) -> bool:
        return done < rounds and (time.monotonic() < ends or not done)

    wants_small_disk = Random(f"{seed}/disk").random() < 0.5
    with _directory(wants_small_disk) as (directory, is_small):
        campaign = Campaign(directory, Plan(seed, is_small, round_seconds))
        asyncio.run(campaign.run(goes_on))
        return campaign.counts


@contextlib.contextmanager
def _directory(wants_small_disk: bool) -> Iterator[tuple[Path, bool]]:
    """A directory of a campaign's own, and whether it is on a small disk."""
    with tempfile.TemporaryDirectory(prefix="tierstore-kill-") as temporary, contextlib.ExitStack() as stack:
        if wants_small_disk:
            try:
                disk = stack.enter_context(small_disk(Path(temporary, "disk"), DISK_SIZE))
            except pytest.skip.Exception as refused:
                sys.stderr.write(f"no full disks in this campaign: {refused}\n")
            else:
                yield disk.path, True
                return
        yield Path(temporary), False
