"""``python -m tests.engines.histories``: make the recorded histories anew, and say what they cover.

The same options give the same files, byte for byte, as long as the simulation, the stores in memory and the code that
runs on them stay as they are. Without ``--write`` nothing is changed. Histories stay valid when they could not be made
any more: they are calls and answers, and no plans.
"""

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.engines.histories.coverage import KINDS, kinds, server_of, table
from tests.engines.histories.notation import History
from tests.engines.histories.recording import chosen, simulated, strolled, with_large_parts
from tests.engines.histories.replay import Store, replay
from tests.engines.histories.stores import LONG_TERM, memory_long_term
from tierstore.limits import MIB
from tierstore.testing.clock import ManualClock

FOLDER = Path(__file__).with_name("recorded")


def recorded() -> list[History]:
    """The histories that are kept, in the order of their names."""
    return [History.read(path) for path in sorted(FOLDER.glob("*.jsonl"))]


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.engines.histories", description=__doc__)
    parser.add_argument("--write", action="store_true", help="put them in the place of the recorded ones")
    parser.add_argument("--seeds", type=int, default=400, help="runs of the simulation to choose from (default: 400)")
    parser.add_argument("--kept", type=int, default=24, help="how many of those are kept (default: 24)")
    parser.add_argument(
        "--strolls", type=int, default=8, help="how many strolls are kept, of ten times as many (default: 8)"
    )
    parser.add_argument("--steps", type=int, default=25, help="steps of each (default: 25)")
    parser.add_argument("--calls", type=int, default=125, help="calls of a run that is kept, at most (default: 125)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the files are, if not in the repository")
    options = parser.parse_args(arguments)
    runs = [history for history in map(simulated, range(options.seeds)) if _is_fit(history, options.calls)]
    histories = [*chosen(runs, options.kept, [], _say), with_large_parts()]
    strolls = [strolled(seed, options.steps) for seed in range(10 * options.strolls)]
    histories += chosen(strolls, options.strolls, histories, _say)
    _say(table({history.name: history.calls for history in histories}))
    covered = {one for history in histories for one in kinds(history.calls)}
    missing = [f"{name}: {one}" for name, wanted in KINDS.items() for one in wanted if (name, one) not in covered]
    _say(f"not covered: {', '.join(sorted(missing)) or 'nothing'}")
    left_out = asyncio.run(_left_out(histories))
    completions = left_out["long_term.complete"]
    _say(f"left out where parts must have 5 MiB: {left_out.total()} calls, of those {completions} completions")
    if options.write:
        options.folder.mkdir(exist_ok=True)
        for path in options.folder.glob("*.jsonl"):
            path.unlink()
        for history in histories:
            options.folder.joinpath(f"{history.name}.jsonl").write_text("\n".join(history.lines()) + "\n")
    return 1 if missing else 0


async def _left_out(histories: Sequence[History]) -> Counter[str]:
    """The calls that are not made at a store like SeaweedFS, by method."""
    store, left_out = Store(LONG_TERM, memory_long_term, part_bytes_min=5 * MIB), Counter[str]()
    for history in histories:
        clock = ManualClock()
        async with store.open(history, clock) as backend:
            left_out += (await replay(history, store, backend, clock, clock.now())).left_out
    return left_out


def _is_fit(history: History, calls_max: int) -> bool:
    """Whether it can be read, several servers are in it, and it leaves no marker where others have as good a reason."""
    servers = {server_of(call) for call in history.calls if call.by.rpartition(" ")[0].endswith("server")}
    some_markers = kinds(history.calls)["high_volume.remove_markers", "a full page"]
    return len(history.calls) <= calls_max and len(servers) > 1 and not some_markers


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
