"""What the simulation does, step by step, is what the model allows."""

from pathlib import Path

import msgspec
import pytest

from tests.model.walk import changing, walk
from tests.simulation.test_seeds import FOUND
from tierstore.testing.simulation.plan import Plan, make_plan
from tierstore.testing.simulation.world import simulate

SEEDS_PER_TEST, TESTS = 15, 4


@pytest.mark.parametrize("first", [1000 + number * SEEDS_PER_TEST for number in range(TESTS)])
def test_runs_of_the_simulation_walk_through_the_model(first: int) -> None:
    """Several servers, bad networks, crashes, pauses and clocks that jump: no step that the model does not have."""
    for seed in range(first, first + SEEDS_PER_TEST):
        outcome = simulate(make_plan(seed), recording=True)
        assert outcome.violation is None, f"seed {seed}: {outcome.violation}"
        walk(outcome.records)


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)
def test_what_was_found_walks_through_the_model(path: Path) -> None:
    """Also what the walk alone has found: one of the plans once led it astray, and broke nothing."""
    walk(simulate(msgspec.json.decode(path.read_bytes(), type=Plan), recording=True).records)


def test_the_walk_has_something_to_walk_through() -> None:
    """Most of what is recorded changes the model's state, or could."""
    records = simulate(make_plan(1000), recording=True).records
    assert len(changing(records)) > 50
