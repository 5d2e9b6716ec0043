"""The crash table of ``docs/consistency.md``: what is seen, and who cleans up, if the process dies at each step.

``python -m tests.unit.tiering.crash_table`` prints it; a test checks that the page has it as it is now. Every row is
observed: the production code runs on in-memory stores, dies in the call, and is looked at.
"""

import asyncio
import contextlib

from tests.unit.tiering.mutations import MUTATIONS, Mutation, calls_of, prepare
from tests.unit.tiering.world import World, open_world
from tierstore.testing.faults import Crash, Effect

MEANING = {
    "high_volume.head": "read the row",
    "high_volume.put_inline": "blind write of the row",
    "high_volume.delete_inline": "blind delete of the row",
    "high_volume.compare_and_write": "compare-and-write the row",
    "high_volume.point": "point the row to the blob",
    "high_volume.expired": "list what has expired",
    "high_volume.remove_markers": "remove old markers",
    "changelog.record": "record in the change log",
    "changelog.forget": "forget the entries",
    "changelog.due": "list what is due",
    "changelog.begin_upload": "record the upload",
    "changelog.claim": "claim the upload",
    "changelog.mark_done": "mark the upload done",
    "changelog.find": "look for the upload's entry",
    "changelog.condemn": "condemn the upload",
    "changelog.resume_later": "leave it for a second visit",
    "high_volume.fence": "fence the row",
    "long_term.initiate": "begin the upload",
    "long_term.complete": "assemble the blob",
    "long_term.head": "look at the blob",
    "long_term.abort": "abort the upload",
    "long_term.put": "write the blob",
    "long_term.delete": "delete the blob",
    "long_term.remove_debris": "remove debris",
}


async def crash_table() -> str:
    """The table, in Markdown."""
    lines = [
        "| operation | dies in | before its effect: seen, left | after its effect: seen, left |",
        "| --- | --- | --- | --- |",
    ]
    for name, mutation in MUTATIONS.items():
        calls = await calls_of(mutation)
        for position, call in enumerate(calls):
            before, after = [
                await _observe(mutation, calls, position, effect) for effect in (Effect.NEVER, Effect.DONE)
            ]
            lines.append(f"| {name} | {position + 1}. {MEANING[call]} | {before} | {after} |")
    return "\n".join(lines)


async def _observe(mutation: Mutation, calls: list[str], position: int, effect: Effect) -> str:
    async with open_world() as world:
        await prepare(world, mutation)
        world.script.at(calls[position], *[None] * calls[:position].count(calls[position]), Crash(effect))
        with contextlib.suppress(asyncio.CancelledError):
            await mutation.act(world)
        await world.drain()
        world.script.restart()
        return f"{await _seen(world, mutation)}, {await _left(world)}"


async def _seen(world: World, mutation: Mutation) -> str:
    seen = await world.get("k")
    if seen is None:
        return "absent"
    return "new" if seen == mutation.after != mutation.before else "old"


async def _left(world: World) -> str:
    orphans = len(set(await world.blobs()) - set(await world.pointed_to()))
    entries = await world.logged()
    if orphans:
        return "orphan → sweeper"
    if entries:
        return "entry → sweeper"
    return "nothing"


if __name__ == "__main__":
    print(asyncio.run(crash_table()))  # noqa: T201  # because this is what the command is for
