"""What calls are given and answer, as dictionaries and lists, whose leaves are plain values and what gets a name."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final
from uuid import UUID

from tierstore.backends.high_volume.contract import (
    FoundRow,
    Gone,
    Inline,
    InlineHead,
    Row,
    RowHead,
    Tombstone,
    TombstoneRow,
)
from tierstore.backends.long_term.contract import BlobInfo
from tierstore.changelog.entries import Backlog, Claimed, Committed, Condemned, Entry, Unknown
from tierstore.clock import UnixMicros
from tierstore.testing.traces import Delivered, Taken
from tierstore.types.ids import ObjectId, Revision
from tierstore.types.multipart import Part, PartsPage, UploadId
from tierstore.types.ranges import Span

INSTANTS: Final = frozenset(
    {"expires", "if_expired_by", "not_after", "by", "before", "not_before", "lease_until", "now"},
)
"""Arguments that are instants."""
ENTRY_NOT_BEFORE: Final = 7
"""Where the list that an entry is written as has its ``not_before``."""


class Sort(Enum):
    """What kind of thing a store draws. The value is the first letter of its names."""

    VERSION = "v"
    FENCE = "f"
    ETAG = "e"
    UPLOAD = "i"


@dataclass(frozen=True, slots=True)
class Drawn:
    """Something that a store has drawn."""

    sort: Sort
    scope: Any
    """Within what its value tells it from others."""
    value: bytes | str


@dataclass(frozen=True, slots=True)
class Instant:
    """A moment."""

    micros: UnixMicros


@dataclass(frozen=True, slots=True)
class Octets:
    """Bytes that are kept as they are given."""

    octets: bytes


def leaves(shape: Any) -> Iterator[Any]:
    """The leaves of a shape, from left to right."""
    if isinstance(shape, dict):
        for value in shape.values():
            yield from leaves(value)
    elif isinstance(shape, list):
        for value in shape:
            yield from leaves(value)
    else:
        yield shape


def shape_of_arguments(call: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a call was given; without what is None."""
    store = call.partition(".")[0]
    given = {name: value for name, value in arguments.items() if value is not None}
    return {name: _shape_of_argument(store, name, value, arguments) for name, value in given.items()}


def _shape_of_argument(store: str, name: str, value: Any, arguments: Mapping[str, Any]) -> Any:
    if name in INSTANTS:
        return Instant(value)
    match store, name, value:
        case "high_volume", "expected" | "version", bytes():
            return _version(value)
        case _, _, bytes():
            return Octets(value)
        case _, "parts", _:
            revision = arguments["upload"].revision
            return [[part.number, _etag(revision, part.number, part.etag)] for part in value]
        case _:
            return _shape(value, arguments.get("object_id"))


def shape_of_answer(call: str, arguments: Mapping[str, Any], answer: Any) -> Any:
    """What a call returned."""
    match answer:
        case bytes():
            return _version(answer)
        case str() if call == "long_term.initiate":
            return Drawn(Sort.UPLOAD, arguments["revision"], answer)
        case Part() | PartsPage():
            return _shape(answer, arguments["upload"].revision)
        case _:
            return _shape(answer, arguments.get("object_id"))


def shape_of_info(info: BlobInfo) -> Any:
    """What is compared of what a store knows of a blob."""
    return {"revision": info.revision, "size": info.size}


def _shape(value: Any, scope: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_shape(one, scope) for one in value]
    for sort, shape in _SHAPES.items():
        if isinstance(value, sort):
            return shape(value, scope)
    raise TypeError(f"no store takes or returns this: {value!r}")


def _version(value: bytes) -> Drawn:
    return Drawn(Sort.VERSION, None, value)


def _etag(revision: Revision, number: int, value: str) -> Drawn:
    return Drawn(Sort.ETAG, (revision, number), value)


def _shape_of_row(row: Row | TombstoneRow | RowHead, scope: ObjectId | None) -> dict[str, Any]:
    until = None if row.expires is None else Instant(row.expires)
    shape = {"version": _version(row.version), "content": _shape(row.content, None), "expires": until}
    return shape | {"fenced": Drawn(Sort.FENCE, scope, row.fenced)} if isinstance(row, RowHead) else shape


def _shape_of_entry(entry: Entry, _: Any) -> list[Any]:
    upload = None if entry.upload is None else Octets(entry.upload)
    times = [Instant(entry.recorded), Instant(entry.not_before)]
    hands = [entry.role.value, entry.state.value, entry.epoch, entry.sweeps]
    return [entry.revision, entry.owner, *hands, *times, upload]


def _shape_of_backlog(backlog: Backlog, _: Any) -> dict[str, Any]:
    since = None if backlog.oldest is None else Instant(backlog.oldest)
    counts = {"uploads": backlog.uploads, "outcomes": backlog.outcomes}
    return {"entries": backlog.entries, "oldest": since, **counts}


def _shape_of_part(part: Part, revision: Revision) -> dict[str, Any]:
    return {"number": part.number, "etag": _etag(revision, part.number, part.etag), "size": part.size}


def _shape_of_source(source: Taken, _: Any) -> dict[str, Any]:
    return {"yields": Octets(bytes(source.taken)), "ends": end_of(source)}


def end_of(source: Taken) -> str:
    """How a source ended: ``whole``, ``left`` because nobody asked for more, or the kind of error it failed with."""
    if source.error is not None:
        return type(source.error).__name__
    return "whole" if source.ended else "left"


def _itself(value: Any, _: Any) -> Any:
    return value


_SHAPES: Mapping[type[Any], Callable[[Any, Any], Any]] = {
    **dict.fromkeys((type(None), bool, int, str, UUID, ObjectId, Revision), _itself),
    UploadId: lambda upload, _: [upload.revision, Drawn(Sort.UPLOAD, upload.revision, upload.store_id)],
    Span: lambda span, _: [span.start, span.stop],
    Inline: lambda content, _: {"inline": Octets(content.metadata), "payload": Octets(content.payload)},
    InlineHead: lambda content, _: {"inline": Octets(content.metadata)},
    Tombstone: lambda content, _: {"tombstone": Octets(content.metadata), "revision": content.revision},
    Gone: lambda _, __: "gone",
    **dict.fromkeys((Row, TombstoneRow, RowHead), _shape_of_row),
    FoundRow: lambda found, _: {"object": found.object_id, **_shape(found.row, found.object_id)},
    Entry: _shape_of_entry,
    Backlog: _shape_of_backlog,
    Claimed: lambda claim, _: {"claimed": _shape(claim.entry, None)},
    Committed: lambda _, __: "committed",
    Unknown: lambda _, __: "unknown",
    Condemned: lambda claim, _: {"condemned": claim.swept},
    BlobInfo: lambda info, _: shape_of_info(info),
    Part: _shape_of_part,
    PartsPage: lambda page, scope: {"parts": _shape(page.parts, scope), "truncated": page.truncated},
    Taken: _shape_of_source,
    Delivered: lambda stream, _: {
        "size": stream.size, "yields": Octets(bytes(stream.delivered)), "whole": stream.ended,
    },
}  # fmt: skip


def shown(shape: Any) -> str:
    """A shape for people."""
    match shape:
        case dict():
            return "{" + ", ".join(f"{key}: {shown(value)}" for key, value in shape.items()) + "}"
        case list():
            return "[" + ", ".join(map(shown, shape)) + "]"
        case Drawn(sort, _, value):
            return f"{sort.name.lower()} {value!r}"
        case Revision():
            return shape.storage_path
        case _:
            return str(shape)
