"""Strolls at the high-volume store."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from tests.engines.histories.scene import Scene
from tests.engines.histories.stroller import SECOND, Stroller
from tierstore.backends.high_volume.contract import Content, Gone, Inline, RowHead, Tombstone, TombstoneRow
from tierstore.clock import UnixMicros
from tierstore.types.ids import ObjectId, Version


class RowStroller(Stroller):
    """At the high-volume store."""

    def __init__(self, scene: Scene, random: Random) -> None:
        super().__init__(scene, random)
        self._heads: dict[ObjectId, list[RowHead]] = {one: [] for one in self.objects}
        self._put_last: dict[ObjectId, Inline] = {}
        """What is put again at times: that is a write like any other."""
        self._steps: Sequence[tuple[int, Callable[[], Any]]] = (
            (3, self._put),
            (2, self._delete),
            (5, self._write),
            (6, self._point),
            (3, self._bring),
            (2, self._fence),
            (4, self._extend),
            (1, self._read),
            (1, self._forget),
        )

    async def step(self) -> None:
        weights = [weight for weight, _ in self._steps]
        ((_, step),) = self.random.choices(self._steps, weights)
        await step()
        if self.random.random() < 0.5:
            await self._look(self.object())

    async def _look(self, object_id: ObjectId) -> None:
        head = await self.ask("high_volume.head", object_id=object_id)
        if head is not None and head not in self._heads[object_id]:
            self._heads[object_id].append(head)

    def _seen(self, object_id: ObjectId) -> RowHead | None:
        """What was seen of the row last, or before."""
        heads = self._heads[object_id]
        if not heads or self.random.random() < 0.1:
            return None
        return heads[-1] if self.random.random() < 0.7 else self.random.choice(heads)

    def _version(self, object_id: ObjectId) -> Version | None:
        seen = self._seen(object_id)
        return None if seen is None else seen.version

    def _until(self) -> UnixMicros | None:
        return self.random.choice([None, self.soon(), self.soon(), self.scene.clock.now() + 900 * SECOND])

    def _tombstone(self) -> Tombstone:
        return Tombstone(self.octets(20), self.uuid())

    def _content(self) -> Content:
        inline = Inline(self.octets(20), self.octets(40))
        contents: Sequence[Content] = (inline, inline, self._tombstone(), Gone())
        return self.random.choice(contents)

    async def _put(self) -> None:
        object_id = self.object()
        if self.random.random() < 0.7:
            self._put_last[object_id] = Inline(self.octets(20), self.octets(40))
        content = self._put_last.get(object_id, Inline(b"", b""))
        await self._look(object_id)
        await self.ask("high_volume.put_inline", object_id=object_id, content=content, expires=self._until())
        await self._look(object_id)

    async def _delete(self) -> None:
        met = await self.ask("high_volume.delete_inline", object_id=(object_id := self.object()))
        if isinstance(met, TombstoneRow) and self.random.random() < 0.5:
            await self.ask(
                "high_volume.compare_and_write", object_id=object_id, expected=met.version, content=Gone(), expires=None
            )

    async def _write(self) -> None:
        object_id, content = self.object(), self._content()
        if self.random.random() < 0.6:
            await self._look(object_id)
        seen = self._seen(object_id)
        arguments: dict[str, Any] = {"expires": None if content == Gone() else self._until()}
        if self.random.random() < 0.3:
            deadline = None if seen is None else seen.expires
            arguments["if_expired_by"] = self.around(deadline or self.scene.clock.now())
        if self.random.random() < 0.5:
            arguments["not_after"] = self.later()
        expected = None if seen is None else seen.version
        await self.ask(
            "high_volume.compare_and_write", object_id=object_id, expected=expected, content=content, **arguments
        )

    async def _point(self) -> None:
        object_id = self.object()
        if self.random.random() < 0.5:
            await self._look(object_id)
        base, content, until = self._seen(object_id), self._tombstone(), self._until()
        await self.ask(
            "high_volume.point",
            object_id=object_id, base=base, content=content, expires=until, not_after=self.later(),
        )  # fmt: skip

    async def _bring(self) -> None:
        object_id = self.object()
        await self._look(object_id)
        if (version := self._version(object_id)) is not None:
            await self.ask(
                "high_volume.bring_inline",
                object_id=object_id, expected=version, payload=self.octets(40), not_after=self.later(),
            )  # fmt: skip

    async def _fence(self) -> None:
        await self.ask("high_volume.fence", object_id=self.object())

    async def _extend(self) -> None:
        object_id = self.object()
        await self._look(object_id)
        if (seen := self._seen(object_id)) is not None:
            expires = self.around(seen.expires or self.scene.clock.now())
            await self.ask("high_volume.extend", object_id=object_id, version=seen.version, expires=expires)

    async def _read(self) -> None:
        await self.ask("high_volume.read", object_id=self.object())

    async def _forget(self) -> None:
        """Which markers go where there are more, nobody says: so it is all that are old enough, or all."""
        before, limit = self.scene.clock.now() - self.random.choice([0, 1, SECOND, 100 * SECOND]), 9
        if self.random.random() < 0.5:
            found = await self.ask("high_volume.scan", prefix="", after=None, limit=9)
            gone = sum(isinstance(one.row.content, Gone) for one in found)
            before, limit = self.scene.clock.now(), max(gone, 1)
        await self.ask("high_volume.remove_markers", before=before, limit=limit)
