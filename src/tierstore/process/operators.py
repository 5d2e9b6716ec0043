"""What operators' commands do: look at uploads and at the change log, abort, and settle at once.

Guarantees: they may run beside any number of servers, and can only make an operation that is under way fail cleanly.
They take listings page by page, so that memory is bounded however much there is; one item that cannot be looked at is
shown with the reason, and keeps nobody from the others. They show no payload and no metadata. What they change, or fail
to, has a line in the audit log, with the user.

What only time makes safe is not hurried. An outcome that is remembered stays so for as long as it should, for clients
that ask again; and an entry whose blob has been deleted is left until it is due, because a blob whose writer may still
be at it must not be forgotten. One that a sweeper has only condemned is settled: that one may have died or failed over
it, and several may be at it.
"""

import asyncio
import os
import pwd
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, assert_never
from urllib.parse import quote, unquote

from tierstore import audit
from tierstore.backends.high_volume.contract import Gone, InlineHead, RowHead, Tombstone
from tierstore.build import Tools, open_tools
from tierstore.changelog.entries import Entry, Role, State
from tierstore.clock import MICROS_PER_SECOND, UnixMicros
from tierstore.config import Config
from tierstore.errors import CorruptObject, InvalidRequest, NoSuchUpload, TierstoreError
from tierstore.limits import KIB
from tierstore.logs import configure_logs
from tierstore.tasks import for_each
from tierstore.types.durations import format_duration
from tierstore.types.ids import AS_STORED, Revision
from tierstore.types.multipart import UploadId
from tierstore.types.resumable import Progress, SessionId, decode_session, is_session
from tierstore.types.timestamps import EARLIEST, LATEST, format_timestamp

T = TypeVar("T")

OPERATED = "operator's command"
"""The event of lines of the audit log that tell of what operators did."""

Show = Callable[["UploadReport | EntryReport"], None]
"""What a listing does with each thing that it finds, as it finds it."""


def run(config: Config, work: Callable[[Tools], Awaitable[T]]) -> T:
    """Do ``work`` with the stores of ``config``, and return its result. Logs go to standard error.

    Raises `StartupError` if they cannot be opened, and what ``work`` raises.
    """
    configure_logs(config.log)

    async def with_tools() -> T:
        async with open_tools(config) as tools:
            return await work(tools)

    return asyncio.run(with_tools())


# Names


def name_of(revision: Revision) -> str:
    """How commands show a revision: its storage path, with spaces, ``%`` and what does not print percent-encoded."""
    return "".join(
        letter if letter.isprintable() and letter not in " %" else quote(letter) for letter in revision.storage_path
    )


def revision_of(name: str) -> Revision:
    """The revision that ``name`` shows. Raises `InvalidRequest`."""
    try:
        return Revision.from_storage_path(unquote(name, errors="strict"), AS_STORED)
    except UnicodeDecodeError:
        raise InvalidRequest("not a revision's storage path: what is percent-encoded in it is not UTF-8") from None


# What is held in the long-term store


@dataclass(frozen=True, slots=True)
class Held:
    """What the long-term store has of a revision."""

    parts: int | None
    """Of an upload that takes parts; None if it does not."""
    size: int | None
    """Bytes of those parts, or of the blob; None if there is neither, or nobody knows."""
    problem: str | None = None
    """Why nobody knows."""
    store_id: str = ""
    """The store's own id of an upload that takes parts."""

    @property
    def state(self) -> str:
        """``parts``, ``blob`` (whole: an upload was assembled), ``nothing`` or ``unknown``."""
        if self.problem is not None:
            return "unknown"
        if self.parts is not None:
            return "parts"
        return "nothing" if self.size is None else "blob"

    def text(self) -> str:
        """For people."""
        match self.state:
            case "unknown":
                return f"what is stored of it is unknown: {self.problem}"
            case "parts":
                return f"{self.parts} part{'' if self.parts == 1 else 's'}, {_size(self.size)}"
            case "blob":
                return f"blob of {_size(self.size)}"
            case _:
                return "nothing is stored"


async def _held_blob(tools: Tools, revision: Revision) -> Held:
    try:
        blob = await tools.stores.long_term.head(revision)
    except TierstoreError as error:
        return Held(None, None, str(error))
    return Held(None, None if blob is None else blob.size)


async def _held(tools: Tools, revision: Revision) -> Held:
    """The parts of an upload's revision, counted page by page; of any that has none, the blob."""
    if not revision.is_upload:
        return await _held_blob(tools, revision)
    upload, parts, size, last = UploadId(revision, ""), 0, 0, 0
    try:
        for _ in range(tools.limits.parts_max + 1):
            page = await tools.stores.long_term.list_parts(upload, last, tools.limits.parts_listed_max)
            upload = replace(upload, store_id=page.store_id)
            parts += len(page.parts)
            size += sum(part.size for part in page.parts)
            if not page.truncated:
                break
            last = page.parts[-1].number
    except NoSuchUpload:
        return await _held_blob(tools, revision)
    except TierstoreError as error:
        return Held(None, None, str(error))
    return Held(parts, size, store_id=upload.store_id)


# Listings


@dataclass(frozen=True, slots=True)
class UploadReport:
    """An upload that is not done, and what is stored of it."""

    entry: Entry
    held: Held
    now: UnixMicros

    def text(self) -> str:
        """For people: two lines."""
        begun = f"begun {_ago(self.entry.recorded, self.now)}"
        claims = f"claimed {self.entry.epoch} time{'' if self.entry.epoch == 1 else 's'} to be completed"
        counted = [begun, self.held.text()] + ([claims] if self.entry.state is State.OPEN else [])
        if (progress := self._progress()) is not None:
            counted.insert(1, f"resumable, {_size(progress.offset)} of {_size(progress.length)}")
        return f"{name_of(self.entry.revision)}\n    {', '.join(counted)}; {reason(self.entry, self.now)}"

    def fields(self) -> dict[str, Any]:
        """For programs. ``claims`` are not known once a sweeper has the upload. An attempt may claim several times."""
        revision, progress = self.entry.revision, self._progress()
        object_id, upload = revision.object_id, UploadId(revision, self.held.store_id)
        return {
            "revision": name_of(self.entry.revision),
            "upload_id": None if revision.is_session else upload.encode(),
            "session": SessionId(upload).encode() if revision.is_session else None,
            "offset": None if progress is None else progress.offset,
            "length": None if progress is None else progress.length,
            "usecase": object_id.usecase,
            "scopes": [[scope.name, scope.value] for scope in object_id.scopes],
            "key": object_id.key,
            "state": self.entry.state.value,
            "begun": _timestamp(self.entry.recorded),
            "age_seconds": _seconds(self.entry.recorded, self.now),
            "claims": self.entry.epoch if self.entry.state is State.OPEN else None,
            "stored": self.held.state,
            "parts": self.held.parts,
            "bytes": self.held.size,
            "problem": self.held.problem,
            "not_before": _timestamp(self.entry.not_before),
            "reason": reason(self.entry, self.now),
        }

    def _progress(self) -> Progress | None:
        """How far a resumable upload has come; None for others, and for one whose entry is damaged."""
        kept = self.entry.upload or b""
        try:
            return decode_session(kept)[0] if is_session(kept) else None
        except CorruptObject:
            return None


@dataclass(frozen=True, slots=True)
class EntryReport:
    """An entry of the change log, and the blob, or the parts of the upload, that it is about."""

    entry: Entry
    held: Held
    now: UnixMicros

    def text(self) -> str:
        """For people: three lines."""
        entry = self.entry
        counted = f"epoch {entry.epoch}, {entry.sweeps} sweep{'' if entry.sweeps == 1 else 's'}, owner {entry.owner}"
        return (
            f"{name_of(entry.revision)}\n"
            f"    {entry.role.value}, {entry.state.value}, recorded {_ago(entry.recorded, self.now)}, {counted}, "
            f"{self.held.text()}\n"
            f"    {reason(entry, self.now)}"
        )

    def fields(self) -> dict[str, Any]:
        """For programs."""
        entry = self.entry
        return {
            "revision": name_of(entry.revision),
            "owner": str(entry.owner),
            "role": entry.role.value,
            "state": entry.state.value,
            "upload": entry.owner_is_upload,
            "epoch": entry.epoch,
            "sweeps": entry.sweeps,
            "recorded": _timestamp(entry.recorded),
            "age_seconds": _seconds(entry.recorded, self.now),
            "not_before": _timestamp(entry.not_before),
            "stored": self.held.state,
            "parts": self.held.parts,
            "bytes": self.held.size,
            "problem": self.held.problem,
            "reason": reason(entry, self.now),
        }


UNSETTLED = (State.OPEN, State.CONDEMNED)
"""The states of what is under way or to be settled: all but outcomes, which are merely remembered."""


async def list_uploads(tools: Tools, limit: int, show: Show, *, ended: bool = False) -> bool:
    """Show up to ``limit`` uploads, the oldest first; return whether there are more.

    Those that can be completed or are being settled; with ``ended`` also those that have been aborted, whose entries
    wait for a second look. None that is done.
    """

    def wanted(entry: Entry) -> bool:
        return ended or entry.sweeps == 0

    return await _listed(tools, limit, _upload_report, show, wanted, uploads=True)


async def list_entries(tools: Tools, limit: int, show: Show, states: Collection[State] = UNSETTLED) -> bool:
    """Show up to ``limit`` entries of the change log in ``states``, the oldest first; return whether there are more."""

    def wanted(entry: Entry) -> bool:
        return entry.state in states

    return await _listed(tools, limit, _entry_report, show, wanted, uploads=False)


async def _listed(
    tools: Tools,
    limit: int,
    report: Callable[[Tools, Entry], Awaitable[UploadReport | EntryReport]],
    show: Show,
    wanted: Callable[[Entry], bool],
    *,
    uploads: bool,
) -> bool:
    """Show the entries that are ``wanted``; the others are read, page by page, and no store is asked about them."""
    shown = 0
    async for entry in _entries(tools, uploads=uploads):
        if not wanted(entry):
            continue
        if shown == limit:
            return True
        show(await report(tools, entry))
        shown += 1
    return False


async def _entries(tools: Tools, *, uploads: bool) -> AsyncIterator[Entry]:
    """All entries in the order in which they were recorded, or the uploads' that are not done, page by page."""
    size, last = tools.limits.sweep_batch, None
    page: Sequence[Entry] = await tools.stores.changelog.list(None, size, uploads=uploads)
    while page:
        for entry in page:
            yield entry
        last = page[-1]
        page = await tools.stores.changelog.list(last, size, uploads=uploads)


async def _upload_report(tools: Tools, entry: Entry) -> UploadReport:
    return UploadReport(entry, await _held(tools, entry.revision), tools.clock.now())


async def _entry_report(tools: Tools, entry: Entry) -> EntryReport:
    in_parts = entry.owner_is_upload and entry.state is not State.DONE
    held = await (_held if in_parts else _held_blob)(tools, entry.revision)
    return EntryReport(entry, held, tools.clock.now())


def reason(entry: Entry, now: UnixMicros) -> str:
    """Why ``entry`` is in the log, and what happens next, in words."""
    then, swept = _when(entry.not_before, now), entry.sweeps > 0
    match entry.state, entry.owner_is_upload:
        case State.DONE, _:
            return f"an upload that was completed: remembered for clients that ask again, forgotten {then}"
        case State.CONDEMNED, _ if swept:
            return f"given up, and its blob was deleted: a sweeper looks {then} whether it has stayed away"
        case State.CONDEMNED, _:
            return f"a sweeper is settling it: if that one has died, another goes on {then}"
        case State.OPEN, True:
            return f"an upload in progress: aborted {then}, unless it is completed before"
        case State.OPEN, False if entry.role is Role.NEW:
            return f"a large write that is under way or was cut off: settled {then}, unless it ends before"
        case State.OPEN, _:
            return f"a blob that is being replaced or deleted: settled {then}, unless that ends before"
        case unreachable:
            assert_never(unreachable)


# One revision


@dataclass(frozen=True, slots=True)
class RevisionReport:
    """All that is known of a revision: its entries, the object's row, the blob or the parts."""

    revision: Revision
    row: RowHead | None
    held: Held
    entries: Sequence[Entry]
    now: UnixMicros

    def text(self) -> str:
        """For people: several lines."""
        row = _row_text(self.revision, self.row, self.now)
        lines = [name_of(self.revision), f"  row: {row}", f"  long-term store: {self.held.text()}"]
        if not self.entries:
            lines.append("  change log: no entry")
        for entry in self.entries:
            lines += [
                f"  change log: {'its upload' if entry.owner_is_upload else f'operation {entry.owner}'}",
                f"    role {entry.role.value}, state {entry.state.value}, epoch {entry.epoch}, sweeps {entry.sweeps}",
                f"    recorded {_timestamp(entry.recorded)}, {_ago(entry.recorded, self.now)}",
                f"    not before {_timestamp(entry.not_before)}",
                f"    {reason(entry, self.now)}",
            ]
        return "\n".join(lines)

    def fields(self) -> dict[str, Any]:
        """For programs."""
        return {
            "revision": name_of(self.revision),
            "row": _row_fields(self.row),
            "stored": self.held.state,
            "parts": self.held.parts,
            "bytes": self.held.size,
            "problem": self.held.problem,
            "entries": [EntryReport(entry, self.held, self.now).fields() for entry in self.entries],
        }


async def describe(tools: Tools, revision: Revision) -> RevisionReport:
    """Look at everything that is known of ``revision``."""
    entries = await tools.stores.changelog.find(revision)
    row = await tools.stores.high_volume.head(revision.object_id)
    held = await _held(tools, revision)
    return RevisionReport(revision, row, held, entries, tools.clock.now())


def _row_text(revision: Revision, row: RowHead | None, now: UnixMicros) -> str:
    if row is None:
        return "none, there is no such object"
    expiry = ""
    if row.expires is not None:
        expiry = f", {'expired' if row.expires <= now else 'expires'} {_timestamp(row.expires)}"
    match row.content:
        case Gone():
            return "gone: deleted, or fenced by a sweeper"
        case InlineHead():
            return f"holds a small object, and points to no blob{expiry}"
        case Tombstone(revision=uuid) if uuid == revision.uuid:
            return f"points to this revision{expiry}"
        case Tombstone(revision=uuid):
            return f"points to another revision, {uuid}{expiry}"
        case unreachable:
            assert_never(unreachable)


def _row_fields(row: RowHead | None) -> dict[str, Any]:
    if row is None:
        return {"content": "none"}
    expires = None if row.expires is None else _timestamp(row.expires)
    match row.content:
        case Gone():
            return {"content": "gone"}
        case InlineHead():
            return {"content": "small object", "expires": expires}
        case Tombstone(revision=uuid):
            return {"content": "blob", "revision": str(uuid), "expires": expires}
        case unreachable:
            assert_never(unreachable)


# Acting


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one thing that was asked for."""

    revision: Revision
    text: str
    entry: Entry | None = None
    """The one of the revision's entries that it was about."""
    failed: bool = False
    changed: bool = True
    """Whether this has changed anything."""

    @property
    def name(self) -> str:
        """What it was about, for people."""
        name = name_of(self.revision)
        return name if self.entry is None else f"{name} ({self.entry.role.value}, owner {self.entry.owner})"

    def fields(self) -> dict[str, Any]:
        """For programs."""
        return {
            "revision": name_of(self.revision),
            "role": None if self.entry is None else self.entry.role.value,
            "owner": None if self.entry is None else str(self.entry.owner),
            "result": self.text,
            "failed": self.failed,
            "changed": self.changed,
        }


async def abort(tools: Tools, revision: Revision) -> Outcome:
    """End the upload of ``revision``, as its client could; safe to repeat."""
    try:
        await _audited(tools, "abort_upload", revision, tools.uploads.abort(UploadId(revision, "")))
    except TierstoreError as error:
        return Outcome(revision, str(error), failed=True, changed=False)
    return Outcome(revision, "aborted; its parts have been removed")


async def settle(tools: Tools, revision: Revision) -> Sequence[Outcome]:
    """Settle the entries of ``revision`` now, by the sweeper's steps; safe to repeat."""
    try:
        entries = await tools.stores.changelog.find(revision)
    except TierstoreError as error:
        return [Outcome(revision, str(error), failed=True, changed=False)]
    if not entries:
        return [Outcome(revision, "the change log has no entry of it", failed=True, changed=False)]
    return [await _settle(tools, entry) for entry in entries]


async def settle_all_due(tools: Tools, show: Callable[[Outcome], object]) -> int:
    """Settle every entry that is due when this begins; return how many could not be settled.

    Ends, as a sweeper's run does, when a whole batch makes no progress, or after ``sweep_batches_max`` batches.
    """
    now, failed = tools.clock.now(), 0

    async def settle_one(entry: Entry) -> Outcome:
        return await _settle(tools, entry)

    for _ in range(tools.limits.sweep_batches_max):
        due = await tools.stores.changelog.due(now, tools.limits.sweep_batch)
        outcomes = await for_each(due, settle_one, at_once=tools.limits.sweep_concurrency)
        for outcome in outcomes:
            show(outcome)
        failed += sum(outcome.failed for outcome in outcomes)
        if len(due) < tools.limits.sweep_batch or not any(outcome.changed for outcome in outcomes):
            break
    return failed


_SETTLED = {
    "lost": "another process was faster, and has it",
    "kept": "kept: the object has this blob; the entry was forgotten",
    "done": "kept: the upload was completed, which is remembered from now on",
    "deleted": "deleted: no object has this blob; the entry stays for a second look",
    "forgotten": "forgotten: there was nothing left to settle",
}


async def _settle(tools: Tools, entry: Entry) -> Outcome:
    revision, now = entry.revision, tools.clock.now()
    if (entry.state is State.DONE or entry.sweeps) and entry.not_before > now:
        return Outcome(revision, f"left as it is: {reason(entry, now)}", entry, changed=False)
    try:
        result = await _audited(tools, "settle", revision, tools.settler.settle(entry))
    except TierstoreError as error:
        return Outcome(revision, str(error), entry, failed=True, changed=False)
    return Outcome(revision, _SETTLED[result], entry, changed=result != "lost")


async def _audited(tools: Tools, operation: str, revision: Revision, work: Awaitable[T]) -> T:
    """Await ``work``, and write to the audit log how it ended."""
    error: BaseException | None = None
    result: T | None = None
    try:
        result = await work
        return result
    except BaseException as failed:
        error = failed
        raise
    finally:
        if tools.audit:
            object_id = revision.object_id
            fields = {} if error is None else {"error": type(error).__name__, "detail": str(error)}
            audit.log.info(
                OPERATED,
                operation=operation,
                audit=audit.outcome_of(error),
                result=result,
                user=_user(),
                usecase=object_id.usecase,
                scopes=";".join(f"{scope.name}={scope.value}" for scope in object_id.scopes) or "_",
                key=object_id.key,
                revision=str(revision.uuid),
                **fields,
            )


def _user() -> str:
    """The operating system's user, by name if it has one. Not by the environment, which says what it was told."""
    uid = os.geteuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


# Words


def _seconds(earlier: UnixMicros, later: UnixMicros) -> int:
    """Whole seconds from one instant to another, which may be before it; 0 then."""
    return max(later - earlier, 0) // MICROS_PER_SECOND


def _ago(instant: UnixMicros, now: UnixMicros) -> str:
    return f"{_roughly(_seconds(instant, now))} ago"


def _when(instant: UnixMicros, now: UnixMicros) -> str:
    return "at the next sweep" if instant <= now else f"in {_roughly(_seconds(now, instant))}"


def _roughly(seconds: int) -> str:
    """A duration in its two largest units."""
    return " ".join(format_duration(seconds).split()[:2])


def _timestamp(instant: UnixMicros) -> str:
    return format_timestamp(min(max(instant, EARLIEST), LATEST))


def _size(size: int | None) -> str:
    """Bytes for people: three digits or so, and a unit."""
    amount, unit = float(size or 0), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < KIB:
            break
        amount, unit = amount / KIB, larger
    return f"{amount:.4g} {unit}"
