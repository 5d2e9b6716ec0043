"""``python -m tests.soak``: run the parts side by side for as long as asked, and print what they did.

Exit codes: 0 nothing was found, 1 something was (the part's own words, with its seed, are on standard error).
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.soak.parts import PARTS

_GRACE_SECONDS = 600
"""A part that has found something makes it small before it ends."""


def main() -> int:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20, help="how long each part runs (default: 20)")
    parser.add_argument("--seed", type=int, help="decides what is drawn (default: a new one, which is printed)")
    parser.add_argument("--part", action="append", choices=sorted(PARTS), help="only this one; may be repeated")
    parser.add_argument(
        "--alone", action="store_true", help="run one part in this process, and print its counts as JSON"
    )
    chosen = parser.parse_args()
    seed = random.SystemRandom().getrandbits(32) if chosen.seed is None else chosen.seed
    parts = chosen.part or list(PARTS)
    if chosen.alone:
        print(json.dumps(dict(PARTS[parts[0]](chosen.minutes * 60, seed))))
        return 0
    return _run(parts, chosen.minutes, seed)


def _run(parts: list[str], minutes: float, seed: int) -> int:
    print(f"{', '.join(parts)}: {minutes:g} minutes each, side by side, with seed {seed}", flush=True)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="tierstore-soak-") as directory:
        running = {part: _start(part, minutes, seed, Path(directory)) for part in parts}
        ends = time.monotonic() + minutes * 60 + _GRACE_SECONDS
        for part, process in running.items():
            try:
                code = process.wait(max(0.0, ends - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
                print(f"{part} did not end", file=sys.stderr)
            failed += code != 0
            _show(part, code, Path(directory))
    return 1 if failed else 0


def _start(part: str, minutes: float, seed: int, directory: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.soak", "--alone", "--part", part]
    command += ["--minutes", str(minutes), "--seed", str(seed)]
    with (directory / f"{part}.json").open("wb") as counts, (directory / f"{part}.log").open("wb") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=counts, stderr=log)


def _show(part: str, code: int, directory: Path) -> None:
    if code:
        sys.stderr.write(f"\n{part} FAILED:\n{(directory / f'{part}.log').read_text(errors='replace')}\n")
        return
    print(f"\n{part}: nothing found\n")
    print("| what | how often |\n| --- | ---: |")
    for name, count in sorted(json.loads((directory / f"{part}.json").read_text().splitlines()[-1]).items()):
        print(f"| {name.replace('_', ' ')} | {count:,} |")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
