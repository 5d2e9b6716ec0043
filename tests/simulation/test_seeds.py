"""A budget of seeds, in which nothing goes wrong; and what once did, replayed."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tierstore.testing.simulation.campaign import run_seeds
from tierstore.testing.simulation.plan import Plan, make_plan
from tierstore.testing.simulation.world import simulate

SEEDS_PER_TEST, TESTS = 40, 12
FOUND = sorted(Path(__file__).with_name("found").glob("*.json"))
"""Plans that failed once, made small. As plans and not as seeds, so that they stay what they were when the drawing of
plans changes. Each is named after what it found."""


@pytest.mark.parametrize("first", [number * SEEDS_PER_TEST for number in range(TESTS)])
def test_nothing_goes_wrong(first: int) -> None:
    """Whatever the stores, the network, the servers and the clients do: what is always true stays true."""
    report = run_seeds(range(first, first + SEEDS_PER_TEST))
    assert report.failure is None, f"\n{report.failure}"
    assert report.counts["operations"] > 20 * SEEDS_PER_TEST
    assert report.counts["histories undecided"] <= report.counts["histories right"] / 100


def test_every_kind_of_trouble_comes_up() -> None:
    """Also in a small number of seeds: a harness in which nothing happens finds nothing."""
    report = run_seeds(range(60))
    counts = report.counts
    kinds = {"crash", "crash of all", "pause", "clock jump", "settled at once", "sweep"}
    kinds |= {"call fail", "call lose", "call late", "call slow", "read torn", "message of the dead or cancelled"}
    kinds |= {
        "puts acknowledged",
        "deletes acknowledged",
        "extensions acknowledged",
        "extensions refused",
        "uploads complete",
        "uploads failed",
        "sessions complete",
        "sessions failed",
        "sessions cancelled",
        "appends acknowledged",
        "appends refused",
        "appends cut off",
        "short pieces refused",
        "no answer",
        "late parts refused",
        "batches broken off",
        "batches left",
        "operations of batches answered",
        "operations of batches forbidden",
        "background failures",
    }
    assert {kind for kind in kinds if not counts[kind]} == set()


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)
def test_what_was_found_stays_mended(path: Path) -> None:
    """A plan that once broke what is always true no longer does."""
    outcome = simulate(msgspec.json.decode(path.read_bytes(), type=Plan))
    assert outcome.violation is None, outcome.violation


def test_a_seed_repeats_its_run() -> None:
    """To the last call, also in another process in which strings hash otherwise."""
    script = (
        "from tierstore.testing.simulation.plan import make_plan\n"
        "from tierstore.testing.simulation.world import simulate\n"
        "for seed in range(40, 46): print('\\n'.join(simulate(make_plan(seed), traced=True).trace))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=100,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert runs[0].count(b"\n") > 1000
    assert runs[0] == runs[1]


def test_leaving_out_an_action_changes_no_other() -> None:
    """What is drawn for an action or event is its own, so that a plan can be made smaller."""
    plan = make_plan(7)
    kept = frozenset(action.number for action in plan.actions if action.number % 2)
    smaller = plan.only(kept, frozenset())
    assert [action for action in plan.actions if action.number in kept] == list(smaller.actions)
    assert smaller.events == ()
