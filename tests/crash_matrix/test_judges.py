"""The watcher and the ledger find what they are for, where no planted bug shows it."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from tests.crash_matrix.operations import a_large_object, a_small_idle_object, a_small_object
from tests.crash_matrix.scene import OBJECT, Scene
from tierstore.backends.high_volume.contract import Gone
from tierstore.errors import Conflict, ObjectNotFound
from tierstore.testing.ids import SeededIds
from tierstore.testing.simulation.loop import run_on_virtual_time
from tierstore.types.ids import Revision
from tierstore.types.metadata import MANUAL, Metadata
from tierstore.types.streams import Body


async def _vanishes(scene: Scene) -> None:
    await a_small_object(scene)
    row = scene.watch.rows.by_id[OBJECT]
    scene.watch.rows.by_id[OBJECT] = replace(row, content=Gone())


async def _is_removed(scene: Scene) -> None:
    await a_small_object(scene)
    del scene.watch.rows.by_id[OBJECT]


async def _comes_back(scene: Scene) -> None:
    await a_small_object(scene)
    row = scene.watch.rows.by_id[OBJECT]
    await scene.put(scene.other, scene.small())
    scene.watch.rows.by_id[OBJECT] = row


async def _is_acknowledged_only(scene: Scene) -> None:
    scene.ledger.answer(scene.ledger.ask("write", b"lost"), None)


async def _is_seen_and_nobody_asked(scene: Scene) -> None:
    body: Body = _Whole(b"unasked")
    await scene.other.store.put(OBJECT, Metadata(expiration=MANUAL), body)


async def _delete_is_acknowledged_only(scene: Scene) -> None:
    await a_small_object(scene)
    scene.ledger.answer(scene.ledger.ask("write", None), None)


async def _is_read_and_was_not_there(scene: Scene) -> None:
    await a_small_object(scene)
    scene.ledger.check_read(b"something else", scene.watch.visible(), len(scene.watch.changes))


async def _is_revived(scene: Scene) -> None:
    await a_small_idle_object(scene)
    await scene.pass_time(600)
    row = scene.watch.rows.by_id[OBJECT]
    scene.watch.rows.by_id[OBJECT] = replace(row, expires=scene.clock.now() + 1)


async def _extension_is_acknowledged_only(scene: Scene) -> None:
    await a_small_idle_object(scene)
    scene.ledger.answer_extension(scene.ledger.ask_extension(scene.clock.now() + 10**12), None)


async def _extension_is_refused_for_nothing(scene: Scene) -> None:
    await a_small_idle_object(scene)
    scene.ledger.answer_extension(scene.ledger.ask_extension(scene.clock.now()), ObjectNotFound("scripted"))


async def _extension_loses_against_nobody(scene: Scene) -> None:
    await a_small_idle_object(scene)
    scene.ledger.answer_extension(scene.ledger.ask_extension(scene.clock.now()), Conflict("scripted"))


async def _dangles(scene: Scene) -> None:
    await a_large_object(scene)
    (revision,) = scene.watch.pointed()
    await scene.long_term.delete(revision)


async def _is_loose(scene: Scene) -> None:
    await scene.long_term.put(Revision(OBJECT, SeededIds(9).upload_uuid()), _Whole(b"loose"), None)


class _Whole(Body):
    """A body in one piece."""

    def __init__(self, payload: bytes) -> None:
        self.size = len(payload)
        self._pieces = iter([payload])

    async def __anext__(self) -> bytes:
        for piece in self._pieces:
            self.complete = True
            return piece
        raise StopAsyncIteration


WRONGS: dict[str, Callable[[Scene], Awaitable[None]]] = {
    "no delete explains it": _vanishes,
    "a row that is no marker was removed": _is_removed,
    "took effect twice": _comes_back,
    "lost: write was acknowledged, and had no effect": _is_acknowledged_only,
    "nobody asked for it": _is_seen_and_nobody_asked,
    "a delete was acknowledged, and had no effect": _delete_is_acknowledged_only,
    "a read returned something else": _is_read_and_was_not_there,
    "a row was revived": _is_revived,
    "an extension was acknowledged, and had no effect": _extension_is_acknowledged_only,
    "was not found to be extended, and was there": _extension_is_refused_for_nothing,
    "an extension lost against nobody": _extension_loses_against_nobody,
    "a tombstone dangles": _dangles,
    "a blob is neither referenced nor in the log": _is_loose,
}


@pytest.mark.parametrize("violation", WRONGS)
def test_what_is_wrong_is_found(violation: str) -> None:
    """Each thing that must never be is noticed when it is, and nothing else with it."""

    async def wrong() -> list[str]:
        scene = Scene()
        await WRONGS[violation](scene)
        return scene.watch.violations + scene.ledger.violations()

    found = run_on_virtual_time(wrong())
    assert any(violation in each for each in found), found
    assert len(set(found)) == 1


def test_what_is_left_after_the_sweeps_is_found() -> None:
    """An orphan, an upload and an entry are each noticed."""

    async def left() -> list[str]:
        scene = Scene()
        await scene.begin_upload(scene.other)
        await scene.long_term.put(Revision(OBJECT, SeededIds(9).upload_uuid()), _Whole(b"loose"), None)
        scene.watch.violations.clear()
        scene.watch.check_settled()
        return scene.watch.violations

    assert len(run_on_virtual_time(left())) == 3
