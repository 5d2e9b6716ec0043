"""The laws of a change log: every sentence of `tierstore.changelog.contract`, and the races between its users.

A backend's test class derives from `ChangeLogLaws` and supplies a factory and a back door. What a law says of writing
it checks through the back door, and what it says of reading it has put there through the back door, so that a fault in
one cannot hide a fault in the other.
"""

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any, TypeVar
from uuid import UUID

import pytest

from tierstore.changelog.contract import ChangeLog
from tierstore.changelog.entries import (
    Backlog,
    Claim,
    Claimed,
    Committed,
    Condemned,
    Entry,
    Role,
    State,
    Unknown,
)
from tierstore.clock import MICROS_PER_SECOND, UnixMicros
from tierstore.errors import GivenUp, InvariantBroken
from tierstore.testing.clock import ManualClock
from tierstore.testing.hostile import HOSTILE_IDS
from tierstore.testing.laws.identity import IdentityLaws
from tierstore.types.ids import ObjectId, Revision, Scope

A = TypeVar("A")
B = TypeVar("B")

RACERS = 32
ROUNDS = 24
"""Repetitions of a two-sided race, which either side may win."""


def owner(number: int) -> UUID:
    """The owner that laws call ``number``."""
    return UUID(int=number)


def revision(key: str, number: int = 1) -> Revision:
    """The revision that laws call ``key`` and ``number``: of one object all, as those are that one owner records."""
    prefix = int.from_bytes(sha256(key.encode()).digest()[:8])
    return Revision(ObjectId("photos", (Scope("org", "17"),), "it"), UUID(int=prefix << 64 ^ number))


def revision_of(key: str, number: int = 1) -> Revision:
    """A revision of the object that laws call ``key``."""
    return Revision(ObjectId("photos", (Scope("org", "17"),), key), UUID(int=number))


def in_order(entries: Iterable[Entry]) -> list[Entry]:
    """The entries in an order of their own, to compare what has none."""
    return sorted(entries, key=lambda entry: (entry.revision.storage_path, entry.owner))


NEW, OLD, OTHER = revision("new"), revision("old"), revision("other")
UPLOAD = revision("upload", 8)
ITS_LIKES = [revision_of(key).object_id for key in ("i", "it/", "IT", "it/it")]
"""Objects with other names than the one of `revision`."""
ME, YOU = owner(1), owner(2)


def batched(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    """The entries, as many at a time as may wait for a store with `Limits.tiny`."""
    for start in range(0, len(entries), RACERS):
        yield entries[start : start + RACERS]


class ChangeLogLaws(IdentityLaws):
    """What every change log does. ``clock`` is the one that its instances are opened with."""

    clock: ManualClock

    async def open_store(self) -> ChangeLog:
        return await self.open()

    @abstractmethod
    async def open(self) -> ChangeLog:
        """Open one more instance on the store of this test, with ``clock``."""

    @abstractmethod
    async def stored(self) -> Sequence[Entry]:
        """Back door: every entry as it is in the store, in any order."""

    @abstractmethod
    async def plant(self, entries: Sequence[Entry]) -> None:
        """Back door: put ``entries`` into the store."""

    @pytest.fixture
    async def log(self) -> AsyncIterator[ChangeLog]:
        """One open change log."""
        log = await self.open()
        yield log
        await log.close()

    @pytest.fixture
    async def second(self, log: ChangeLog) -> AsyncIterator[ChangeLog]:
        """Another instance on the store of ``log``, as of another process."""
        second = await self.open()
        assert second is not log
        yield second
        await second.close()

    def entry(
        self,
        revision: Revision = NEW,
        owner: UUID = ME,
        *,
        role: Role = Role.NEW,
        state: State = State.OPEN,
        epoch: int = 0,
        sweeps: int = 0,
        recorded: UnixMicros = 1_000,
        not_before: UnixMicros = 2_000,
    ) -> Entry:
        """An entry to plant or to expect."""
        return Entry(
            revision=revision,
            owner=owner,
            role=role,
            state=state,
            epoch=epoch,
            sweeps=sweeps,
            recorded=recorded,
            not_before=not_before,
        )

    async def expect(self, *entries: Entry) -> None:
        """The store holds these entries and no other."""
        assert in_order(await self.stored()) == in_order(entries)

    # record

    async def test_record_stores_both_entries_as_they_begin(self, log: ChangeLog) -> None:
        """`record` stores new and old: open, epoch 0, no sweeps, with the clock's time and the given ``not_before``."""
        now = self.clock.now()
        await log.record(ME, new=NEW, old=OLD, not_before=77)
        await self.expect(
            self.entry(NEW, role=Role.NEW, recorded=now, not_before=77),
            self.entry(OLD, role=Role.OLD, recorded=now, not_before=77),
        )

    @pytest.mark.parametrize("role", Role)
    async def test_record_stores_one_entry(self, log: ChangeLog, role: Role) -> None:
        """`record` of one revision stores that one, in its role."""
        await log.record(
            ME, new=NEW if role is Role.NEW else None, old=NEW if role is Role.OLD else None, not_before=77
        )
        await self.expect(self.entry(NEW, role=role, recorded=self.clock.now(), not_before=77))

    async def test_record_of_nothing_is_refused(self, log: ChangeLog) -> None:
        """`record` with neither new nor old breaks an invariant, and stores nothing."""
        with pytest.raises(InvariantBroken):
            await log.record(ME, new=None, old=None, not_before=77)
        await self.expect()

    async def test_record_of_one_revision_in_both_roles_is_refused(self, log: ChangeLog) -> None:
        """`record` of one revision as new and as old breaks an invariant, and stores nothing."""
        with pytest.raises(InvariantBroken):
            await log.record(ME, new=NEW, old=NEW, not_before=77)
        await self.expect()

    @pytest.mark.parametrize("held", Role)
    async def test_record_of_a_revision_in_its_other_role_is_refused(self, log: ChangeLog, held: Role) -> None:
        """`record` of a revision that the owner holds in the other role breaks an invariant; nothing is changed."""
        entry = self.entry(OTHER, role=held)
        await self.plant([entry])
        new, old = (NEW, OTHER) if held is Role.NEW else (OTHER, OLD)
        with pytest.raises(InvariantBroken):
            await log.record(ME, new=new, old=old, not_before=77)
        await self.expect(entry)

    async def test_record_is_idempotent(self, log: ChangeLog) -> None:
        """Repeating `record`, after a lost reply, leaves what the first call stored."""
        await log.record(ME, new=NEW, old=OLD, not_before=77)
        first = await self.stored()
        self.clock.advance(60)
        await log.record(ME, new=NEW, old=OLD, not_before=77)
        await self.expect(*first)

    async def test_record_again_with_another_time(self, log: ChangeLog) -> None:
        """A repeated `record` sets ``not_before`` anew, earlier or later."""
        for not_before in (77, 99, 55):
            await log.record(ME, new=NEW, old=OLD, not_before=not_before)
            assert {entry.not_before for entry in await self.stored()} == {not_before}

    async def test_record_does_not_revive_a_condemned_new_revision(self, log: ChangeLog) -> None:
        """`record` over a condemned entry of role new raises `GivenUp` and changes nothing, the old entry neither.

        Its sweeper may have fenced the row and be about to delete the blob: the owner must not commit it.
        """
        condemned = self.entry(NEW, state=State.CONDEMNED, epoch=1)
        await self.plant([condemned])
        with pytest.raises(GivenUp):
            await log.record(ME, new=NEW, old=OLD, not_before=77)
        await self.expect(condemned)

    async def test_record_takes_a_condemned_old_revision_back(self, log: ChangeLog) -> None:
        """`record` over a condemned entry of role old opens it with a larger epoch: its sweeper has lost it."""
        condemned = self.entry(OLD, role=Role.OLD, state=State.CONDEMNED, epoch=3, sweeps=2)
        await self.plant([condemned])
        await log.record(ME, new=NEW, old=OLD, not_before=77)
        mine = self.entry(OLD, role=Role.OLD, epoch=4, not_before=77)
        await self.expect(mine, self.entry(NEW, recorded=self.clock.now(), not_before=77))
        assert not await log.forget_settled(condemned)
        assert not await log.resume_later(condemned, 99)
        assert await log.condemn(condemned, 99) is None

    async def test_entries_of_one_revision_are_kept_by_owner(self, log: ChangeLog) -> None:
        """Two owners' entries of one revision are two entries, whatever their roles."""
        await log.record(ME, new=NEW, old=OLD, not_before=77)
        await log.record(YOU, new=OTHER, old=NEW, not_before=88)
        now = self.clock.now()
        await self.expect(
            self.entry(NEW, ME, role=Role.NEW, recorded=now, not_before=77),
            self.entry(OLD, ME, role=Role.OLD, recorded=now, not_before=77),
            self.entry(OTHER, YOU, role=Role.NEW, recorded=now, not_before=88),
            self.entry(NEW, YOU, role=Role.OLD, recorded=now, not_before=88),
        )

    async def test_concurrent_records_are_all_kept(self, log: ChangeLog, second: ChangeLog) -> None:
        """Owners that record at the same time, on two instances, lose nothing of each other."""
        await asyncio.gather(
            *(
                (log, second)[number % 2].record(owner(number), new=revision("n", number), old=OLD, not_before=number)
                for number in range(RACERS)
            )
        )
        now = self.clock.now()
        await self.expect(
            *(self.entry(revision("n", n), owner(n), recorded=now, not_before=n) for n in range(RACERS)),
            *(self.entry(OLD, owner(n), role=Role.OLD, recorded=now, not_before=n) for n in range(RACERS)),
        )

    # record_again

    async def test_record_again_replaces_the_old_revision(self, log: ChangeLog) -> None:
        """`record_again` swaps the old entry for the given one; the new one stays, with a larger epoch."""
        await self.plant([self.entry(NEW), self.entry(OLD, role=Role.OLD)])
        assert await log.record_again(ME, new=NEW, old=OTHER, not_before=77)
        await self.expect(
            self.entry(NEW, epoch=1, not_before=77),
            self.entry(OTHER, role=Role.OLD, recorded=self.clock.now(), not_before=77),
        )

    async def test_record_again_replaces_the_old_revision_by_nothing(self, log: ChangeLog) -> None:
        """`record_again` without old leaves the new entry alone in the log."""
        await self.plant([self.entry(NEW), self.entry(OLD, role=Role.OLD)])
        assert await log.record_again(ME, new=NEW, old=None, not_before=77)
        await self.expect(self.entry(NEW, epoch=1, not_before=77))

    async def test_record_again_adds_an_old_revision(self, log: ChangeLog) -> None:
        """`record_again` records an old revision where there was none."""
        await self.plant([self.entry(NEW)])
        assert await log.record_again(ME, new=NEW, old=OLD, not_before=77)
        await self.expect(
            self.entry(NEW, epoch=1, not_before=77),
            self.entry(OLD, role=Role.OLD, recorded=self.clock.now(), not_before=77),
        )

    async def test_record_again_of_the_same_old_revision_keeps_its_age(self, log: ChangeLog) -> None:
        """An old entry that is recorded again stays as old as it is; its epoch grows, its time is the given one."""
        await self.plant([self.entry(NEW, epoch=2), self.entry(OLD, role=Role.OLD, epoch=5)])
        assert await log.record_again(ME, new=NEW, old=OLD, not_before=77)
        await self.expect(
            self.entry(NEW, epoch=3, not_before=77), self.entry(OLD, role=Role.OLD, epoch=6, not_before=77)
        )

    @pytest.mark.parametrize("old", [OLD, OTHER, None])
    async def test_record_again_without_a_new_revision(self, log: ChangeLog, old: Revision | None) -> None:
        """Of a small write, `record_again` replaces the old entry and cannot fail."""
        await self.plant([self.entry(OLD, role=Role.OLD)])
        assert await log.record_again(ME, new=None, old=old, not_before=77)
        same = self.entry(OLD, role=Role.OLD, epoch=1, not_before=77)
        fresh = self.entry(OTHER, role=Role.OLD, recorded=self.clock.now(), not_before=77)
        await self.expect(*([] if old is None else [same if old == OLD else fresh]))

    async def test_record_again_removes_all_other_old_revisions(self, log: ChangeLog) -> None:
        """However many old entries the owner has, `record_again` leaves the given one."""
        await self.plant([self.entry(revision("many", n), role=Role.OLD) for n in range(4)])
        assert await log.record_again(ME, new=None, old=revision("many", 2), not_before=77)
        await self.expect(self.entry(revision("many", 2), role=Role.OLD, epoch=1, not_before=77))

    @pytest.mark.parametrize(
        "held",
        [
            pytest.param(None, id="absent"),
            pytest.param((Role.NEW, State.CONDEMNED), id="condemned"),
            pytest.param((Role.OLD, State.OPEN), id="recorded-as-old"),
        ],
    )
    async def test_record_again_gives_up_without_the_new_entry(
        self, log: ChangeLog, held: tuple[Role, State] | None
    ) -> None:
        """When the new entry is not there and open, `record_again` says False and changes nothing at all."""
        before = [self.entry(OLD, role=Role.OLD), self.entry(NEW, YOU)]
        if held is not None:
            before.append(self.entry(NEW, role=held[0], state=held[1], epoch=1))
        await self.plant(before)
        for old in (OTHER, OLD, None):
            assert not await log.record_again(ME, new=NEW, old=old, not_before=77)
        await self.expect(*before)

    @pytest.mark.parametrize("sweeps", [0, 2])
    async def test_record_again_takes_a_condemned_old_revision_back(self, log: ChangeLog, sweeps: int) -> None:
        """An old entry that is recorded again is open, whoever had condemned it, and that sweeper has lost it."""
        condemned = self.entry(OLD, role=Role.OLD, state=State.CONDEMNED, epoch=3, sweeps=sweeps)
        await self.plant([self.entry(NEW), condemned])
        assert await log.record_again(ME, new=NEW, old=OLD, not_before=77)
        mine = self.entry(OLD, role=Role.OLD, epoch=4, not_before=77)
        assert not await log.forget_settled(condemned)
        assert not await log.resume_later(condemned, 99)
        assert await log.condemn(condemned, 99) is None
        await self.expect(self.entry(NEW, epoch=1, not_before=77), mine)

    async def test_record_again_drops_a_condemned_old_revision(self, log: ChangeLog) -> None:
        """An old entry that another one replaces is gone, condemned or not, and its sweeper has lost it."""
        condemned = self.entry(OLD, role=Role.OLD, state=State.CONDEMNED, epoch=3)
        await self.plant([self.entry(NEW), condemned])
        assert await log.record_again(ME, new=NEW, old=OTHER, not_before=77)
        assert not await log.forget_settled(condemned)
        assert not await log.resume_later(condemned, 99)
        assert await log.condemn(condemned, 99) is None
        assert {entry.revision for entry in await self.stored()} == {NEW, OTHER}

    async def test_record_again_defers_every_entry_of_the_owner(self, log: ChangeLog) -> None:
        """``not_before`` is set on all of the owner's entries, also on one that was not named, and on no other."""
        await self.plant([self.entry(NEW), self.entry(OLD, role=Role.OLD), self.entry(NEW, YOU), self.entry(OTHER)])
        assert await log.record_again(ME, new=NEW, old=OLD, not_before=77)
        await self.expect(
            self.entry(NEW, epoch=1, not_before=77),
            self.entry(OLD, role=Role.OLD, epoch=1, not_before=77),
            self.entry(OTHER, not_before=77),
            self.entry(NEW, YOU),
        )

    async def test_record_again_leaves_other_owners_alone(self, log: ChangeLog) -> None:
        """Another owner's entries of the same revisions stay exactly as they are."""
        theirs = [
            self.entry(NEW, YOU, role=Role.OLD),
            self.entry(OLD, YOU, role=Role.OLD, state=State.CONDEMNED, epoch=1),
            self.entry(OTHER, YOU, role=Role.OLD, epoch=4),
        ]
        await self.plant([*theirs, self.entry(NEW), self.entry(OLD, role=Role.OLD)])
        assert await log.record_again(ME, new=NEW, old=OTHER, not_before=77)
        stored = await self.stored()
        assert in_order(entry for entry in stored if entry.owner == YOU) == in_order(theirs)

    async def test_record_again_is_safe_to_repeat(self, log: ChangeLog) -> None:
        """Repeating `record_again` answers the same and leaves the same entries, only their epochs grow."""
        await log.record(ME, new=NEW, old=OLD, not_before=55)
        for _ in range(3):
            assert await log.record_again(ME, new=NEW, old=OTHER, not_before=77)
            stored = [replace(entry, epoch=0) for entry in await self.stored()]
            now = self.clock.now()
            expected = [
                self.entry(NEW, recorded=now, not_before=77),
                self.entry(OTHER, role=Role.OLD, recorded=now, not_before=77),
            ]
            assert in_order(stored) == in_order(expected)

    async def test_record_again_in_both_roles_is_refused(self, log: ChangeLog) -> None:
        """`record_again` of one revision as new and as old breaks an invariant; nothing is changed."""
        before = [self.entry(NEW), self.entry(OLD, role=Role.OLD)]
        await self.plant(before)
        with pytest.raises(InvariantBroken):
            await log.record_again(ME, new=NEW, old=NEW, not_before=77)
        with pytest.raises(InvariantBroken):
            await log.record_again(ME, new=None, old=NEW, not_before=77)
        await self.expect(*before)

    @pytest.mark.parametrize("role", Role)
    async def test_a_sweeper_that_only_saw_an_entry_loses_to_its_owner(self, log: ChangeLog, role: Role) -> None:
        """Once `record_again` has returned True, no entry that was seen before can be condemned."""
        await log.record(ME, new=NEW, old=OLD, not_before=0)
        seen = [entry for entry in await log.due(0, 10) if entry.role is role]
        assert await log.record_again(ME, new=NEW, old=OLD, not_before=77)
        before = await self.stored()
        assert [await log.condemn(entry, 99) for entry in seen] == [None]
        await self.expect(*before)

    async def test_owner_and_sweeper_race_for_a_new_revision(self, log: ChangeLog, second: ChangeLog) -> None:
        """Of `record_again` and `condemn` at the same time, exactly one succeeds, and the store shows which."""
        for number in range(ROUNDS):
            mine, new = owner(number), revision("raced", number)
            await log.record(mine, new=new, old=OLD, not_before=0)
            [seen] = await log.find(new)
            kept, taken = await raced(
                number,
                log.record_again(mine, new=new, old=OTHER, not_before=77),
                second.condemn(seen, 99),
            )
            held = {entry.revision: entry for entry in await self.stored() if entry.owner == mine}
            if kept:
                assert taken is None
                assert held.keys() == {new, OTHER}
                assert (held[new].state, held[new].not_before) == (State.OPEN, 77)
            else:
                assert taken == held[new]
                assert held.keys() == {new, OLD}
                assert (held[new].state, held[new].not_before) == (State.CONDEMNED, 99)

    async def test_owner_and_sweeper_race_for_an_old_revision(self, log: ChangeLog, second: ChangeLog) -> None:
        """`record_again` of an old entry always prevails: afterwards it is open, and no sweeper holds it."""
        for number in range(ROUNDS):
            mine, old = owner(number), revision("raced", number)
            await log.record(mine, new=None, old=old, not_before=0)
            [seen] = await log.find(old)
            kept, taken = await raced(
                number, log.record_again(mine, new=None, old=old, not_before=77), second.condemn(seen, 99)
            )
            assert kept
            [held] = await second.find(old)
            assert (held.state, held.not_before) == (State.OPEN, 77)
            assert held.epoch == (1 if taken is None else 2)
            assert taken is None or not await second.forget_settled(taken)

    # forget

    async def test_forget_removes_all_entries_of_the_owner(self, log: ChangeLog) -> None:
        """`forget` removes the owner's entries in any role and state, and no other owner's."""
        theirs = [self.entry(NEW, YOU), self.entry(OLD, YOU, role=Role.OLD, state=State.CONDEMNED, epoch=1)]
        mine = [
            self.entry(revision("mine", number), role=role, state=state)
            for number, (role, state) in enumerate((role, state) for role in Role for state in State)
        ]
        await self.plant([*theirs, *mine])
        await log.forget(ME)
        await self.expect(*theirs)

    async def test_forget_of_an_unknown_owner(self, log: ChangeLog) -> None:
        """Forgetting what is not there is fine, also twice."""
        await self.plant([self.entry(NEW, YOU)])
        await log.forget(ME)
        await log.forget(ME)
        await self.expect(self.entry(NEW, YOU))

    async def test_a_sweeper_loses_an_entry_that_its_owner_forgets(self, log: ChangeLog, second: ChangeLog) -> None:
        """After `forget`, the sweeper that had condemned the entry changes nothing and brings nothing back."""
        await self.plant([self.entry(NEW)])
        taken = await second.condemn(self.entry(NEW), 99)
        assert taken is not None
        await log.forget(ME)
        assert not await second.resume_later(taken, 99)
        assert not await second.forget_settled(taken)
        assert await second.condemn(taken, 99) is None
        await self.expect()

    # expedite

    async def test_expedite_moves_the_open_entries_of_the_owner(self, log: ChangeLog) -> None:
        """`expedite` sets ``not_before`` of the owner's open entries, and changes nothing else and no other entry."""
        others = [
            self.entry(OTHER, state=State.CONDEMNED, epoch=1),
            self.entry(NEW, YOU),
            self.entry(OLD, YOU, role=Role.OLD),
        ]
        await self.plant([*others, self.entry(NEW, epoch=4), self.entry(OLD, role=Role.OLD)])
        await log.expedite(ME, 1_500)
        await self.expect(
            *others,
            self.entry(NEW, epoch=4, not_before=1_500),
            self.entry(OLD, role=Role.OLD, not_before=1_500),
        )
        assert {entry.revision for entry in await log.due(1_500, 10)} == {NEW, OLD}

    async def test_expedite_of_an_unknown_owner(self, log: ChangeLog) -> None:
        """Expediting what is not there is fine."""
        await log.expedite(ME, 0)
        await self.expect()

    # condemn

    @pytest.mark.parametrize("role", Role)
    async def test_condemn_takes_an_open_entry_over(self, log: ChangeLog, role: Role) -> None:
        """`condemn` changes state, epoch and ``not_before``, leaves the rest, and returns the entry as it is stored."""
        seen, bystander = self.entry(NEW, role=role, epoch=6), self.entry(NEW, YOU, role=role, epoch=6)
        await self.plant([seen, bystander])
        taken = await log.condemn(seen, 99)
        assert taken == replace(seen, state=State.CONDEMNED, epoch=7, not_before=99)
        await self.expect(taken, bystander)

    async def test_condemn_decides_by_state_and_epoch(self, log: ChangeLog) -> None:
        """`condemn` of an entry whose state or epoch is another now, or that is gone, returns None; nothing changes.

        What else has changed since it was seen does not matter: the stored values stay.
        """
        held = self.entry(NEW, epoch=2, sweeps=1)
        await self.plant([held])
        for stale in (
            replace(held, epoch=1),
            replace(held, epoch=3),
            replace(held, state=State.CONDEMNED),
            replace(held, owner=YOU),
            replace(held, revision=OTHER),
        ):
            assert await log.condemn(stale, 99) is None
        await self.expect(held)
        taken = await log.condemn(replace(held, sweeps=9, recorded=9, not_before=9, role=Role.OLD), 99)
        assert taken == replace(held, state=State.CONDEMNED, epoch=3, not_before=99)

    async def test_one_of_many_sweepers_condemns_an_entry(self, log: ChangeLog, second: ChangeLog) -> None:
        """Of sweepers on two instances that condemn one entry at the same time, one gets it: the one in the store."""
        await self.plant([self.entry(NEW)])
        seen = self.entry(NEW)
        for visit in range(1, 4):  # from open, then again and again over an expired lease
            won = await asyncio.gather(
                *((log, second)[number % 2].condemn(seen, 1_000 * visit + number) for number in range(RACERS))
            )
            [taken] = [entry for entry in won if entry is not None]
            assert taken.epoch == visit
            assert taken.not_before == 1_000 * visit + won.index(taken)
            await self.expect(taken)
            seen = taken

    async def test_many_entries_are_shared_out_among_sweepers(self, log: ChangeLog, second: ChangeLog) -> None:
        """Sweepers that condemn all they see, at the same time, get each entry once between them."""
        seen = [self.entry(revision("shared", number)) for number in range(RACERS)]
        await self.plant(seen)
        won = await asyncio.gather(
            *(sweeper.condemn(entry, 99) for sweeper in (log, second) for entry in seen),
        )
        taken = [entry for entry in won if entry is not None]
        assert len(taken) == RACERS
        await self.expect(*taken)

    async def test_a_sweeper_loses_an_entry_after_its_lease(self, log: ChangeLog, second: ChangeLog) -> None:
        """A condemned entry may be condemned again; the sweeper that had it before changes nothing any more."""
        await self.plant([self.entry(NEW)])
        taken = await log.condemn(self.entry(NEW), 50)
        assert taken is not None
        assert await second.due(49, 10) == []
        [found] = await second.due(50, 10)
        assert found == taken
        retaken = await second.condemn(found, 99)
        assert retaken == replace(taken, epoch=2, not_before=99)
        assert not await log.resume_later(taken, 500)
        assert not await log.forget_settled(taken)
        assert await log.condemn(taken, 500) is None
        await self.expect(retaken)
        assert await second.forget_settled(retaken)
        await self.expect()

    # resume_later

    async def test_resume_later_counts_the_visit(self, log: ChangeLog) -> None:
        """`resume_later` adds to sweeps and epoch and sets ``not_before``; the entry stays condemned."""
        seen = self.entry(NEW, state=State.CONDEMNED, epoch=3, sweeps=1)
        bystander = self.entry(NEW, YOU, state=State.CONDEMNED, epoch=3, sweeps=1)
        await self.plant([seen, bystander])
        assert await log.resume_later(seen, 500)
        await self.expect(replace(seen, epoch=4, sweeps=2, not_before=500), bystander)

    async def test_resume_later_counts_a_visit_once(self, log: ChangeLog, second: ChangeLog) -> None:
        """However often and from wherever one visit is reported, it counts once."""
        seen = self.entry(NEW, state=State.CONDEMNED, epoch=1)
        await self.plant([seen])
        reports = await asyncio.gather(*((log, second)[n % 2].resume_later(seen, 500) for n in range(RACERS)))
        assert sorted(reports) == [False] * (RACERS - 1) + [True]
        await self.expect(replace(seen, epoch=2, sweeps=1, not_before=500))

    async def test_resume_later_wants_a_condemned_entry(self, log: ChangeLog) -> None:
        """`resume_later` of an open, changed or absent entry says False and changes nothing."""
        held, condemned = self.entry(NEW), self.entry(OLD, state=State.CONDEMNED, epoch=2)
        await self.plant([held, condemned])
        for stale in (
            held,
            replace(held, state=State.CONDEMNED),
            replace(condemned, epoch=1),
            replace(condemned, epoch=3),
            replace(condemned, state=State.OPEN),
            replace(condemned, owner=YOU),
            replace(condemned, revision=OTHER),
        ):
            assert not await log.resume_later(stale, 500)
        await self.expect(held, condemned)

    async def test_an_entry_that_was_given_back_is_not_taken_too_early(self, log: ChangeLog, second: ChangeLog) -> None:
        """A sweeper that saw the entry before another one gave it back for later does not get it."""
        seen = self.entry(NEW, state=State.CONDEMNED, epoch=1)
        await self.plant([seen])
        assert await log.resume_later(seen, 500)
        assert await second.condemn(seen, 600) is None
        [later] = await second.due(500, 10)
        assert later.sweeps == 1
        taken = await second.condemn(later, 600)
        assert taken == replace(later, epoch=later.epoch + 1, not_before=600)

    # forget_settled

    async def test_forget_settled_removes_one_entry(self, log: ChangeLog) -> None:
        """`forget_settled` removes that entry, once, and no other of the revision or the owner."""
        seen = self.entry(NEW, state=State.CONDEMNED, epoch=1)
        others = [replace(seen, owner=YOU), replace(seen, revision=OTHER), self.entry(OLD, role=Role.OLD)]
        await self.plant([seen, *others])
        assert await log.forget_settled(seen)
        assert not await log.forget_settled(seen)
        await self.expect(*others)

    async def test_forget_settled_wants_a_condemned_entry(self, log: ChangeLog) -> None:
        """`forget_settled` of an open, changed or absent entry says False and removes nothing."""
        held, condemned = self.entry(NEW), self.entry(OLD, state=State.CONDEMNED, epoch=2)
        await self.plant([held, condemned])
        for stale in (
            held,
            replace(held, state=State.CONDEMNED),
            replace(condemned, epoch=1),
            replace(condemned, epoch=3),
            replace(condemned, state=State.OPEN),
            replace(condemned, owner=YOU),
            replace(condemned, revision=OTHER),
        ):
            assert not await log.forget_settled(stale)
        await self.expect(held, condemned)

    async def test_one_of_many_forgets_a_condemned_entry(self, log: ChangeLog, second: ChangeLog) -> None:
        """Of many that forget one condemned entry at the same time, one is told that it did."""
        seen = self.entry(NEW, state=State.CONDEMNED, epoch=1)
        await self.plant([seen])
        told = await asyncio.gather(*((log, second)[n % 2].forget_settled(seen) for n in range(RACERS)))
        assert sorted(told) == [False] * (RACERS - 1) + [True]
        await self.expect()

    async def test_two_sweepers_race_over_an_expired_lease(self, log: ChangeLog, second: ChangeLog) -> None:
        """Either the first sweeper still forgets its entry, or another takes it over: never both, never neither."""
        for number in range(ROUNDS):
            seen = self.entry(revision("raced", number), state=State.CONDEMNED, epoch=1)
            await self.plant([seen])
            forgotten, taken = await raced(number, log.forget_settled(seen), second.condemn(seen, 99))
            assert forgotten == (taken is None)
            assert await log.find(seen.revision) == ([] if taken is None else [taken])

    async def test_epochs_only_grow(self, log: ChangeLog) -> None:
        """Through any number of changes of hands, an entry's epoch is larger after each: no state comes again."""
        await log.record(ME, new=None, old=OLD, not_before=0)
        epochs = []
        for _ in range(3):
            [held] = await log.find(OLD)
            taken = await log.condemn(held, 0)
            assert taken is not None
            epochs += [held.epoch, taken.epoch]
            assert await log.resume_later(taken, 0)
            [given_back] = await log.find(OLD)
            epochs.append(given_back.epoch)
            assert await log.record_again(ME, new=None, old=OLD, not_before=0)
        assert epochs == sorted(set(epochs))

    # due

    async def test_due_lists_the_earliest_first(self, log: ChangeLog) -> None:
        """`due` lists entries of any role and state in the order of their ``not_before``."""
        kinds = [(role, state) for role in Role for state in State]
        times = [500, 100, 400, 200, 300, 150, 450, 250]
        assert len(times) > len(kinds)
        planted = [
            self.entry(revision("due", at), owner(at), role=role, state=state, not_before=at)
            for at, (role, state) in zip(times, kinds * 2, strict=False)
        ]
        await self.plant(planted)
        assert list(await log.due(1_000, 100)) == sorted(planted, key=lambda entry: entry.not_before)

    async def test_due_starts_at_the_exact_instant(self, log: ChangeLog) -> None:
        """An entry is due from its ``not_before`` on, to the microsecond."""
        at = 1_767_225_600 * MICROS_PER_SECOND + 1
        await self.plant([self.entry(not_before=at)])
        assert list(await log.due(at - 1, 10)) == []
        assert list(await log.due(at, 10)) == [self.entry(not_before=at)]
        assert list(await log.due(at + 1, 10)) == [self.entry(not_before=at)]

    async def test_due_keeps_to_its_limit(self, log: ChangeLog) -> None:
        """`due` returns at most ``limit`` entries, the earliest ones, and does not change them."""
        planted = [self.entry(revision("due", at), not_before=at) for at in range(1, 10)]
        await self.plant(planted)
        for limit in (1, 4, 9, 10):
            assert list(await log.due(9, limit)) == planted[:limit]
        assert list(await log.due(3, 10)) == planted[:3]
        await self.expect(*planted)

    async def test_due_lists_equal_times_in_part(self, log: ChangeLog) -> None:
        """Entries of one instant fill ``limit`` like any other, each listed once."""
        planted = [self.entry(revision("due", number)) for number in range(6)]
        await self.plant(planted)
        listed = await log.due(2_000, 4)
        assert len({entry.revision for entry in listed}) == 4
        assert in_order(await log.due(2_000, 6)) == in_order(planted)

    # find

    async def test_find_lists_the_entries_of_a_revision(self, log: ChangeLog) -> None:
        """`find` lists all entries of that revision and of no other, in the order of their owners."""
        owners = [owner(number) for number in (5, 1 << 127, 2, 1 << 64, 0, (1 << 128) - 1)]
        planted = [self.entry(NEW, number, role=Role.OLD, state=State.CONDEMNED) for number in owners]
        decoys = [revision("new", 2), revision("new", 1 << 127), *(replace(NEW, object_id=each) for each in ITS_LIKES)]
        await self.plant([*planted, *(self.entry(decoy) for decoy in decoys)])
        assert list(await log.find(NEW)) == sorted(planted, key=lambda entry: entry.owner)

    async def test_find_of_an_unknown_revision(self, log: ChangeLog) -> None:
        """`find` of a revision without entries is an empty answer."""
        await self.plant([self.entry(OLD)])
        assert list(await log.find(NEW)) == []

    # backlog

    async def test_backlog_of_an_empty_log(self, log: ChangeLog) -> None:
        """An empty log has no oldest entry."""
        assert await log.backlog() == Backlog(entries=0, oldest=None, uploads=0, outcomes=0)

    async def test_backlog_counts_and_tells_the_oldest(self, log: ChangeLog) -> None:
        """`backlog` counts every entry, open or condemned, and tells the earliest time at which one was recorded."""
        times = [500, 200, 400, 300]
        planted = [
            self.entry(revision("old", at), owner(at), state=state, recorded=at)
            for at, state in zip(times, [State.OPEN, State.CONDEMNED] * 2, strict=True)
        ]
        await self.plant(planted)
        assert await log.backlog() == Backlog(entries=4, oldest=200, uploads=0, outcomes=0)
        await log.forget(owner(200))
        assert await log.backlog() == Backlog(entries=3, oldest=300, uploads=0, outcomes=0)

    async def test_backlog_age_outlives_changes_of_hands(self, log: ChangeLog) -> None:
        """However often an entry changes hands, its age counts from the first time it was recorded."""
        start = self.clock.now()
        await log.record(ME, new=None, old=OLD, not_before=0)
        self.clock.advance(60)
        assert await log.record_again(ME, new=None, old=OLD, not_before=0)
        [held] = await log.find(OLD)
        taken = await log.condemn(held, 0)
        assert taken is not None
        assert await log.resume_later(taken, 0)
        await log.record(ME, new=None, old=OLD, not_before=0)
        await log.record(YOU, new=NEW, old=None, not_before=0)
        assert await log.backlog() == Backlog(entries=2, oldest=start, uploads=0, outcomes=0)
        await log.forget(ME)
        assert await log.backlog() == Backlog(entries=1, oldest=self.clock.now(), uploads=0, outcomes=0)

    # names

    async def test_hostile_names(self, log: ChangeLog) -> None:
        """Any object id names entries of its own: found, listed, condemned and forgotten, and no other with them."""
        expected = [
            self.entry(Revision(object_id, UUID(int=1)), owner(number), recorded=self.clock.now(), not_before=number)
            for number, object_id in enumerate(HOSTILE_IDS)
        ]
        for some in batched(expected):
            await asyncio.gather(
                *(log.record(entry.owner, new=entry.revision, old=None, not_before=entry.not_before) for entry in some)
            )
        await self.expect(*expected)
        assert list(await log.due(len(expected), len(expected) + 1)) == expected
        for some in batched(expected):
            found = await asyncio.gather(*(log.find(entry.revision) for entry in some))
            assert [list(entries) for entries in found] == [[entry] for entry in some]
        gone, kept = expected[::2], expected[1::2]
        for some in batched(gone):
            taken = await asyncio.gather(*(log.condemn(entry, 99) for entry in some))
            forgotten = await asyncio.gather(*(log.forget_settled(entry) for entry in taken if entry is not None))
            assert forgotten == [True] * len(some)
        await self.expect(*kept)

    # durability and visibility

    async def test_entries_survive_closing(self) -> None:
        """What a call did is there when the log is opened again, and so is what it did not do."""
        log = await self.open()
        await log.record(ME, new=NEW, old=OLD, not_before=10)
        await log.record(YOU, new=OTHER, old=None, not_before=20)
        [seen] = await log.find(NEW)
        taken = await log.condemn(seen, 30)
        before = await log.due(100, 10)
        await log.close()
        log = await self.open()
        try:
            assert await log.due(100, 10) == before
            assert taken in before
            assert await log.condemn(seen, 40) is None
            assert not await log.record_again(ME, new=NEW, old=OLD, not_before=40)
            assert taken is not None
            assert await log.forget_settled(taken)
        finally:
            await log.close()
        assert {entry.revision for entry in await self.stored()} == {OLD, OTHER}

    async def test_every_change_is_seen_at_once_elsewhere(self, log: ChangeLog, second: ChangeLog) -> None:
        """What one instance has done is what the next call of another one starts from."""
        for number in range(8):
            here, there = (log, second) if number % 2 else (second, log)
            new = revision("seen", number)
            await here.record(owner(number), new=new, old=None, not_before=0)
            [seen] = await there.find(new)
            taken = await there.condemn(seen, 5)
            assert taken is not None
            assert await here.due(5, 10) == [taken]
            assert not await here.record_again(owner(number), new=new, old=None, not_before=0)
            assert await here.resume_later(taken, 6)
            assert await there.due(5, 10) == []
            await there.forget(owner(number))
            assert await here.backlog() == Backlog(entries=0, oldest=None, uploads=0, outcomes=0)

    async def test_check_of_an_open_log(self, log: ChangeLog) -> None:
        """`check` of a log that answers raises nothing and changes nothing."""
        await self.plant([self.entry()])
        await log.check()
        await self.expect(self.entry())

    async def test_close_is_safe_to_repeat(self) -> None:
        """Closing twice, also at the same time, and closing one of two instances, harms nothing."""
        log, second = await self.open(), await self.open()
        await asyncio.gather(log.close(), log.close())
        await log.close()
        await second.record(ME, new=NEW, old=None, not_before=0)
        await second.close()
        assert len(await self.stored()) == 1

    async def test_close_finishes_what_was_accepted(self) -> None:
        """Calls under way when `close` is called still take effect."""
        log = await self.open()
        await asyncio.gather(
            *(log.record(owner(n), new=revision("n", n), old=None, not_before=0) for n in range(RACERS)), log.close()
        )
        assert len(await self.stored()) == RACERS

    # Uploads

    def own_entry(self, **changes: Any) -> Entry:
        """An upload's own entry to plant or to expect."""
        return replace(self.entry(UPLOAD, UPLOAD.uuid), upload=b"wanted", **changes)

    async def test_begin_upload_records_an_open_entry_once(self, log: ChangeLog) -> None:
        """Its owner is the revision's UUID; a repetition changes nothing, whatever has become of the entry."""
        await log.begin_upload(UPLOAD, b"wanted", 7_000)
        recorded = self.own_entry(recorded=self.clock.now(), not_before=7_000)
        await self.expect(recorded)
        self.clock.advance(1)
        await log.begin_upload(UPLOAD, b"other", 9_000)
        await self.expect(recorded)
        assert list(await log.find(UPLOAD)) == [recorded]

    @pytest.mark.parametrize(("given", "then"), [(1_999, 2_000), (2_000, 2_000), (7_000, 7_000)])
    async def test_advance_changes_what_an_upload_holds(self, log: ChangeLog, given: int, then: int) -> None:
        """And pushes its time out, never in; its epoch stays, and other entries of the revision do."""
        own, other = self.own_entry(epoch=3), self.entry(UPLOAD, YOU, role=Role.OLD)
        await self.plant([own, other])
        assert await log.advance(UPLOAD, b"wanted", b"\x00more", given)
        await self.expect(replace(own, upload=b"\x00more", not_before=then), other)

    @pytest.mark.parametrize("state", State)
    async def test_advance_wants_what_the_upload_holds(self, log: ChangeLog, state: State) -> None:
        """To the byte: with anything else, and for what is no open upload, nothing is changed."""
        held = b"" if state is State.DONE else b"wanted"
        planted = [replace(self.own_entry(state=state), upload=held), self.entry(NEW)]
        await self.plant(planted)
        for expected in (b"wante", b"wanted\x00", b"Wanted", held if state is not State.OPEN else b""):
            assert not await log.advance(UPLOAD, expected, b"more", 9_000)
        assert not await log.advance(NEW, b"", b"more", 9_000)
        assert not await log.advance(OTHER, b"wanted", b"more", 9_000)
        await self.expect(*planted)

    async def test_of_many_that_advance_at_once_one_does(self, log: ChangeLog, second: ChangeLog) -> None:
        """On two instances; and what stands is what that one gave."""
        await self.plant([self.own_entry()])
        calls = ((log, second)[n % 2].advance(UPLOAD, b"wanted", b"%d" % n, 5_000 + n) for n in range(RACERS))
        advanced = await asyncio.gather(*calls)
        assert advanced.count(True) == 1
        won = advanced.index(True)
        await self.expect(replace(self.own_entry(), upload=b"%d" % won, not_before=5_000 + won))

    async def test_many_count_by_advancing(self, log: ChangeLog, second: ChangeLog) -> None:
        """Whoever loses looks and tries again: no count is lost, whichever instance it goes through."""
        await self.plant([replace(self.own_entry(), upload=b"0")])

        async def count(through: ChangeLog) -> None:
            while True:
                [held] = await through.find(UPLOAD)
                seen = held.upload or b""
                if await through.advance(UPLOAD, seen, b"%d" % (int(seen) + 1), 0):
                    return

        await asyncio.gather(*(count((log, second)[n % 2]) for n in range(8)))
        [held] = await self.stored()
        assert held.upload == b"8"

    async def test_an_advance_and_a_sweeper_race_for_an_upload(self, log: ChangeLog, second: ChangeLog) -> None:
        """Who condemns always gets the upload; an advance came before that, or changed nothing."""
        for number in range(ROUNDS):
            begun = revision("raced", 1_000 + number)
            await log.begin_upload(begun, b"wanted", 0)
            [seen] = await log.find(begun)
            advanced, taken = await raced(number, log.advance(begun, b"wanted", b"more", 77), second.condemn(seen, 99))
            assert taken is not None
            [held] = await log.find(begun)
            assert held == replace(seen, state=State.CONDEMNED, epoch=1, not_before=99, upload=taken.upload)
            assert taken.upload == (b"more" if advanced else b"wanted")
            assert not await log.advance(begun, taken.upload or b"", b"late", 77)

    @pytest.mark.parametrize("own", [State.OPEN, State.CONDEMNED, State.DONE, None])
    async def test_a_revision_that_is_listed_as_old_was_committed(self, log: ChangeLog, own: State | None) -> None:
        """`claim` says so whatever the upload's own entry says, and changes nothing."""
        planted = [self.entry(UPLOAD, YOU, role=Role.OLD)]
        if own is not None:
            planted.append(self.own_entry(state=own))
        await self.plant(planted)
        assert await log.claim(UPLOAD, ME, old=OLD, not_before=9_000) == Committed()
        await self.expect(*planted)

    @pytest.mark.parametrize(
        ("state", "sweeps", "claim"),
        [
            (State.DONE, 0, Committed()),
            (State.DONE, 1, Committed()),
            (State.CONDEMNED, 0, Condemned(swept=False)),
            (State.CONDEMNED, 1, Condemned(swept=True)),
        ],
    )
    async def test_a_settled_upload_is_not_claimed(
        self, log: ChangeLog, state: State, sweeps: int, claim: Claim
    ) -> None:
        """`claim` tells what became of it, and changes nothing."""
        planted = [self.own_entry(state=state, sweeps=sweeps), self.entry(OTHER, ME, role=Role.OLD)]
        await self.plant(planted)
        assert await log.claim(UPLOAD, ME, old=OLD, not_before=9_000) == claim
        await self.expect(*planted)

    async def test_an_upload_that_is_not_there_is_unknown(self, log: ChangeLog) -> None:
        """Nor is a large write's entry of that revision an upload's own."""
        planted = [self.entry(UPLOAD, YOU), self.entry(OTHER, ME, role=Role.OLD)]
        await self.plant(planted)
        assert await log.claim(UPLOAD, ME, old=OLD, not_before=9_000) == Unknown()
        await self.expect(*planted)

    async def test_claim_takes_the_upload_and_records_what_is_replaced(self, log: ChangeLog) -> None:
        """In one step: epoch + 1, ``not_before`` only later, the owner's old entries replaced, others left alone."""
        other = self.entry(OTHER, YOU, role=Role.OLD)
        await self.plant([self.own_entry(epoch=4), self.entry(OTHER, ME, role=Role.OLD), other])
        claimed = self.own_entry(epoch=5, not_before=9_000)
        assert await log.claim(UPLOAD, ME, old=OLD, not_before=9_000) == Claimed(claimed)
        old = self.entry(OLD, ME, role=Role.OLD, recorded=self.clock.now(), not_before=9_000)
        await self.expect(claimed, old, other)
        again = replace(claimed, epoch=6)
        assert await log.claim(UPLOAD, ME, old=OLD, not_before=8_000) == Claimed(again)
        await self.expect(again, replace(old, epoch=1, not_before=8_000), other)
        last = replace(again, epoch=7)
        assert await log.claim(UPLOAD, ME, old=None, not_before=1) == Claimed(last)
        await self.expect(last, other)

    async def test_a_claim_beats_a_sweeper_that_looked_before(self, log: ChangeLog, second: ChangeLog) -> None:
        """The epoch has grown: condemning what was seen loses."""
        await self.plant([self.own_entry()])
        (seen,) = await second.due(2_000, 10)
        assert isinstance(await log.claim(UPLOAD, ME, old=None, not_before=0), Claimed)
        assert await second.condemn(seen, 9_000) is None

    async def test_claims_of_many_at_once_all_succeed(self, log: ChangeLog, second: ChangeLog) -> None:
        """Each with an epoch of its own."""
        await self.plant([self.own_entry()])
        claims = await asyncio.gather(
            *[
                (log, second)[number % 2].claim(UPLOAD, owner(100 + number), old=OLD, not_before=0)
                for number in range(RACERS)
            ]
        )
        epochs = [claim.entry.epoch for claim in claims if isinstance(claim, Claimed)]
        assert sorted(epochs) == list(range(1, RACERS + 1))
        assert len(await log.find(OLD)) == RACERS

    @pytest.mark.parametrize("state", [State.OPEN, State.CONDEMNED])
    async def test_done_is_final(self, log: ChangeLog, state: State) -> None:
        """`mark_done` ends an upload in any state; nothing but `forget_settled` changes it afterwards."""
        await self.plant([self.own_entry(state=state, epoch=3, sweeps=1)])
        (seen,) = await log.find(UPLOAD)
        await log.mark_done(UPLOAD, 9_000)
        done = replace(seen, state=State.DONE, epoch=4, not_before=9_000, upload=b"")
        await self.expect(done)
        await log.mark_done(UPLOAD, 10_000)
        await log.expedite(UPLOAD.uuid, 0)
        await log.begin_upload(UPLOAD, b"other", 0)
        assert await log.condemn(done, 11_000) is None
        assert not await log.resume_later(seen, 11_000)
        assert not await log.forget_settled(seen)
        await self.expect(done)
        assert list(await log.due(9_000, 10)) == [done]
        assert await log.forget_settled(done)
        await self.expect()

    async def test_mark_done_of_what_is_no_upload_does_nothing(self, log: ChangeLog) -> None:
        """Neither of an absent entry, nor of one that is no upload's own."""
        planted = [self.entry(UPLOAD, YOU), self.entry(OTHER, OTHER.uuid)]
        await self.plant(planted)
        await log.mark_done(UPLOAD, 9_000)
        await log.mark_done(OTHER, 9_000)
        await self.expect(*planted)

    async def test_an_open_entry_is_not_forgotten_as_settled(self, log: ChangeLog) -> None:
        """`forget_settled` leaves it."""
        await self.plant([self.own_entry()])
        assert not await log.forget_settled(self.own_entry())
        await self.expect(self.own_entry())

    async def test_backlog_tells_uploads_and_outcomes_apart(self, log: ChangeLog) -> None:
        """Uploads in progress and outcomes are counted, but wait for nothing; of one that was aborted the age is no
        time of waiting, however long it was in progress before.
        """
        uploads = [revision("upload", number) for number in range(1, 7)]
        states = [State.OPEN] * 3 + [State.CONDEMNED] + [State.DONE] * 2
        await self.plant(
            [
                replace(self.own_entry(state=state, recorded=10 * place), revision=upload, owner=upload.uuid)
                for place, (upload, state) in enumerate(zip(uploads, states, strict=True))
            ]
        )
        assert await log.backlog() == Backlog(entries=1, oldest=None, uploads=3, outcomes=2)
        await log.record(ME, new=None, old=OLD, not_before=0)
        assert await log.backlog() == Backlog(entries=2, oldest=self.clock.now(), uploads=3, outcomes=2)

    async def test_list_pages_through_all_entries(self, log: ChangeLog) -> None:
        """In the order of recording, each once, also when the last one of a page has gone; ``uploads`` are filtered."""
        planted = [self.entry(revision("listed", at), owner(100 + at), recorded=at // 3) for at in range(10)]
        own = [
            replace(self.own_entry(state=state, recorded=5), revision=upload, owner=upload.uuid)
            for upload, state in zip([revision("upload", number) for number in (1, 2, 3)], State, strict=True)
        ]
        await self.plant([*planted, *own])
        listed: list[Entry] = []
        while page := await log.list(listed[-1] if listed else None, 4):
            listed += page
            if page[-1].upload is None:
                await log.forget(page[-1].owner)
        assert listed == sorted(
            [*planted, *own], key=lambda entry: (entry.recorded, entry.revision.storage_path, entry.owner.bytes)
        )
        assert list(await log.list(None, 10, uploads=True)) == own[:2]

    @pytest.mark.parametrize("state", State)
    async def test_begin_upload_leaves_what_is_there(self, log: ChangeLog, state: State) -> None:
        """A late repetition resets nothing: not the state, the epoch, the sweeps, nor what the object is to be."""
        held = self.own_entry(state=state, epoch=3, sweeps=1)
        await self.plant([held])
        await log.begin_upload(UPLOAD, b"other", 9_000)
        await self.expect(held)

    async def test_an_upload_that_is_begun_twice_at_once_is_one(self, log: ChangeLog, second: ChangeLog) -> None:
        """Of repetitions at the same time, on two instances, one records the entry, whole."""
        await asyncio.gather(
            *((log, second)[n % 2].begin_upload(UPLOAD, b"%d" % n, 100 + n) for n in range(RACERS)),
        )
        [held] = await self.stored()
        won = int(held.upload or b"-1")
        assert held == replace(self.own_entry(recorded=self.clock.now()), not_before=100 + won, upload=b"%d" % won)

    async def test_what_an_upload_is_to_be_is_kept_to_the_byte(self, log: ChangeLog) -> None:
        """``upload`` is opaque: any bytes come back, and none at all are still an upload's own entry."""
        for number, upload in enumerate([b"", bytes(range(256)), b"\xff" * 4_000]):
            begun = revision("opaque", number)
            await log.begin_upload(begun, upload, 0)
            [held] = await log.find(begun)
            assert (held.upload, held.owner_is_upload) == (upload, True)
            claimed = await log.claim(begun, ME, old=None, not_before=0)
            assert claimed == Claimed(replace(held, epoch=1))

    @pytest.mark.parametrize("old", [OLD, OTHER, None])
    async def test_claim_replaces_condemned_entries(self, log: ChangeLog, old: Revision | None) -> None:
        """What the owner has recorded as old is replaced even if condemned, and its sweeper has lost it."""
        condemned = self.entry(OLD, role=Role.OLD, state=State.CONDEMNED, epoch=3, sweeps=2)
        await self.plant([self.own_entry(), condemned])
        claimed = self.own_entry(epoch=1, not_before=9_000)
        assert await log.claim(UPLOAD, ME, old=old, not_before=9_000) == Claimed(claimed)
        same = self.entry(OLD, role=Role.OLD, epoch=4, not_before=9_000)
        fresh = self.entry(OTHER, role=Role.OLD, recorded=self.clock.now(), not_before=9_000)
        assert not await log.forget_settled(condemned)
        assert not await log.resume_later(condemned, 99)
        assert await log.condemn(condemned, 99) is None
        await self.expect(claimed, *([] if old is None else [same if old == OLD else fresh]))

    async def test_claim_of_a_revision_in_both_roles_is_refused(self, log: ChangeLog) -> None:
        """`claim` of what is also old, or with an old one that the owner holds as new, breaks an invariant.

        Nothing is changed: not the upload's epoch, nor what else the owner has recorded.
        """
        before = [self.own_entry(), self.entry(NEW), self.entry(OLD, role=Role.OLD)]
        await self.plant(before)
        for old in (UPLOAD, NEW):
            with pytest.raises(InvariantBroken):
                await log.claim(UPLOAD, ME, old=old, not_before=9_000)
        await self.expect(*before)

    async def test_a_claim_and_a_sweeper_race_for_an_upload(self, log: ChangeLog, second: ChangeLog) -> None:
        """Of `claim` and `condemn` at the same time, exactly one gets the upload, and the store shows which."""
        for number in range(ROUNDS):
            mine, begun = owner(100 + number), revision("raced", 1_000 + number)
            await log.begin_upload(begun, b"wanted", 0)
            [seen] = await log.find(begun)
            claim, taken = await raced(number, log.claim(begun, mine, old=OLD, not_before=77), second.condemn(seen, 99))
            held = {entry.revision: entry for entry in await self.stored() if entry.owner in (mine, begun.uuid)}
            if taken is None:
                assert claim == Claimed(replace(seen, epoch=1, not_before=77))
                assert held == {begun: claim.entry, OLD: held[OLD]}
            else:
                assert claim == Condemned(swept=False)
                assert held == {begun: taken}

    async def test_an_upload_that_is_done_is_no_sweepers(self, log: ChangeLog, second: ChangeLog) -> None:
        """`mark_done` always prevails over a sweeper at the same time, which then holds nothing."""
        for number in range(ROUNDS):
            begun = revision("raced", 1_000 + number)
            await log.begin_upload(begun, b"wanted", 0)
            [seen] = await log.find(begun)
            _, taken = await raced(number, log.mark_done(begun, 77), second.condemn(seen, 99))
            done = replace(seen, state=State.DONE, epoch=1 if taken is None else 2, not_before=77, upload=b"")
            if taken is not None:
                assert not await second.resume_later(taken, 99)
                assert not await second.forget_settled(taken)
                assert await second.condemn(taken, 99) is None
            assert list(await log.find(begun)) == [done]

    async def test_many_mark_an_upload_done_once(self, log: ChangeLog, second: ChangeLog) -> None:
        """However many attempts mark the upload done at the same time, the first of them decides."""
        await self.plant([self.own_entry()])
        await asyncio.gather(*((log, second)[n % 2].mark_done(UPLOAD, 100 + n) for n in range(RACERS)))
        [done] = await self.stored()
        assert 100 <= done.not_before < 100 + RACERS
        assert done == replace(self.own_entry(state=State.DONE, epoch=1, not_before=done.not_before), upload=b"")

    @pytest.mark.parametrize("state", State)
    async def test_forget_and_expedite_know_an_upload_by_its_uuid(self, log: ChangeLog, state: State) -> None:
        """The revision's UUID owns the entry: `expedite` moves it if it is open, `forget` removes it in any state."""
        held, other = self.own_entry(state=state), self.entry(UPLOAD, ME, role=Role.OLD)
        await self.plant([held, other])
        await log.expedite(UPLOAD.uuid, 5)
        await self.expect(replace(held, not_before=5) if state is State.OPEN else held, other)
        await log.forget(UPLOAD.uuid)
        await self.expect(other)

    async def test_one_of_many_forgets_an_upload_that_is_done(self, log: ChangeLog, second: ChangeLog) -> None:
        """Of sweepers that forget one done entry at the same time, one is told that it did; none that saw less is."""
        done = self.own_entry(state=State.DONE, epoch=2)
        await self.plant([done])
        assert not await log.forget_settled(replace(done, epoch=1))
        assert not await log.forget_settled(replace(done, state=State.CONDEMNED))
        told = await asyncio.gather(*((log, second)[n % 2].forget_settled(done) for n in range(RACERS)))
        assert sorted(told) == [False] * (RACERS - 1) + [True]
        await self.expect()

    async def test_list_orders_equal_times_by_revision_and_owner(self, log: ChangeLog) -> None:
        """Entries of one instant are listed in the order of revision and owner, whatever the size of the pages."""
        planted = [
            self.entry(revision_of(key), owner(number), role=Role.OLD)
            for key in ("a", "a/", "b", "\u00e9", "\U0001f600")
            for number in (2, 1 << 64, 1 << 127)
        ]
        await self.plant(planted[::-1])
        whole = list(await log.list(None, 100))
        assert whole == sorted(planted, key=lambda entry: (entry.revision.storage_path.encode(), entry.owner.bytes))
        for limit in (1, 4, len(planted)):
            assert await listed(log, limit) == whole

    async def test_list_pages_through_uploads(self, log: ChangeLog) -> None:
        """With ``uploads`` a page is full of uploads not done, however many other entries stand between them."""
        own = [
            replace(self.own_entry(state=state, recorded=at), revision=revision("up", at), owner=owner(at))
            for at in range(30)
            for state in [list(State)[at % 3]]
        ]
        between = [self.entry(revision("up", at), owner(100 + at), role=Role.OLD, recorded=at) for at in range(30)]
        await self.plant([*between, *own])
        expected = [entry for entry in own if entry.state is not State.DONE]
        for limit in (1, 3, 50):
            assert await listed(log, limit, uploads=True) == expected
        assert len(await log.list(None, 3, uploads=True)) == 3

    async def test_list_lists_once_what_stays(self, log: ChangeLog, second: ChangeLog) -> None:
        """While others record, forget and condemn entries, those that stay are listed, each once."""
        staying = [self.entry(revision("stays", at), owner(at), recorded=10 * at) for at in range(1, 13)]
        await self.plant(staying)
        seen: list[Entry] = []
        number = 0
        while page := await log.list(seen[-1] if seen else None, 2):
            seen += page
            number += 1
            [last] = await second.find(page[-1].revision)
            assert await second.condemn(last, 77) is not None  # changes hands: its place stays
            await self.plant([self.entry(revision("comes", number), owner(100 + number), recorded=15 * number)])
            await second.forget(owner(100 + number - 1))
        names = [entry.revision for entry in seen if entry.revision in {entry.revision for entry in staying}]
        assert names == [entry.revision for entry in staying]
        assert len({(entry.revision, entry.owner) for entry in seen}) == len(seen)

    async def test_uploads_survive_closing(self) -> None:
        """What was done to uploads is there when the log is opened again."""
        begun, done = revision("begun", 1_001), revision("done", 1_002)
        log = await self.open()
        await log.begin_upload(begun, b"wanted", 10)
        await log.begin_upload(done, b"wanted", 20)
        claim = await log.claim(begun, ME, old=OLD, not_before=30)
        await log.mark_done(done, 40)
        before = await log.list(None, 10)
        await log.close()
        log = await self.open()
        try:
            assert list(await log.list(None, 10)) == list(before)
            assert isinstance(claim, Claimed)
            assert list(await log.list(None, 10, uploads=True)) == [claim.entry]
            assert await log.claim(done, ME, old=None, not_before=50) == Committed()
            assert await log.claim(begun, ME, old=OLD, not_before=50) == Claimed(
                replace(claim.entry, epoch=2, not_before=50)
            )
        finally:
            await log.close()

    async def test_every_change_of_an_upload_is_seen_at_once_elsewhere(self, log: ChangeLog, second: ChangeLog) -> None:
        """What one instance does to an upload is what the next call of another one starts from."""
        for number in range(8):
            here, there = (log, second) if number % 2 else (second, log)
            begun = revision("seen", 1_000 + number)
            await here.begin_upload(begun, b"wanted", 0)
            claim = await there.claim(begun, ME, old=None, not_before=0)
            assert isinstance(claim, Claimed)
            taken = await here.condemn(claim.entry, 5)
            assert taken is not None
            assert await there.claim(begun, ME, old=None, not_before=0) == Condemned(swept=False)
            assert await here.resume_later(taken, 6)
            assert await there.claim(begun, ME, old=None, not_before=0) == Condemned(swept=True)
            await here.mark_done(begun, 7)
            assert await there.claim(begun, ME, old=None, not_before=0) == Committed()
            [done] = await there.find(begun)
            assert await here.forget_settled(done)
            assert await there.claim(begun, ME, old=None, not_before=0) == Unknown()
            assert await here.backlog() == Backlog(entries=0, oldest=None, uploads=0, outcomes=0)


async def listed(log: ChangeLog, limit: int, *, uploads: bool = False) -> list[Entry]:
    """A whole listing, in pages of ``limit``."""
    entries: list[Entry] = []
    while page := await log.list(entries[-1] if entries else None, limit, uploads=uploads):
        assert len(page) <= limit
        entries += page
    return entries


async def raced(turn: int, one: Coroutine[Any, Any, A], other: Coroutine[Any, Any, B]) -> tuple[A, B]:
    """Run two calls at the same time; who starts first changes with each ``turn``."""
    if turn % 2:
        theirs, ours = await asyncio.gather(other, one)
        return ours, theirs
    ours, theirs = await asyncio.gather(one, other)
    return ours, theirs
