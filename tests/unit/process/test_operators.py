"""What operators' commands do, on the real embedded stores with a clock of the test's own."""

import asyncio
import os
import pwd
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import structlog
from hypothesis import given

from tests.unit.test_build import config_of
from tests.unit.types.strategies import object_ids
from tierstore import audit
from tierstore.backends.high_volume.contract import Gone, Inline
from tierstore.build import Tools, build_tiering, open_stores
from tierstore.changelog.entries import State
from tierstore.clock import MICROS_PER_SECOND
from tierstore.errors import InvalidRequest, NoSuchUpload, Unavailable
from tierstore.idsource import SystemIds
from tierstore.limits import Limits
from tierstore.process import operators
from tierstore.process.operators import OPERATED, EntryReport, UploadReport
from tierstore.tasks import TaskOwner
from tierstore.testing.clock import ManualClock
from tierstore.testing.faults import FailBefore, FaultScript, FaultyChangeLog, FaultyLongTerm
from tierstore.testing.laws.long_term import Source
from tierstore.types.ids import ObjectId, Revision, Scope
from tierstore.types.metadata import Metadata
from tierstore.types.multipart import PartName, UploadId
from tierstore.types.resumable import Progress, SessionId

LIMITS = replace(Limits.tiny(), key_bytes_max=256)
FILM = ObjectId("media", (Scope("org", "1"),), "a film")
OWNER = UUID(int=9)


@dataclass
class Bench:
    """Tools over stores that fail as scripted."""

    tools: Tools
    clock: ManualClock
    script: FaultScript
    cleanup: TaskOwner
    shown: list[UploadReport | EntryReport] = field(default_factory=list)

    async def begin(self, *parts: bytes, key: str = "a film") -> tuple[UploadId, Sequence[PartName]]:
        """An upload with ``parts``."""
        upload = await self.tools.uploads.initiate(replace(FILM, key=key), Metadata())
        named = []
        for number, part in enumerate(parts, start=1):
            stored = await self.tools.stores.long_term.upload_part(upload, number, Source([part]), len(part), None)
            named.append(PartName(number, stored.etag))
        return upload, named

    async def complete(self, upload: UploadId, parts: Sequence[PartName]) -> None:
        """Complete an upload, and let what follows be done."""
        await self.tools.uploads.complete(upload, parts)
        assert await self.cleanup.drain(5) == 0

    async def blob(self, number: int) -> Revision:
        """A blob that a large write has left, with its entry."""
        revision = Revision(FILM, UUID(int=number))
        owner = UUID(int=number + 1000)
        not_before = self.clock.now() + MICROS_PER_SECOND
        await self.tools.stores.changelog.record(owner, new=revision, old=None, not_before=not_before)
        await self.tools.stores.long_term.put(revision, Source([b"blob"]), None)
        return revision

    async def uploads(self, limit: int = 100, *, ended: bool = False) -> Sequence[UploadReport]:
        """What a list of uploads shows."""
        self.shown.clear()
        await operators.list_uploads(self.tools, limit, self.shown.append, ended=ended)
        return [report for report in self.shown if isinstance(report, UploadReport)]

    async def entries(self, limit: int = 100, states: Collection[State] = tuple(State)) -> Sequence[EntryReport]:
        """What a list of entries in ``states`` shows."""
        self.shown.clear()
        await operators.list_entries(self.tools, limit, self.shown.append, states)
        return [report for report in self.shown if isinstance(report, EntryReport)]

    async def settled(self, revision: Revision) -> list[str]:
        """What settling a revision says."""
        return [outcome.text for outcome in await operators.settle(self.tools, revision)]


@asynccontextmanager
async def bench(path: Path, limits: Limits = LIMITS) -> AsyncIterator[Bench]:
    """Tools as `tierstore.build.open_tools` makes them, with a clock and faults."""
    clock, ids, script, failures = ManualClock(), SystemIds(), FaultScript(), list[str]()
    async with open_stores(config_of(path), limits, clock, ids) as opened:
        stores = replace(
            opened,
            long_term=FaultyLongTerm(opened.long_term, script),
            changelog=FaultyChangeLog(opened.changelog, script),
        )
        cleanup = TaskOwner(8, lambda name, _: failures.append(name))
        tiering = build_tiering(stores, limits=limits, clock=clock, ids=ids, cleanup=cleanup)
        yield Bench(Tools(stores, tiering.settler, tiering.uploads, limits, clock), clock, script, cleanup)
        assert await cleanup.drain(5) == 0
        assert failures == []


@given(object_ids())
def test_names_are_inverse(object_id: ObjectId) -> None:
    """What a command shows of a revision is what it reads back, prints on one line, and needs no quotes for spaces."""
    revision = Revision(object_id, UUID(int=7))
    name = operators.name_of(revision)
    assert operators.revision_of(name) == revision
    assert name.isprintable()
    assert " " not in name


@pytest.mark.parametrize("name", ["", "media", f"media/objects/%ff/{UUID(int=7)}", "media/objects/k/7"])
def test_other_names_are_refused(name: str) -> None:
    """What is no revision is a mistake of the command line."""
    with pytest.raises(InvalidRequest):
        operators.revision_of(name)


async def test_an_upload_in_progress_is_listed(tmp_path: Path) -> None:
    """With its age, all its parts (over several pages of them), how often it was claimed, and the time it has left."""
    async with bench(tmp_path) as on:
        upload, _ = await on.begin(*[b"part"] * 7)
        await on.tools.stores.changelog.claim(upload.revision, OWNER, old=None, not_before=0)
        on.clock.advance(600)
        (report,) = await on.uploads()
        fields = report.fields()
        assert (fields["usecase"], fields["scopes"], fields["key"]) == ("media", [["org", "1"]], "a film")
        assert (fields["parts"], fields["bytes"], fields["stored"]) == (7, 28, "parts")
        assert (fields["age_seconds"], fields["claims"], fields["state"]) == (600, 1, "open")
        name, line = report.text().splitlines()
        assert name == f"media/org.1/objects/a%20film/{upload.revision.uuid}" == fields["revision"]
        assert line == (
            "    begun 10m ago, 7 parts, 28 B, claimed 1 time to be completed; "
            "an upload in progress: aborted in 50m, unless it is completed before"
        )


async def test_a_resumable_upload_is_listed(tmp_path: Path) -> None:
    """As one, with how far it has come; its token leads to it, and it has no upload id. A damaged one hides nothing."""
    async with bench(tmp_path) as on:
        progress = Progress(100).with_number_given().with_part(1, 40)
        upload = await on.tools.uploads.initiate(FILM, Metadata(), progress)
        (report,) = await on.uploads()
        fields = report.fields()
        assert (fields["offset"], fields["length"]) == (40, 100)
        assert (fields["session"], fields["upload_id"]) == (SessionId(upload).encode(), None)
        assert "begun 0s ago, resumable, 40 B of 100 B, 0 parts, 0 B" in report.text()
        [entry] = await on.tools.stores.changelog.find(upload.revision)
        held = entry.upload or b""
        assert await on.tools.stores.changelog.advance(upload.revision, held, held[:-1] + b"?", 0)
        (report,) = await on.uploads()
        assert (report.fields()["offset"], report.fields()["session"]) == (None, fields["session"])
        plain, _ = await on.begin(b"part")
        (other,) = [each for each in await on.uploads() if each.entry.revision == plain.revision]
        assert other.fields()["session"] is None


async def test_what_an_upload_holds_is_told_apart(tmp_path: Path) -> None:
    """Assembled but not committed, nothing at all, and what a store does not tell, which hides no other upload."""
    async with bench(tmp_path) as on:
        assembled, parts = await on.begin(b"whole", key="assembled")
        await on.tools.stores.long_term.complete(assembled, parts)
        on.clock.advance(1)
        lost, _ = await on.begin(key="nothing")
        await on.tools.stores.long_term.abort(lost)
        on.clock.advance(1)
        await on.begin(b"part", key="away")
        on.clock.advance(1)
        await on.begin(b"part", key="fine")
        on.script.at("long_term.list_parts", None, None, FailBefore(Unavailable("the disk is away")))
        reports = await on.uploads()
        assert [report.held.state for report in reports] == ["blob", "nothing", "unknown", "parts"]
        texts = [report.text() for report in reports]
        assert "blob of 5 B" in texts[0]
        assert "nothing is stored" in texts[1]
        assert "what is stored of it is unknown: the disk is away" in texts[2]
        assert [report.fields()["bytes"] for report in reports] == [5, None, None, 4]


async def test_lists_are_paged_and_bounded(tmp_path: Path) -> None:
    """Every item comes once and in order over many pages; no more than the limit; whether there are more is told."""
    async with bench(tmp_path) as on:
        begun = [(await on.begin(key=f"k{number}"))[0].revision for number in range(2 * LIMITS.sweep_batch + 1)]
        assert [report.entry.revision for report in await on.uploads()] == sorted(begun, key=lambda each: each.uuid)
        assert len(await on.uploads(3)) == 3
        assert await operators.list_uploads(on.tools, 3, on.shown.append)
        assert not await operators.list_uploads(on.tools, len(begun), on.shown.append)
        blob = await on.blob(1)
        assert len(await on.uploads()) == len(begun), "other entries are no uploads"
        assert {report.entry.revision for report in await on.entries()} == {*begun, blob}


async def test_uploads_that_have_ended_are_hidden(tmp_path: Path) -> None:
    """Uploads that were aborted, over any number of pages, are listed only when asked for; the others are."""
    async with bench(tmp_path) as on:
        for number in range(2 * LIMITS.sweep_batch + 1):
            aborted, _ = await on.begin(b"part", key=f"aborted{number}")
            assert not (await operators.abort(on.tools, aborted.revision)).failed
        being_settled, _ = await on.begin(b"part", key="being settled")
        (own,) = await on.tools.stores.changelog.find(being_settled.revision)
        await on.tools.stores.changelog.condemn(own, on.clock.now() + MICROS_PER_SECOND)
        on.clock.advance(1)
        upload, parts = await on.begin(b"part")
        assert [report.entry.revision for report in await on.uploads()] == [being_settled.revision, upload.revision]
        assert not await operators.list_uploads(on.tools, 2, on.shown.append)
        assert await operators.list_uploads(on.tools, 1, on.shown.append)
        assert len(await on.uploads(ended=True)) == 2 * LIMITS.sweep_batch + 3
        await on.complete(upload, parts)
        assert [report.entry.revision for report in await on.uploads()] == [being_settled.revision]


async def test_outcomes_are_hidden(tmp_path: Path) -> None:
    """Of the entries only those are listed whose state is asked for: as a rule not what is merely remembered."""
    async with bench(tmp_path) as on:
        for number in range(LIMITS.sweep_batch + 1):
            await on.complete(*await on.begin(b"part", key=f"done{number}"))
        on.clock.advance(1)
        blob = await on.blob(1)
        on.shown.clear()
        assert not await operators.list_entries(on.tools, 1, on.shown.append)
        assert [report.entry.revision for report in on.shown] == [blob]
        assert len(await on.entries()) == LIMITS.sweep_batch + 2
        assert {report.entry.state for report in await on.entries(states=[State.DONE])} == {State.DONE}


async def test_entries_show_what_uploads_hold(tmp_path: Path) -> None:
    """The entry of an upload shows its parts, as the list of uploads does; that of a blob the blob."""
    async with bench(tmp_path) as on:
        await on.begin(b"part", b"part")
        on.clock.advance(1)
        completed, parts = await on.begin(b"x" * 100, key="completed")
        await on.complete(completed, parts)
        in_progress, done = await on.entries()
        assert "2 parts, 8 B" in in_progress.text()
        assert (in_progress.fields()["stored"], in_progress.fields()["parts"]) == ("parts", 2)
        assert "blob of 100 B" in done.text()
        assert (done.fields()["stored"], done.fields()["parts"]) == ("blob", None)


async def test_an_upload_is_found_by_its_clients_id(tmp_path: Path) -> None:
    """A list for programs shows the id that the client holds."""
    async with bench(tmp_path) as on:
        upload, _ = await on.begin(b"part")
        (report,) = await on.uploads()
        assert report.fields()["upload_id"] == upload.encode()


async def test_reasons_follow_an_upload_through_its_life(tmp_path: Path) -> None:
    """The words change with the state: in progress, being settled, aborted, completed."""
    async with bench(tmp_path) as on:
        upload, _ = await on.begin(b"x" * 100)
        completed, its_parts = await on.begin(b"y" * 100, key="other")
        await on.complete(completed, its_parts)
        on.clock.advance(1)
        (own,) = await on.tools.stores.changelog.find(upload.revision)
        condemned = await on.tools.stores.changelog.condemn(own, on.clock.now() + MICROS_PER_SECOND)
        assert condemned is not None
        assert "a sweeper is settling it" in operators.reason(condemned, on.clock.now())
        assert (await on.uploads())[0].fields()["claims"] is None
        on.clock.advance(2)
        assert "another goes on at the next sweep" in operators.reason(condemned, on.clock.now())
        assert await on.settled(upload.revision) == [
            "deleted: no object has this blob; the entry stays for a second look"
        ]
        reasons = {report.entry.state: report.fields()["reason"] for report in await on.entries()}
        assert reasons[State.CONDEMNED].startswith("given up, and its blob was deleted")
        assert reasons[State.DONE].startswith("an upload that was completed: remembered for clients that ask again")


async def test_reasons_of_writes(tmp_path: Path) -> None:
    """A large write and the blob that it replaces have reasons of their own."""
    async with bench(tmp_path) as on:
        new = await on.blob(1)
        old = Revision(FILM, UUID(int=2))
        await on.tools.stores.changelog.record(OWNER, new=None, old=old, not_before=on.clock.now() - 1)
        by_revision = {report.entry.revision: report for report in await on.entries()}
        assert "a large write that is under way or was cut off: settled in 1s" in by_revision[new].text()
        assert "a blob that is being replaced or deleted: settled at the next sweep" in by_revision[old].text()
        assert (by_revision[new].fields()["bytes"], by_revision[old].fields()["bytes"]) == (4, None)
        assert f"owner {OWNER}" in by_revision[old].text()


async def test_abort_ends_an_upload(tmp_path: Path) -> None:
    """Its parts have gone, it can no longer be completed, and a repetition says the same."""
    async with bench(tmp_path) as on:
        upload, parts = await on.begin(b"part")
        for _ in range(2):
            outcome = await operators.abort(on.tools, upload.revision)
            assert (outcome.failed, outcome.text) == (False, "aborted; its parts have been removed")
        assert not list(tmp_path.rglob("*.parts"))
        with pytest.raises(NoSuchUpload):
            await on.complete(upload, parts)


async def test_abort_does_not_touch_an_object(tmp_path: Path) -> None:
    """A completed upload is not aborted, its object stays; nor is one that was never begun."""
    async with bench(tmp_path) as on:
        upload, parts = await on.begin(b"x" * 100)
        await on.complete(upload, parts)
        for revision in (upload.revision, Revision(FILM, SystemIds().upload_uuid())):
            assert (await operators.abort(on.tools, revision)).failed
        assert await on.tools.stores.long_term.head(upload.revision) is not None


async def test_settle_deletes_what_no_row_points_to(tmp_path: Path) -> None:
    """An open entry is settled before its time; its second look is not hurried, or its blob could be forgotten."""
    async with bench(tmp_path) as on:
        revision = await on.blob(1)
        assert await on.settled(revision) == ["deleted: no object has this blob; the entry stays for a second look"]
        assert await on.tools.stores.long_term.head(revision) is None
        await on.tools.stores.long_term.put(revision, Source([b"late"]), None)  # a writer that was still at it
        (text,) = await on.settled(revision)
        assert text.startswith("left as it is: given up, and its blob was deleted")
        on.clock.advance(LIMITS.new_entry_kept_seconds_min + 1)
        assert (await on.settled(revision))[0].startswith("deleted")
        on.clock.advance(LIMITS.sweep_second_visit_seconds + 1)
        assert await on.settled(revision) == ["forgotten: there was nothing left to settle"]
        (unknown,) = await operators.settle(on.tools, revision)
        assert (unknown.failed, unknown.text) == (True, "the change log has no entry of it")


@pytest.mark.parametrize("how", ["abort", "settle"])
async def test_what_another_has_failed_over_can_be_ended_at_once(tmp_path: Path, how: str) -> None:
    """An entry that was condemned by who has died or failed since then is settled before its lease is over."""
    async with bench(tmp_path) as on:
        upload, _ = await on.begin(b"part")
        on.script.at("long_term.abort", FailBefore(Unavailable("a moment of trouble")))
        (text,) = await on.settled(upload.revision)
        assert text == "a moment of trouble"
        if how == "settle":
            assert await on.settled(upload.revision) == [
                "deleted: no object has this blob; the entry stays for a second look"
            ]
        else:
            aborting = asyncio.create_task(operators.abort(on.tools, upload.revision))
            while not aborting.done():
                await asyncio.sleep(0.001)
                on.clock.advance(LIMITS.complete_poll_seconds)
            assert not aborting.result().failed
        (entry,) = await on.tools.stores.changelog.find(upload.revision)
        assert entry.not_before > on.clock.now()
        assert not list(tmp_path.rglob("*.parts"))
        (text,) = await on.settled(upload.revision)
        assert text.startswith("left as it is: given up, and its blob was deleted")


async def test_settle_keeps_what_a_client_may_ask_for(tmp_path: Path) -> None:
    """An outcome is remembered for as long as it should be, whatever an operator settles: a retry gets the truth."""
    async with bench(tmp_path) as on:
        upload, parts = await on.begin(b"x" * 100)
        await on.complete(upload, parts)
        (text,) = await on.settled(upload.revision)
        assert text.startswith("left as it is: an upload that was completed")
        await on.tools.stores.high_volume.put_inline(FILM, Inline(b"", b"other"), None)
        await on.complete(upload, parts)


async def test_settle_keeps_the_blob_of_an_object(tmp_path: Path) -> None:
    """An entry whose blob the row points to goes, and the blob stays."""
    async with bench(tmp_path) as on:
        upload, parts = await on.begin(b"x" * 100)
        await on.complete(upload, parts)
        not_before = on.clock.now() + MICROS_PER_SECOND
        await on.tools.stores.changelog.record(OWNER, new=None, old=upload.revision, not_before=not_before)
        assert "kept: the object has this blob; the entry was forgotten" in await on.settled(upload.revision)
        assert await on.tools.stores.long_term.head(upload.revision) is not None


async def test_settle_all_due_settles_what_is_due(tmp_path: Path) -> None:
    """Over several batches, each entry once; what is not due is left alone; a failure is counted, and hides none."""
    async with bench(tmp_path) as on:
        due = [await on.blob(number) for number in range(1, 2 * LIMITS.sweep_batch + 2)]
        on.clock.advance(2)
        later = await on.blob(100)
        outcomes: list[operators.Outcome] = []
        on.script.at("long_term.delete", FailBefore(Unavailable("the disk is away")))
        assert await operators.settle_all_due(on.tools, outcomes.append) == 1
        assert len(outcomes) == len(due)
        assert [outcome.text for outcome in outcomes if outcome.failed] == ["the disk is away"]
        left = [revision for revision in due if await on.tools.stores.long_term.head(revision) is not None]
        assert len(left) == 1
        assert await on.tools.stores.long_term.head(later) is not None
        on.clock.advance(-10)
        assert await operators.settle_all_due(on.tools, outcomes.append) == 0


async def test_settle_all_due_ends_when_nothing_moves(tmp_path: Path) -> None:
    """A log whose entries cannot be settled is gone through once, not for ever."""
    async with bench(tmp_path) as on:
        for number in range(LIMITS.sweep_batch):
            await on.blob(number)
        on.clock.advance(2)
        failures = [FailBefore(Unavailable("away"))] * LIMITS.sweep_batch
        on.script.at("changelog.condemn", *failures)
        assert await operators.settle_all_due(on.tools, lambda _: None) == LIMITS.sweep_batch


async def test_everything_about_a_revision(tmp_path: Path) -> None:
    """The row in each of its states, the blob, and the entries, without anything of the payload or the metadata."""
    async with bench(tmp_path) as on:
        upload, parts = await on.begin(b"secret" * 20)
        revision, high_volume = upload.revision, on.tools.stores.high_volume

        async def described() -> str:
            return (await operators.describe(on.tools, revision)).text()

        async def fields() -> dict[str, Any]:
            described = await operators.describe(on.tools, revision)
            assert "secret" not in str(described.fields())
            return described.fields()

        assert "row: none, there is no such object" in await described()
        begun = await fields()
        assert (begun["revision"], begun["row"]) == (operators.name_of(revision), {"content": "none"})
        assert (begun["stored"], begun["parts"], begun["bytes"], begun["problem"]) == ("parts", 1, 120, None)
        assert [(entry["upload"], entry["state"], entry["parts"]) for entry in begun["entries"]] == [(True, "open", 1)]
        assert "1 part, 120 B" in await described()
        assert "change log: its upload" in await described()
        await on.tools.stores.changelog.record(OWNER, new=revision, old=None, not_before=0)
        assert f"change log: operation {OWNER}" in await described()
        await high_volume.put_inline(FILM, Inline(b"", b"secret"), on.clock.now() + 1)
        assert "holds a small object, and points to no blob, expires 2" in await described()
        assert (await fields())["row"]["content"] == "small object"
        assert (await fields())["row"]["expires"].startswith("2")
        on.clock.advance(1)
        assert "points to no blob, expired 2" in await described()
        await on.complete(upload, parts)
        assert "row: points to this revision" in await described()
        assert (await fields())["row"] == {"content": "blob", "revision": str(revision.uuid), "expires": None}
        assert "blob of 120 B" in await described()
        other, its_parts = await on.begin(b"other" * 20)
        await on.complete(other, its_parts)
        assert f"points to another revision, {other.revision.uuid}" in await described()
        assert "secret" not in await described()
        row = await high_volume.head(FILM)
        assert row is not None
        assert await high_volume.compare_and_write(FILM, row.version, Gone(), None)
        assert "gone: deleted, or fenced by a sweeper" in await described()
        assert (await fields())["row"] == {"content": "gone"}


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (5 << 40, "5 TiB"), (1 << 60, "1.049e+06 TiB")],
)
def test_sizes_for_people(size: int, text: str) -> None:
    """A few digits, and the unit that makes them few."""
    assert operators.Held(None, size).text() == f"blob of {text}"


async def test_what_operators_change_is_audited(tmp_path: Path) -> None:
    """Each upload that is aborted and each entry that is settled has one line: who, which, and how it ended."""
    vars(audit.log).pop("bind", None)  # which may be of another configuration
    async with bench(tmp_path) as on:
        upload, _ = await on.begin(b"part")
        entry = await on.blob(1)
        with structlog.testing.capture_logs() as lines:
            await operators.abort(on.tools, upload.revision)
            await operators.abort(on.tools, replace(upload.revision, uuid=SystemIds().upload_uuid()))
            await operators.settle(on.tools, entry)
            on.script.at("changelog.find", FailBefore(Unavailable("away")))
            await operators.settle(on.tools, entry)
            silent = replace(on.tools, audit=False)
            await operators.abort(silent, upload.revision)
        found = [line for line in lines if "audit" in line]
        assert [(line["operation"], line["audit"], line["result"]) for line in found] == [
            ("abort_upload", "done", None),
            ("abort_upload", "failed", None),
            ("settle", "done", "deleted"),
        ]
        for line in found:
            assert line["user"] == pwd.getpwuid(os.geteuid()).pw_name
            assert (line["event"], line["usecase"], line["scopes"]) == (OPERATED, "media", "org=1")
        assert (found[0]["key"], found[0]["revision"]) == ("a film", str(upload.revision.uuid))
        assert found[1]["error"] == "NoSuchUpload"
