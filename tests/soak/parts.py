"""The parts of a soak: each runs for about so many seconds, with a seed, and returns what it has counted.

A part that finds something raises `AssertionError`, or an error of its own, with the seed in its text.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import count
from random import Random

import tests.end_to_end.broken_uploads
import tests.engines.load
import tests.fuzz.soak
import tests.kill.soak
import tests.power_loss.soak
from tests.model.walk import StepNotAllowed, walk
from tierstore.testing.simulation.campaign import run_seeds
from tierstore.testing.simulation.plan import make_plan
from tierstore.testing.simulation.world import simulate

Part = Callable[[float, int], Mapping[str, int]]

_WALKED_EVERY = 20
"""One of so many seeds is recorded as well, and its trace walked through the model."""


def simulation(seconds: float, seed: int) -> Mapping[str, int]:
    """Seed after seed of the simulation, some of them walked through the model."""
    ends = time.monotonic() + seconds
    counts: Counter[str] = Counter()
    for first in count(Random(seed).getrandbits(48), _WALKED_EVERY):
        if time.monotonic() >= ends and counts:
            break
        report = run_seeds(range(first, first + _WALKED_EVERY))
        counts += report.counts
        counts["seeds"] += report.seeds
        counts["cpu milliseconds"] += round(report.cpu_seconds * 1000)
        assert report.failure is None, f"{report.failure}"
        outcome = simulate(make_plan(first), recording=True)
        try:
            walk(outcome.records)
        except StepNotAllowed as error:
            raise AssertionError(f"seed {first}: {error}") from error
        counts["records walked through the model"] += len(outcome.records)
    return counts


PARTS: Mapping[str, Part] = {
    "simulation": simulation,
    "kill": tests.kill.soak.run,
    "power-loss": tests.power_loss.soak.run,
    "fuzz": tests.fuzz.soak.run,
    "resumable": tests.end_to_end.broken_uploads.run,
    "engines": tests.engines.load.run,
}
