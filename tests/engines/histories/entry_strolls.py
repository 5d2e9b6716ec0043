"""Strolls at the change log."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any
from uuid import UUID

from tests.engines.histories.scene import Scene
from tests.engines.histories.stroller import Stroller
from tierstore.changelog.entries import Claimed, Entry, Role, State
from tierstore.types.ids import UPLOAD_UUID_VERSION, ObjectId, Revision


class EntryStroller(Stroller):
    """At the change log. All that one owner records is of one object."""

    def __init__(self, scene: Scene, random: Random) -> None:
        super().__init__(scene, random)
        kinds = ((0, 4), (0, 4), (0, UPLOAD_UUID_VERSION), (0, UPLOAD_UUID_VERSION), (1, 4), (1, UPLOAD_UUID_VERSION))
        self._revisions = [Revision(self.objects[number], self.uuid(version)) for number, version in kinds]
        self._owners = {self.uuid(): self.objects[number] for number in (0, 0, 1)}
        self._roles: dict[tuple[Revision, UUID], Role] = {}
        self._held: dict[UUID, bytes] = {}
        self._seen: list[Entry] = []
        self._steps: Sequence[tuple[int, Callable[[], Any]]] = (
            (4, self._record),
            (3, self._record_again),
            (5, self._begin),
            (6, self._advance),
            (5, self._claim),
            (1, self._mark),
            (1, self._forget),
            (2, self._expedite),
            (6, self._condemn),
            (4, self._resume),
            (2, self._forget_settled),
            (1, self._list),
        )

    async def step(self) -> None:
        weights = [weight for weight, _ in self._steps]
        ((_, step),) = self.random.choices(self._steps, weights)
        await step()
        if self.random.random() < 0.4:
            self._seen += await self.ask("changelog.find", revision=self.random.choice(self._revisions))

    def _one(self, owner: UUID, role: Role, *, optional: bool = True) -> Revision | None:
        """A revision that ``owner`` has in no other role: a key of the log has one role for ever."""
        if optional and self.random.random() < 0.4:
            return None
        its = [one for one in self._revisions if one.object_id == self._owners[owner]]
        there = [one for one in its if self._roles.get((one, owner), role) is role]
        if not there:
            return None
        revision = self.random.choice(there)
        self._roles[revision, owner] = role
        return revision

    def _drawn(self) -> dict[str, Any]:
        owner = self._owner()
        new, old = self._one(owner, Role.NEW), self._one(owner, Role.OLD)
        return {"owner": owner, "new": new, "old": old, "not_before": self.soon()}

    def _owner(self, object_id: ObjectId | None = None) -> UUID:
        """One of those, or of those of an object."""
        return self.random.choice([owner for owner, its in self._owners.items() if object_id in {None, its}])

    def _upload(self) -> Revision:
        return self.random.choice([one for one in self._revisions if one.is_upload])

    def _entry(self) -> Entry | None:
        """One that was seen: rather lately, and rather as it is."""
        return self.random.choice(self._seen[-6:]) if self._seen else None

    async def _record(self) -> None:
        await self.ask("changelog.record", **self._drawn())

    async def _record_again(self) -> None:
        drawn = self._drawn()
        if drawn["new"] is not None and self.random.random() < 0.1:
            drawn["old"] = drawn["new"]
        await self.ask("changelog.record_again", **drawn)

    async def _begin(self) -> None:
        revision, upload = self._upload(), self.octets(20)
        self._held.setdefault(revision.uuid, upload)
        await self.ask("changelog.begin_upload", revision=revision, upload=upload, not_before=self.soon())

    async def _advance(self) -> None:
        revision, upload = self._upload(), self.octets(20)
        expected = self.random.choice([self._held.get(revision.uuid, b""), self.octets(20)])
        moved = await self.ask(
            "changelog.advance", revision=revision, expected=expected, upload=upload, not_before=self.soon()
        )
        if moved is True:
            self._held[revision.uuid] = upload

    async def _claim(self) -> None:
        revision = self._upload()
        owner = self._owner(revision.object_id)
        old = self._one(owner, Role.OLD)
        claim = await self.ask("changelog.claim", revision=revision, owner=owner, old=old, not_before=self.soon())
        if isinstance(claim, Claimed):
            self._seen.append(claim.entry)

    async def _mark(self) -> None:
        await self.ask("changelog.mark_done", revision=self._upload(), not_before=self.soon())

    async def _forget(self) -> None:
        await self.ask("changelog.forget", owner=self._owner())

    async def _expedite(self) -> None:
        owner = self.random.choice([self._owner(), self._upload().uuid])
        await self.ask("changelog.expedite", owner=owner, not_before=self.soon())

    async def _condemn(self) -> None:
        if (entry := self._entry()) is not None:
            condemned = await self.ask("changelog.condemn", entry=entry, lease_until=self.soon())
            if isinstance(condemned, Entry):
                self._seen.append(condemned)

    async def _resume(self) -> None:
        if (entry := self._condemned()) is not None:
            await self.ask("changelog.resume_later", entry=entry, not_before=self.soon())

    async def _forget_settled(self) -> None:
        if (entry := self._condemned()) is not None:
            await self.ask("changelog.forget_settled", entry=entry)

    def _condemned(self) -> Entry | None:
        """An entry that is in nobody's hands any more, mostly."""
        settled = [entry for entry in self._seen[-12:] if entry.state is not State.OPEN]
        return settled[-1] if settled and self.random.random() < 0.7 else self._entry()

    async def _list(self) -> None:
        after = self.random.choice([None, self._entry()])
        await self.ask(
            "changelog.list", after=after, limit=self.random.choice([1, 3]), uploads=self.random.random() < 0.5
        )
