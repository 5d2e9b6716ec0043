"""Power loss for as long as asked: new recordings, failures and deaths in between, losses upon losses."""

import time
from collections import Counter
from collections.abc import Mapping
from random import Random

from tests.power_loss.exploration import explore, record, record_deaths, record_failures
from tests.power_loss.history import Recording
from tests.power_loss.journal import draw

_STATES = 60
"""How often the power goes in one recording."""
_DEATHS_MAX = 4
_LOSSES_MAX = 3
"""How often it goes for one disk: what is written after a loss is recorded again."""


def run(seconds: float, seed: int) -> Mapping[str, int]:
    """Explore until the time is over; return counts of what was done. Raises `BrokenPromise`, with the seed in it."""
    end = time.monotonic() + seconds
    counts: Counter[str] = Counter()
    random = Random(seed)
    while not counts or time.monotonic() < end:
        _explore_one_disk(random.getrandbits(32), counts)
    return counts


def _explore_one_disk(seed: int, counts: Counter[str]) -> None:
    random = Random(seed)
    steps = random.randint(10, 60)
    match random.choice(["calm", "calm", "failures", "deaths"]):
        case "failures":
            recording = record_failures(seed, steps, steps // 3)
            counts["recordings_with_failures"] += 1
        case "deaths":
            recording = record_deaths(seed, steps // 3, _DEATHS_MAX)
            counts["recordings_with_deaths"] += 1
        case _:
            recording = record(seed, steps)
    for loss in range(1, _LOSSES_MAX + 1):
        counts += _explored(recording, seed)
        if loss < _LOSSES_MAX:
            left = draw(recording.journal, random.choice(recording.promises), random)
            recording = record(random.getrandbits(32), random.randint(5, 20), recording.after(left))


def _explored(recording: Recording, seed: int) -> Counter[str]:
    counts = explore(recording, seed, _STATES)
    before = recording.history(recording.start).operations
    counts["operations"] = len(recording.history(len(recording.journal)).operations) - len(before)
    counts["recordings"] = 1
    return counts
