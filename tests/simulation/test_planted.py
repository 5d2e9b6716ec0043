"""The simulation notices when a rule of the protocol is taken away, and says it in few words."""

import pytest

from tierstore.testing.planted import PLANTED
from tierstore.testing.simulation.__main__ import main
from tierstore.testing.simulation.campaign import run_seeds
from tierstore.testing.simulation.plan import make_plan
from tierstore.testing.simulation.shrink import shrink
from tierstore.testing.simulation.world import simulate

SEEDS_MAX = 400
TOO_RARE = {"time"}
"""Rules whose absence shows so rarely under random faults that ``tests/crash_matrix`` has to find it."""


@pytest.mark.parametrize("rule", sorted(set(PLANTED) - TOO_RARE))
def test_a_planted_bug_is_found(rule: str) -> None:
    """Within a bounded number of seeds."""
    report = run_seeds(range(SEEDS_MAX), plant=PLANTED[rule], shrunk=False)
    assert report.failure is not None, f"not found in {report.seeds} seeds"


def test_a_failure_is_made_small() -> None:
    """What is left of the plan still fails, and is a handful of actions and events; its trace shows every call."""
    plant = PLANTED["record-old"]
    seed = next(seed for seed in range(SEEDS_MAX) if simulate(make_plan(seed), plant=plant).violation)
    plan = make_plan(seed)
    smaller = shrink(plan, lambda candidate: simulate(candidate, plant=plant).violation is not None)
    assert len(smaller.actions) + len(smaller.events) <= 6 < len(plan.actions)
    outcome = simulate(smaller, plant=plant, traced=True)
    assert outcome.violation is not None
    assert any("high_volume.point" in line for line in outcome.trace)


def test_the_command_tells_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    """A verdict; the seed, what is left of its plan, the calls and the histories; and a failing exit code."""
    assert main(["--seeds", "3"]) == 0
    told = capsys.readouterr().out
    assert "operations a minute of CPU" in told
    assert told.endswith("\nnothing found\n")
    assert main(["--seeds", "0"]) == 0
    assert capsys.readouterr().out.endswith("\nno seed was run\n")
    assert main(["--seeds", "100", "--without", "mark-done"]) == 1
    told = capsys.readouterr().out
    assert "\nsomething found, see below\n\n" in told
    assert "nothing found" not in told
    assert "found with seed" in told
    assert "what clients saw" in told
