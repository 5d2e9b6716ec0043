"""What the crash matrix shows in ``docs/consistency.md``: the crash table, and how many combinations there are.

``python -m tests.crash_matrix.table`` prints both, and with ``--write`` writes them into the page; a test checks that
it has them as they are now. Every row is observed: the production code runs, dies after a step, and the stores are
looked at.
"""

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path

import structlog

from tests.crash_matrix.aftermath import AFTERMATHS
from tests.crash_matrix.combinations import EXCLUSIONS, combinations
from tests.crash_matrix.faults import KINDS, has_effect
from tests.crash_matrix.operations import OPERATIONS, Operation
from tests.crash_matrix.runs import steps_of, stores_of
from tests.crash_matrix.scene import LIMITS, Scene
from tierstore.changelog.entries import State
from tierstore.testing.faults import Crash, Effect
from tierstore.testing.simulation.loop import run_on_virtual_time

PAGE = Path(__file__).parents[2] / "docs" / "consistency.md"

MEANING = {
    "high_volume.put_inline": "write the row",
    "high_volume.delete_inline": "delete the row",
    "high_volume.compare_and_write": "compare-and-write the row",
    "high_volume.point": "point the row to the blob",
    "high_volume.bring_inline": "bring the object inline",
    "high_volume.fence": "fence the row",
    "high_volume.extend": "move the deadline",
    "high_volume.remove_markers": "remove old markers",
    "changelog.record": "record",
    "changelog.forget": "forget the entries",
    "changelog.begin_upload": "record the upload",
    "changelog.advance": "count a part, or take a number",
    "changelog.claim": "claim the upload",
    "changelog.mark_done": "mark the upload done",
    "changelog.condemn": "condemn the entry",
    "changelog.resume_later": "leave it for a second visit",
    "changelog.forget_settled": "forget the entry",
    "long_term.put": "write the blob",
    "long_term.delete": "delete the blob",
    "long_term.initiate": "begin the upload",
    "long_term.upload_part": "store the part",
    "long_term.complete": "assemble the blob",
    "long_term.abort": "abort the upload",
}
"""The steps with an effect, in words."""


@dataclass(frozen=True)
class Remains:
    """What is seen and left when a process has died."""

    seen: str
    left: str


async def remains_of(operation: Operation, step: int, effect: Effect) -> Remains:
    """What remains when the process dies in ``step`` of the operation."""
    scene = Scene(limits=operation.limits)
    await operation.prepare(scene)
    before = scene.watch.visible()
    scene.process.script.plan(step, Crash(effect))
    await scene.perform(operation.start)
    return Remains("old" if scene.watch.visible() == before else "new", _left(scene))


def _left(scene: Scene) -> str:
    """What is left, and for whom."""
    own = {entry.revision for entry in scene.watch.unsettled() if entry.owner_is_upload and entry.state is State.OPEN}
    others = [entry for entry in scene.watch.unsettled() if entry.revision not in own or not entry.owner_is_upload]
    orphans = scene.watch.orphans()
    left = []
    if orphans - own:
        left.append("blob and entry: sweeper")
    elif others:
        left.append("entry: sweeper")
    if own & scene.watch.pointed():
        left.append("upload's entry: sweeper")
    elif own & orphans:
        left.append("upload and blob: its client or sweeper")
    elif own:
        left.append("upload: its client or sweeper")
    return "; ".join(left) or "nothing"


Row = tuple[str, Remains]
"""What a process has done before it died, and what remains."""


async def rows_of(operation: Operation) -> Sequence[Row]:
    """What remains after each step with an effect; steps after which the same remains are one row."""
    steps = await _steps(operation)
    rows = [("nothing", await remains_of(operation, 0, Effect.NEVER))]
    for step, call in enumerate(steps):
        if has_effect(call):
            rows.append((MEANING[call], await remains_of(operation, step, Effect.DONE)))
    merged = [(remains, [done for done, _ in same]) for remains, same in groupby(rows, key=lambda row: row[1])]
    return [(", ".join(dict.fromkeys(done)), remains) for remains, done in merged]


async def _steps(operation: Operation) -> Sequence[str]:
    scene = Scene(limits=operation.limits)
    await operation.prepare(scene)
    return await steps_of(scene, operation)


def shown() -> Sequence[Operation]:
    """The operations of the table. Those that meet with something on their way are the same, and more."""
    return [operation for operation in OPERATIONS.values() if operation.given is None and operation.limits == LIMITS]


async def _crash_table() -> str:
    groups: dict[tuple[Row, ...], list[str]] = {}
    for operation in shown():
        groups.setdefault(tuple(await rows_of(operation)), []).append(operation.name)
    lines = ["| operation | died after | readers see | left, and who cleans up |", "| --- | --- | --- | --- |"]
    for rows, names in groups.items():
        for number, (done, remains) in enumerate(rows):
            name = "; ".join(names) if number == 0 else ""
            lines.append(f"| {name} | {done} | {remains.seen} | {remains.left} |")
    return "\n".join(lines)


def crash_table() -> str:
    """The table, in Markdown."""
    return run_on_virtual_time(_crash_table())


@dataclass(frozen=True)
class Size:
    """How many combinations there are."""

    steps: dict[str, Sequence[str]] = field(default_factory=dict)
    """By operation."""
    included: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Those that are run, by operation and kind of fault."""
    excluded: Counter[str] = field(default_factory=Counter)
    """By reason."""


async def _size() -> Size:
    found = Size()
    for operation in OPERATIONS.values():
        steps = found.steps[operation.name] = await _steps(operation)
        stores = len(stores_of(operation))
        for kind in KINDS:
            for _case, exclusion in combinations(operation, steps, kind):
                if exclusion is not None:
                    found.excluded[exclusion.reason] += stores
                    continue
                found.included[operation.name, kind.name] += stores
    return found


@cache
def size() -> Size:
    """How many combinations there are, by enumeration."""
    return run_on_virtual_time(_size())


def summary() -> str:
    """How many combinations there are, in Markdown."""
    found = size()
    steps = sum(len(each) for each in found.steps.values())
    included, excluded = found.included.total(), found.excluded.total()
    dimensions = (
        f"{len(OPERATIONS)} operations with {steps} steps, {len(KINDS)} kinds of fault, {len(AFTERMATHS)} aftermaths "
        "and for completions the two kinds of long-term stores"
    )
    lines = [
        f"{dimensions}: {included + excluded:,} combinations, of which {included:,} are run. Not run:",
        "",
        *(f"- {found.excluded[each.reason]:,}: {each.reason}" for each in EXCLUSIONS),
    ]
    return "\n".join(lines)


def blocks() -> dict[str, str]:
    """What the page shows, by the name of its place."""
    return {"crash table": crash_table(), "crash matrix": summary()}


def pattern_of(name: str) -> re.Pattern[str]:
    """Finds the place of a block in the page."""
    return re.compile(rf"(<!-- {name} -->\n\n?)(.*?)(\n<!-- end of {name} -->)", re.DOTALL)


def write() -> None:
    """Bring the page up to date."""
    text = PAGE.read_text()
    for name, block in blocks().items():
        match = pattern_of(name).search(text)
        assert match is not None, f"the page has no place for the {name}"
        text = text[: match.start(2)] + block + text[match.end(2) :]
    PAGE.write_text(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.crash_matrix.table",
        description="Observe what the crash matrix shows in docs/consistency.md, and print it; in a few seconds.",
    )
    parser.add_argument("--write", action="store_true", help="write it into the page instead")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))  # only the table is to be seen
    if parser.parse_args(arguments).write:
        write()
        return
    for name, block in blocks().items():
        print(f"<!-- {name} -->\n\n{block}\n")  # noqa: T201  # because it is what the command is for


if __name__ == "__main__":
    main()
