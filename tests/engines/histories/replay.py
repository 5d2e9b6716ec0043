"""Make the calls of a history again, at another store, and compare what it answers.

The clock that the store was given is set to the moment of each call. The history begins an hour from now: a store that
also looks at a clock of its own then finds every instant ahead of it, and decides by the one that it was given.

Guarantees: every answer is compared, in all that it says, but for the `Freedom` that a contract gives; what one answer
has drawn, later ones must agree with. Does not: judge calls at the same time, faults, or damage; that is for the laws.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from hashlib import md5
from itertools import groupby
from typing import Any, Final
from uuid import UUID

from tests.engines.histories.freedoms import Freedom
from tests.engines.histories.notation import Call, History, named_uuid
from tests.engines.histories.reading import Different, Reader
from tests.engines.histories.shapes import (
    ENTRY_NOT_BEFORE,
    Drawn,
    Instant,
    Sort,
    leaves,
    shape_of_answer,
    shape_of_info,
)
from tests.engines.histories.sources import Source
from tierstore.backends.high_volume.contract import HighVolumeBackend
from tierstore.backends.long_term.contract import BlobInfo, BlobStream, LongTermBackend
from tierstore.changelog.contract import ChangeLog
from tierstore.clock import MICROS_PER_SECOND, UnixMicros
from tierstore.errors import TierstoreError
from tierstore.testing.clock import ManualClock
from tierstore.types.ids import ObjectId

AHEAD_SECONDS: Final = 3600
"""How far from now a history begins."""
_BEFORE_MAX = 12
"""How many calls about the same are shown of those before a disagreement."""
_PAGES_MAX = 10_000
_SHOWN_BYTES_MAX = 500

Backend = HighVolumeBackend | LongTermBackend | ChangeLog
Opened = AbstractAsyncContextManager[Backend]
Open = Callable[[History, ManualClock], Opened]
"""Opens an empty store for a history, and closes it."""


@dataclass(frozen=True, slots=True)
class Store:
    """A store that histories are replayed at."""

    contract: str
    open: Open
    strictly: bool = False
    """Whether nothing but names may differ."""
    removes_inline: bool = False
    """Whether it removes expired inline rows by itself."""
    part_bytes_min: int = 0
    """What its engine asks of each part but the last, whatever the limits say."""


class Disagreement(AssertionError):
    """A store has answered what no freedom allows."""


@dataclass(slots=True)
class Report:
    """What a replay did."""

    compared: int = 0
    freedoms: Counter[Freedom] = field(default_factory=Counter)
    """Where an answer was not literally the same, and how often."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Calls that were not made, by method: those that complete an upload with parts that are too small for the engine,
    and all later ones about its blob."""


def beginning(now: UnixMicros) -> UnixMicros:
    """When a history begins that is replayed ``now``."""
    return now + AHEAD_SECONDS * MICROS_PER_SECOND


async def replay(history: History, store: Store, backend: Backend, clock: ManualClock, began: UnixMicros) -> Report:
    """Make the calls of ``history`` to ``store`` at ``backend``, which is empty. Raises `Disagreement`."""
    return await _Replay(history, store, backend, clock, began).run()


@dataclass(slots=True)
class _Upload:
    """What a history has shown of an upload."""

    in_progress: bool = True
    certain: bool = True
    sizes: dict[int, int] = field(default_factory=dict)
    """Bytes of its parts."""
    completed_with: Any = None


class _Replay:
    def __init__(self, history: History, store: Store, backend: Backend, clock: ManualClock, began: UnixMicros) -> None:
        self._history = history
        self._store = store
        self._backend = backend
        self._clock = clock
        self._not_made: set[str] = set()
        """Revisions whose blobs the engine does not make."""
        self._reader = Reader(history, began)
        self._uploads: dict[str, dict[str, _Upload]] = {}
        """By revision and id."""
        self._report = Report()
        self._done: list[Call] = []

    async def run(self) -> Report:
        for call in self._history.calls:
            if call.store != self._store.contract:
                continue
            if self._is_left_out(call):
                self._report.left_out[call.name] += 1
                continue
            self._clock.set_now(self._reader.instant(call.at))
            await self._make(call)
            self._note(call)
            self._done.append(call)
            self._report.compared += 1
        return self._report

    def _is_left_out(self, call: Call) -> bool:
        match call.given:
            case {"upload": [str(revision), _]} | {"upload": str(revision)} | {"revision": str(revision)}:
                if revision in self._not_made:
                    return True
            case _:
                return False
        if call.name != "long_term.complete" or call.error is not None or not self._upload(call).in_progress:
            return False
        sizes = [self._upload(call).sizes[number] for number, _ in call.given["parts"]]
        if all(size >= self._store.part_bytes_min for size in sizes[:-1]):
            return False
        self._not_made.add(revision)
        return True

    async def _make(self, call: Call) -> None:
        try:
            arguments = self._reader.arguments(call)
        except KeyError as missing:
            raise self._disagreement(call, f"the store has never shown {missing}") from missing
        try:
            answer = await self._ask(call, arguments)
        except TierstoreError as error:
            if not self._may_fail(call, type(error).__name__):
                raise self._disagreement(call, repr(error)) from error
            return
        except Exception as error:
            raise self._disagreement(call, f"unexpected: {error!r}") from error
        try:
            await self._compare(call, arguments, answer)
        except Different as different:
            raise self._disagreement(call, str(different)) from None

    async def _ask(self, call: Call, arguments: dict[str, Any]) -> Any:
        method = getattr(self._backend, call.name.partition(".")[2])
        if call.name == "long_term.list":
            return await _drained(method, **arguments)
        if "source" in arguments:
            source = Source(arguments.pop("source"), arguments.get("size"))
            if arguments.get("md5") is not None and source.made_up:
                arguments["md5"] = md5(source.octets, usedforsecurity=False).digest()
            arguments["source"] = source
        return await method(**{**_WITHOUT.get(call.name, {}), **arguments})

    # Comparing

    async def _compare(self, call: Call, arguments: Mapping[str, Any], answer: Any) -> None:
        if call.name in {"long_term.complete", "long_term.abort"}:
            self._compare_ending(call)
            return
        if call.error is not None:
            raise Different(f"no error, but {answer!r}")
        match call.name, answer:
            case "long_term.get", BlobStream():
                await self._compare_stream(call.answer, answer)
            case "long_term.remove_debris", int():
                self._free(Freedom.DEBRIS, call.answer == answer)
            case "long_term.upload_part" | "long_term.list_parts", _:
                if self._upload(call).certain:
                    shape = shape_of_answer(call.name, arguments, answer)
                    self._unify(call.answer, shape, anew=call.name == "long_term.upload_part")
            case "long_term.list", list():
                recorded = [one for one in call.answer if one["revision"] not in self._not_made]
                self._unify(recorded, list(map(shape_of_info, answer)))
            case "high_volume.expired", _:
                await self._compare_expired(call, shape_of_answer(call.name, arguments, answer))
            case "changelog.due", _:
                found = shape_of_answer(call.name, arguments, answer)
                full = len(call.answer) == call.given["limit"]
                at = ENTRY_NOT_BEFORE
                self._compare_in_order(call.answer, found, at, _of_entry, Freedom.TIES_OF_ENTRIES, full=full)
            case _:
                self._unify(call.answer, shape_of_answer(call.name, arguments, answer))

    async def _compare_stream(self, recorded: Any, stream: BlobStream) -> None:
        if recorded is None:
            raise Different("there is a blob")
        delivered = bytearray()
        try:
            async for chunk in stream:
                if not chunk:
                    raise Different("an empty chunk")
                delivered += chunk
        finally:
            await stream.aclose()
        wanted = self._reader.octets(recorded["yields"])
        whole = self._reader.is_octets(recorded["yields"], bytes(delivered))
        if stream.size != recorded["size"] or not whole:
            shown_max = _SHOWN_BYTES_MAX
            raise Different(f"of a blob of {stream.size} bytes {bytes(delivered[:shown_max])!r}, not {wanted!r}")

    async def _compare_expired(self, call: Call, found: list[Any]) -> None:
        recorded, full = list(call.answer), len(call.answer) == call.given["limit"]
        if self._store.removes_inline:
            await self._learn(recorded, found)
            if full:  # then those that it does not list make room for others
                self._free(Freedom.INLINE_ROWS_UNLISTED, same=False)
                return
            listed = {self._key(row["object"]) for row in found}
            inline = [row for row in recorded if "inline" in row["content"]]
            unlisted = [row for row in inline if self._key(row["object"]) not in listed]
            self._free(Freedom.INLINE_ROWS_UNLISTED, not unlisted)
            recorded = [row for row in recorded if row not in unlisted]
        else:
            await self._learn(recorded, found)
        self._compare_in_order(recorded, found, "expires", self._of_row, Freedom.TIES_OF_ROWS, full=full)

    async def _learn(self, recorded: Sequence[Any], found: Sequence[Any]) -> None:
        """Look at rows that should have been found, so that what their versions are is known for later calls."""
        listed = {self._key(row["object"]) for row in found}
        for row in recorded:
            object_id = self._reader.object_id(row["object"])
            if self._key(object_id) in listed:
                continue
            assert isinstance(self._backend, HighVolumeBackend)
            head = await self._backend.head(object_id)
            shape = shape_of_answer("high_volume.head", {"object_id": object_id}, head)
            self._unify({key: value for key, value in row.items() if key != "object"}, shape)

    def _compare_in_order(
        self,
        recorded: Sequence[Any],
        found: Sequence[Any],
        by: int | str,
        key: Callable[[Any], Any],
        freedom: Freedom,
        *,
        full: bool,
    ) -> None:
        """Compare lists that are sorted by an instant, in which what has the same instant has no order."""
        instants = [self._instant(one[by]) for one in found]
        self._unify([one[by] for one in recorded], list(map(Instant, instants)))
        at = 0
        for _, group in groupby(recorded, key=lambda one: one[by]):
            wanted = list(group)
            those = list(found[at : at + len(wanted)])
            at += len(wanted)
            if not self._store.strictly:
                ordered = sorted(those, key=key)
                wanted_order = sorted(wanted, key=key)
                self._free(freedom, [key(one) for one in those] == [key(one) for one in wanted])
                if full and at == len(recorded) and list(map(key, ordered)) != list(map(key, wanted_order)):
                    continue
                those, wanted = ordered, wanted_order
            self._unify(wanted, those)

    def _of_row(self, row: Any) -> str:
        return self._key(row["object"])

    def _key(self, object_id: str | ObjectId) -> str:
        found = self._reader.object_id(object_id) if isinstance(object_id, str) else object_id
        return found.storage_path

    def _instant(self, shape: Any) -> UnixMicros:
        assert isinstance(shape, Instant)
        return shape.micros

    def _unify(self, recorded: Any, shape: Any, *, anew: bool = False) -> None:
        self._reader.compare(recorded, shape, anew=anew)
        for leaf in leaves(shape):
            if isinstance(leaf, Drawn):
                self._report.freedoms[_OF_DRAWN[leaf.sort]] += 1

    def _free(self, freedom: Freedom, same: bool) -> None:
        """Note that an answer was another, and that this is allowed. Raises `Different` where nothing is."""
        if same:
            return
        if self._store.strictly:
            raise Different(freedom.name)
        self._report.freedoms[freedom] += 1

    # Uploads

    def _upload(self, call: Call) -> _Upload:
        revision, store_id = call.given["upload"]
        return self._uploads.get(revision, {}).get(store_id, _Upload(in_progress=False))

    def _may_fail(self, call: Call, error: str) -> bool:
        """Whether the call may fail in this way."""
        if error == call.error:
            return True
        if (
            self._store.strictly
            or self._store.contract != "long_term"
            or not isinstance(call.given.get("upload"), list)
        ):
            return False
        freedom = self._freedom_to_fail(call, error, self._upload(call))
        if freedom is not None:
            self._report.freedoms[freedom] += 1
        return freedom is not None

    def _freedom_to_fail(self, call: Call, error: str, upload: _Upload) -> Freedom | None:
        if not upload.certain:
            return Freedom.DELETE_ABORTS if error == "NoSuchUpload" else None
        if call.name not in {"long_term.complete", "long_term.abort"} or upload.in_progress:
            return None
        if error == "NoSuchUpload":
            return Freedom.REPEATS
        others = upload.completed_with not in (None, call.given.get("parts"))
        tells = call.name == "long_term.complete" and others and error in {"InvalidPart", "InvalidPartOrder"}
        return Freedom.OTHER_PARTS if tells else None

    def _compare_ending(self, call: Call) -> None:
        """After a success of a `complete` or `abort`."""
        if call.error is None:
            return
        if isinstance(call.given["upload"], list):
            upload = self._upload(call)
            if not upload.certain:
                self._free(Freedom.DELETE_ABORTS, same=False)
                return
            if not upload.in_progress:
                self._free(Freedom.REPEATS, same=False)
                return
        raise Different("success")

    def _note(self, call: Call) -> None:
        """Remember what has become of an upload."""
        if call.error is not None:
            return
        match call.name, call.given:
            case "long_term.initiate", {"revision": revision}:
                self._uploads.setdefault(revision, {})[call.answer] = _Upload()
            case "long_term.upload_part", {"number": number}:
                self._upload(call).sizes[number] = call.answer["size"]
            case "long_term.complete", {"parts": parts} if (upload := self._upload(call)).in_progress:
                upload.in_progress = False
                upload.completed_with = parts
            case "long_term.abort", {"upload": [_, _]}:
                self._upload(call).in_progress = False
            case "long_term.abort", {"upload": revision}:
                for upload in self._uploads.get(revision, {}).values():
                    upload.in_progress = False
            case "long_term.delete", {"revision": revision}:
                for upload in self._uploads.get(revision, {}).values():
                    upload.certain = upload.certain and not upload.in_progress
            case _:
                return

    # Telling

    def _disagreement(self, call: Call, found: str) -> Disagreement:
        about = set(_subjects(call))
        before = [one for one in self._done if about & set(_subjects(one))][-_BEFORE_MAX:]
        wanted = f"{call.error}" if call.error is not None else f"{call.answer}"
        told = [f"{one.at} {one.name} {one.given} -> {one.error or one.answer}" for one in before]
        number = len(self._done)
        return Disagreement(
            "\n".join(
                [
                    f"{self._history.name}, call {number} of those to {self._store.contract}, made by {call.by}:",
                    f"{call.at} {call.name} {call.given}",
                    f"recorded: {wanted}",
                    f"found:    {found}",
                    "before it, about the same:",
                    *told,
                ]
            )
        )


_OF_DRAWN = {
    Sort.VERSION: Freedom.VERSIONS,
    Sort.FENCE: Freedom.FENCES,
    Sort.ETAG: Freedom.ETAGS,
    Sort.UPLOAD: Freedom.UPLOAD_IDS,
}

_WITHOUT: Mapping[str, Mapping[str, Any]] = {
    "high_volume.put_inline": {"expires": None},
    "high_volume.compare_and_write": {"expected": None, "expires": None},
    "high_volume.point": {"base": None, "expires": None},
    "high_volume.scan": {"after": None},
    "long_term.put": {"size": None},
    "long_term.upload_part": {"size": None, "md5": None},
    "changelog.record": {"new": None, "old": None},
    "changelog.record_again": {"new": None, "old": None},
    "changelog.claim": {"old": None},
    "changelog.list": {"after": None},
}
"""Arguments that a history leaves out where they are None."""


def _of_entry(entry: Any) -> str:
    """By what entries with the same instant are sorted, be they recorded or found."""
    revision, owner, *_ = entry
    if isinstance(owner, UUID):
        return f"{revision.uuid} {owner}"
    return f"{named_uuid(revision.rpartition('/')[2])} {named_uuid(owner)}"


def _subjects(call: Call) -> list[str]:
    """What a call is about."""
    given = call.given
    found = [given[name] for name in ("object_id", "revision", "owner", "new", "old") if name in given]
    match given:
        case {"upload": [str(revision), _]} | {"entry": [str(revision), *_]}:
            found.append(revision)
        case _:
            pass
    return [one for one in found if isinstance(one, str)]


async def _drained(method: Callable[..., Any], *, prefix: str, limit: int) -> list[BlobInfo]:
    """All that a listing of blobs has, page after page, in the order of the storage paths."""
    found: list[BlobInfo] = []
    for _ in range(_PAGES_MAX):
        page = await method(prefix, found[-1].revision if found else None, limit)
        if not page:
            break
        found += page
    return sorted(found, key=lambda one: one.revision.storage_path)
