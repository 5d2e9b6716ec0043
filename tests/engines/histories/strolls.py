"""Strolls: calls drawn by dice, with whatever was learned from the answers before.

They ask what production code asks seldom or never: with versions and entries that are out of date, at the very instant
of a deadline, with mistakes of clients, about keys that break a store's rules for names. They keep to what the
contracts ask of callers; and of several things that could be wrong with a call, one is, where the contract does not say
which of them is told.
"""

from dataclasses import replace
from random import Random
from typing import Final

from tests.engines.histories.blob_strolls import BlobStroller
from tests.engines.histories.entry_strolls import EntryStroller
from tests.engines.histories.looking import look_around
from tests.engines.histories.row_strolls import RowStroller
from tests.engines.histories.scene import Scene
from tests.engines.histories.stroller import SECOND
from tierstore.limits import Limits

STROLL_LIMITS: Final = replace(Limits.tiny(), part_bytes_min=20, object_bytes_max=200, stream_chunk_bytes=64)
_STEPS_BETWEEN_LOOKS = 30


async def stroll(scene: Scene, random: Random, steps: int) -> None:
    """Make about ``steps`` calls to each of the stores, and looks at them."""
    stores = (RowStroller(scene, random), BlobStroller(scene, random), EntryStroller(scene, random))
    for step in range(steps):
        scene.clock.set_now(scene.clock.now() + random.choice([0, 0, 1, SECOND, 100 * SECOND]))
        for store in stores:
            await store.step()
        if step % _STEPS_BETWEEN_LOOKS == 0:
            await look_around(scene, random)
    await look_around(scene, random, everywhere=True)
