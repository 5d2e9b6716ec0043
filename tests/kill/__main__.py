"""``python -m tests.kill --seconds N --seed S``: run the soak, and print what was done as JSON."""

import argparse
import json
import sys

from tests.kill.soak import run


def main() -> None:
    """Run, print, and fail loudly if the server did what it must never do."""
    parser = argparse.ArgumentParser(prog="python -m tests.kill", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long rounds are begun")
    parser.add_argument("--seed", type=int, default=1, help="decides the plans of all campaigns")
    arguments = parser.parse_args()
    try:
        counts = run(arguments.seconds, arguments.seed)
    except AssertionError as violation:
        sys.exit(f"--seed {arguments.seed}: {violation}")
    sys.stdout.write(json.dumps(counts, indent=2) + "\n")


if __name__ == "__main__":
    main()
