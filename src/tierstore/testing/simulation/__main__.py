"""``python -m tierstore.testing.simulation``: run seeds of the simulation and say what they came to.

The last line of the report is the verdict. Exit codes: 0 nothing was found, 1 something was (the seed, the plan made
small and its trace are printed behind it).
"""

import argparse
import itertools
import sys

from tierstore.testing.planted import PLANTED
from tierstore.testing.simulation.campaign import run_seeds


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tierstore.testing.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this seed only")
    parser.add_argument("--first", type=int, default=0, help="the first of the seeds (default: 0)")
    parser.add_argument("--seeds", type=int, default=500, help="how many seeds (default: 500)")
    parser.add_argument("--cpu-seconds", type=float, help="go on for so long instead of a number of seeds")
    parser.add_argument("--without", choices=sorted(PLANTED), help="take this rule of the protocol away first")
    chosen = parser.parse_args(arguments)
    if chosen.seed is not None:
        seeds: itertools.count[int] | range = range(chosen.seed, chosen.seed + 1)
    elif chosen.cpu_seconds is not None:
        seeds = itertools.count(chosen.first)
    else:
        seeds = range(chosen.first, chosen.first + chosen.seeds)
    plant = PLANTED[chosen.without] if chosen.without else None
    report = run_seeds(seeds, plant=plant, cpu_seconds_max=chosen.cpu_seconds)
    print(report)
    if report.failure is not None:
        print(f"\n{report.failure}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
