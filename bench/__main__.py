"""``python -m bench COMMAND``, or ``make bench ARGS=COMMAND``: what the service costs, measured.

Without a command it is ``operations``. ``complete``, ``memory``, ``access`` and ``slow-connections`` also judge: they
end with 1 if what they measured is not within the bound that they print beside it.
"""

import argparse
from pathlib import Path

from bench import access, completing, engines, memory, operations, slow_connections
from bench.slow_clients import KINDS
from tierstore.limits import GIB, MIB

_COMPLETE = """\
Judged: completing the large upload takes at most one part in --ratio-min of what copying its bytes takes (by default
copying takes 50 times as long, or more), in wall time and in CPU time; and the other upload, of 10000 parts (--many),
takes less than 1 s of CPU. The lines with a verdict say yes or NO. Exit code 0 if all of it holds, exit code 1 if
something does not, or if it cannot be measured (a sentence on standard error says why).
"""
_MEMORY = """\
Judged: what the server's memory grows by while payloads stream through it is at most 8 MiB a stream, whatever the size
of the payload. What does not hold is marked NO. Exit code 0 if all of it holds, exit code 1 if something does not, or
if it cannot be measured (a sentence on standard error says why).
"""
_EPILOG = """\
The commands write what they measure with to a folder of their own, which they remove: below --folder, or where
temporary files are (TMPDIR). complete needs free space for its upload twice, memory once.

examples:
  make bench
  make bench ARGS=complete
  make bench ARGS="complete --mib 1024 --parts 16"
  make bench ARGS="memory --folder data"
  make bench ARGS=access
  make bench ARGS=engines
  make bench ARGS=slow-connections
"""


def main() -> None:
    """Run the command that the arguments name."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="What the service costs, measured on this machine.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--folder", type=Path, metavar="PATH", help="an existing folder on the disk to measure on")
    commands.add_parser(
        "operations",
        parents=[shared],
        help="CPU time of each operation beside peers, in about a minute (the default)",
    )
    complete = commands.add_parser(
        "complete",
        parents=[shared],
        description=_COMPLETE,
        help="completing a large upload beside copying its bytes, and one of many parts; about three minutes",
    )
    complete.add_argument("--mib", type=int, default=10 * GIB // MIB, help="size of the upload (%(default)s MiB)")
    complete.add_argument("--parts", type=int, default=160, help="in how many parts, of whole MiB (%(default)s)")
    complete.add_argument("--many", type=int, default=10_000, help="parts of the other upload (%(default)s)")
    complete.add_argument(
        "--ratio-min", type=float, default=50.0, help="fail below this: copying / completing (%(default)g)"
    )
    peak = commands.add_parser(
        "memory",
        parents=[shared],
        description=_MEMORY,
        help="the server's peak of memory while a large part streams in and an object of parts out; about two minutes",
    )
    peak.add_argument("--mib", type=int, default=5 * GIB // MIB, help="size of the part (%(default)s MiB)")
    guarded = commands.add_parser(
        "access",
        parents=[shared],
        help="a GET with a token beside the same without authentication; about a minute",
    )
    guarded.add_argument("--rounds", type=int, default=10, help="measurements of each, at the same time (%(default)s)")
    guarded.add_argument("--count", type=int, default=2000, help="requests of each measurement (%(default)s)")
    guarded.add_argument(
        "--percent-max", type=float, default=15.0, help="fail if a GET costs so much more, in %% (%(default)g)"
    )
    compared = commands.add_parser(
        "engines", help="what each store costs beside its bare driver, on real engines; half a minute"
    )
    compared.add_argument(
        "--engines", default=",".join(engines.ENGINES), metavar="ENGINE,…", help="which of them (%(default)s)"
    )
    compared.add_argument("--rounds", type=int, default=5, help="measurements of each, in turns (%(default)s)")
    slow = commands.add_parser(
        "slow-connections",
        parents=[shared],
        help="a client beside thousands of connections that only cost; about a minute",
    )
    slow.add_argument("--connections", type=int, default=10_000, help="how many of these (%(default)s)")
    slow.add_argument(
        "--kinds", default=",".join(KINDS), metavar="KIND,…", help="in equal parts, of these kinds (%(default)s)"
    )
    slow.add_argument("--seconds", type=float, default=15.0, help="of each measurement (%(default)g)")
    slow.add_argument("--max-requests", type=int, default=512, help="the server's http.max_requests (%(default)s)")
    arguments = parser.parse_args()
    match arguments.command:
        case "complete":
            completing.run(arguments.folder, arguments.mib, arguments.parts, arguments.many, arguments.ratio_min)
        case "access":
            access.run(arguments.folder, arguments.rounds, arguments.count, arguments.percent_max)
        case "slow-connections":
            slow_connections.run(
                arguments.folder,
                arguments.connections,
                arguments.kinds.split(","),
                arguments.seconds,
                arguments.max_requests,
            )
        case "engines":
            engines.run(arguments.engines.split(","), arguments.rounds)
        case "memory":
            memory.run(arguments.folder, arguments.mib)
        case _:
            operations.run(getattr(arguments, "folder", None))


if __name__ == "__main__":
    main()
