"""How histories are written down: JSON lines, the first of them the head, each of the others one call.

What a store draws (versions, fences, ETags, ids of uploads) is written as a name, given at its first appearance in an
answer: ``v3``. A value that was never in an answer stands for itself, behind ``=``. UUIDs are names too, numbered in
the order of what they stand for, so that whatever is sorted by them stays in order; their letter tells uploads (``u``)
and sessions (``s``) from all others (``r``). Object ids (``k1``) and byte strings (``b1``) are spelled out in the head.
Instants are microseconds since the beginning of the history. An entry of the change log is a list: revision, owner,
role, state, epoch, sweeps, recorded, not before, upload.
"""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from tests.engines.histories.shapes import Drawn, Instant, Octets, Sort
from tierstore.clock import UnixMicros
from tierstore.types.ids import SESSION_UUID_BIT, UPLOAD_UUID_VERSION, ObjectId, Revision

FORMAT: Final = 1
_ORDINARY_UUID_VERSION = 4
_NUMBER_AT_BIT = 96
"""Where the number of a UUID is in it: UUIDs sort by it."""
_VERSION_AT_BIT = 76
_VARIANT_AT_BIT = 62
"""RFC 9562."""


def uuid_name(number: int, uuid: UUID) -> str:
    """How the ``number``-th UUID of a history is called."""
    if uuid.version != UPLOAD_UUID_VERSION:
        return f"r{number}"
    return f"{'s' if uuid.int & SESSION_UUID_BIT else 'u'}{number}"


def named_uuid(name: str) -> UUID:
    """What stands for ``name`` in a replay."""
    number = int(name[1:])
    bits = number << _NUMBER_AT_BIT | number << 1 | (SESSION_UUID_BIT if name[0] == "s" else 0)
    return uuid_of(bits, UPLOAD_UUID_VERSION if name[0] in "us" else _ORDINARY_UUID_VERSION)


def uuid_of(bits: int, version: int) -> UUID:
    """A UUID of any version, of these bits where version and variant (RFC 9562) are not."""
    elsewhere = ~(0xF << _VERSION_AT_BIT | 0b11 << _VARIANT_AT_BIT)
    return UUID(int=bits & elsewhere | version << _VERSION_AT_BIT | 0b10 << _VARIANT_AT_BIT)


class Namer:
    """Gives names, and remembers them."""

    def __init__(self, uuids: Sequence[UUID], began: UnixMicros) -> None:
        self._uuids = {uuid: uuid_name(number, uuid) for number, uuid in enumerate(sorted(uuids), start=1)}
        self._began = began
        self.objects: dict[ObjectId, str] = {}
        self.octets: dict[bytes, str] = {}
        self._drawn: dict[Drawn, str] = {}
        self._count: dict[Sort, int] = dict.fromkeys(Sort, 0)

    def written(self, shape: Any, *, answer: bool) -> Any:
        """The shape in JSON. Only what is in an ``answer`` gives something drawn its name."""
        match shape:
            case dict():
                return {key: self.written(value, answer=answer) for key, value in shape.items()}
            case list():
                return [self.written(value, answer=answer) for value in shape]
            case Drawn():
                return self._name(shape, answer=answer)
            case _:
                return self._leaf(shape)

    def _leaf(self, leaf: Any) -> Any:
        match leaf:
            case Instant(micros):
                return micros - self._began
            case Octets(octets):
                return self.octets.setdefault(octets, f"b{len(self.octets) + 1}")
            case UUID():
                return self._uuids[leaf]
            case ObjectId():
                return self.objects.setdefault(leaf, f"k{len(self.objects) + 1}")
            case Revision(object_id, uuid):
                return f"{self._leaf(object_id)}/{self._uuids[uuid]}"
            case _:
                return leaf

    def _name(self, drawn: Drawn, *, answer: bool) -> str:
        if drawn not in self._drawn:
            if not answer:
                return literal(drawn.value)
            self._count[drawn.sort] += 1
            self._drawn[drawn] = f"{drawn.sort.value}{self._count[drawn.sort]}"
        return self._drawn[drawn]


def literal(value: bytes | str) -> str:
    """How a value that no store has drawn is written."""
    return "=" + (value if isinstance(value, str) else value.hex())


_SPELLED_OUT_BYTES_MAX = 4_096
"""What is longer is written as a repetition, or else by its digest."""


def written_octets(octets: bytes) -> str:
    """Bytes in the head: as text if that can be read."""
    if len(octets) > _SPELLED_OUT_BYTES_MAX:
        unit = octets[: (octets + octets).find(octets, 1)]
        if len(unit) == len(octets):
            return "sha256:" + sha256(octets).hexdigest()
        return f"times:{len(octets) // len(unit)}:{written_octets(unit)}"
    if octets.isascii() and octets.decode().isprintable():
        return "text:" + octets.decode()
    return "base64:" + base64.b64encode(octets).decode()


def read_octets(text: str) -> bytes:
    """The inverse of `written_octets`; of a digest, nothing."""
    kind, _, content = text.partition(":")
    match kind:
        case "text":
            return content.encode()
        case "base64":
            return base64.b64decode(content, validate=True)
        case "times":
            count, _, unit = content.partition(":")
            return read_octets(unit) * int(count)
        case _:
            return b""


def is_octets(text: str, octets: bytes) -> bool:
    """Whether ``octets`` are what was written as ``text``."""
    kind, _, content = text.partition(":")
    return sha256(octets).hexdigest() == content if kind == "sha256" else read_octets(text) == octets


# Files


@dataclass(frozen=True, slots=True)
class Call:
    """One call and its answer, in JSON."""

    at: UnixMicros
    """When, since the beginning."""
    by: str
    """Who asked: for people."""
    name: str
    """As in `tierstore.testing.traces`."""
    given: Mapping[str, Any]
    answer: Any
    error: str | None
    """The kind of error that it failed with."""

    @property
    def store(self) -> str:
        """Which contract it belongs to."""
        return self.name.partition(".")[0]


@dataclass(frozen=True, slots=True)
class History:
    """What was asked of three empty stores, in the order of the effects, and what they answered."""

    name: str
    origin: str
    """What made it: for people."""
    repeats_succeed: bool
    """Which kind of long-term store answered."""
    limits: Mapping[str, int]
    """Those of the stores' limits that answers depend on."""
    objects: Mapping[str, str]
    """The storage paths of the object ids, by name."""
    octets: Mapping[str, str]
    """Byte strings, by name."""
    calls: Sequence[Call] = field(repr=False)

    def lines(self) -> Iterator[str]:
        """The file."""
        head = {
            "format": FORMAT,
            "origin": self.origin,
            "repeats_succeed": self.repeats_succeed,
            "limits": self.limits,
            "objects": self.objects,
            "octets": self.octets,
        }
        yield _line(head)
        for call in self.calls:
            outcome = {"answer": call.answer} if call.error is None else {"error": call.error}
            yield _line({"at": call.at, "by": call.by, "call": call.name, "with": call.given, **outcome})

    @classmethod
    def read(cls, path: Path) -> "History":
        """The history in a file."""
        head, *lines = map(json.loads, path.read_text().splitlines())
        if head.pop("format") != FORMAT:
            raise ValueError(f"{path.name} is of another format than {FORMAT}")
        calls = [
            Call(line["at"], line["by"], line["call"], line["with"], line.get("answer"), line.get("error"))
            for line in lines
        ]
        return cls(name=path.stem, calls=calls, **head)


def _line(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
