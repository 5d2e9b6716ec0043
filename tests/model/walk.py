"""The walk: a recorded trace through the model of the protocol, object by object.

`walk` returns, or raises `StepNotAllowed` at the first record that the model has no step for, or of which the model
knows it otherwise. Where the trace leaves open when something happened (an assembly that was under way, a marker that
may have been removed) all possibilities are followed, until the trace tells.

It finds what the model's rules are for: a step that the implementation leaves out, adds, or takes in another order.
Not what the model does not have: clocks, payloads, metadata, deadlines.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, assert_never

from tests.model import steps
from tests.model.picture import Names, Picture, Rejected
from tierstore.backends.high_volume.contract import InlineHead, Row, RowHead, Tombstone, TombstoneRow
from tierstore.backends.long_term.contract import BlobInfo
from tierstore.changelog.entries import Claimed, Entry
from tierstore.testing.traces import Actor, Begun, Called, Completing, Ended, Kind, Record
from tierstore.types.ids import ObjectId, Revision
from tierstore.types.multipart import UploadId

_SHOWN = 25
"""Records before the one that is not allowed, which the message shows."""
_PICTURES_MAX = 64
"""More than that at once, and the walk has lost its way."""

_EVERYWHERE = frozenset(
    {
        *("high_volume.scan", "high_volume.expired", "high_volume.remove_markers"),
        *("long_term.list", "long_term.remove_debris", "changelog.due", "changelog.list"),
    }
)
"""Calls about no object, or about any."""


class StepNotAllowed(AssertionError):
    """A recorded step that the model does not allow; the message shows it, the model's state, and what it allows."""


def walk(trace: Sequence[Record]) -> None:
    """Walk ``trace``, a recording from empty stores on, through the model. Raises `StepNotAllowed`."""
    for place, record, walker in _walkers(trace):
        walker.follow(place, record)


def changing(trace: Sequence[Record]) -> Sequence[int]:
    """The places of the records that have changed the model's state, in a walk of ``trace``."""
    places = []
    for place, record, walker in _walkers(trace):
        before = walker.states()
        walker.follow(place, record)
        if walker.states() != before:
            places.append(place)
    return places


def _walkers(trace: Sequence[Record]) -> Iterator[tuple[int, Record, "_Walker"]]:
    """Each record, with the walker of each object that it is about."""
    walkers: dict[ObjectId, _Walker] = {}
    owners: dict[object, ObjectId] = {}
    for place, record in enumerate(trace):
        objects = set(_objects(record, owners))
        if isinstance(record, Called) and record.name in _EVERYWHERE:
            objects |= walkers.keys()
        if isinstance(record, Ended):
            objects |= {object_id for object_id, walker in walkers.items() if walker.knows(record.actor)}
        for object_id in objects:
            if object_id not in walkers:
                walkers[object_id] = _Walker(object_id)
            yield place, record, walkers[object_id]


def _objects(record: Record, owners: dict[object, ObjectId]) -> Iterator[ObjectId]:
    """The object that a record is about, if it is about one."""
    match record:
        case Completing(_, revision):
            yield revision.object_id
        case Ended(actor) if actor.object_id is not None and actor.kind is not Kind.LOOK:
            yield actor.object_id
        case Called(name=name, arguments=arguments) if name not in _EVERYWHERE:
            if name in {"changelog.forget", "changelog.expedite"}:
                if arguments[0] in owners:
                    yield owners[arguments[0]]
                return
            found = next(filter(None, map(_object_of, arguments)), None)
            if found is None:
                return
            if name in {"changelog.record", "changelog.record_again"}:
                owners[arguments[0]] = found
            elif name == "changelog.claim":
                owners[arguments[1]] = found
            yield found


def _object_of(argument: object) -> ObjectId | None:
    if isinstance(argument, ObjectId):
        return argument
    revision = _revision_of(argument)
    return None if revision is None else revision.object_id


def _revision_of(argument: object) -> Revision | None:
    match argument:
        case Revision():
            return argument
        case Entry() | UploadId():
            return argument.revision
        case _:
            return None


@dataclass(slots=True)
class _Walker:
    """The walk of one object: all pictures that the trace so far allows."""

    object_id: ObjectId
    _pictures: list[Picture] = field(default_factory=list)
    _names: Names = field(init=False)
    _passed: list[tuple[int, Record]] = field(default_factory=list)
    _actors: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._names = Names(self.object_id)
        self._pictures = [Picture(self._names)]

    def knows(self, actor: Actor) -> bool:
        """Whether the operation has anything to do with this object."""
        return actor.number in self._actors or actor.object_id == self.object_id

    def states(self) -> list[dict[str, Any]]:
        """The model's shared state, in each picture."""
        return [dict(picture.state) for picture in self._pictures]

    def follow(self, place: int, record: Record) -> None:
        """One record on. Raises `StepNotAllowed`."""
        everywhere = isinstance(record, Called) and record.name in _EVERYWHERE
        if isinstance(record, Called | Completing) and record.actor is not None and not everywhere:
            self._actors.add(record.actor.number)
        reached: list[Picture] = []
        reasons: list[str] = []
        for picture in self._branches(record):
            try:
                reached += _after(picture, record)
            except Rejected as rejection:
                reasons.append(str(rejection))
        if not reached:
            raise StepNotAllowed(self._message(place, record, reasons))
        self._pictures = _distinct(reached)
        self._passed.append((place, record))

    def _branches(self, record: Record) -> list[Picture]:
        """The pictures, and those in which an assembly that is under way has had its effect by now.

        Only where it makes a difference for ``record``: all others are the same before such an effect and after it.
        """
        if not isinstance(record, Called) or not record.name.startswith("long_term."):
            return self._pictures
        revision = next(filter(None, map(_revision_of, record.arguments)), None)
        about = None if revision is None else self._names.revision(revision.uuid)
        branches: list[Picture] = []
        todo = list(self._pictures)
        while todo:
            picture = todo.pop()
            branches.append(picture)
            for rev in steps.may_assemble(picture):
                if about in {rev, None}:
                    assembled = picture.copy()
                    assembled.assemble(rev)
                    todo.append(assembled)
        branches = _distinct(branches)
        if len(branches) > _PICTURES_MAX:
            raise StepNotAllowed(f"{len(branches)} pictures at once: the trace does not tell enough")
        return branches

    def _message(self, place: int, record: Record, reasons: list[str]) -> str:
        again = _Walker(self.object_id)
        for earlier in self._passed:
            again.follow(*earlier)
        states = "\n  or\n".join(map(str, again._pictures))
        last = "\n".join(f"  {at}: {_described(one)}" for at, one in self._passed[-_SHOWN:])
        return (
            f"record {place} of {self.object_id.storage_path}: {_described(record)}\n"
            f"not allowed: {'; or '.join(dict.fromkeys(reasons))}\n"
            f"the model, before it:\n{states}\n"
            f"names: {again._names}\n"
            f"the last records before it:\n{last}"
        )


def _after(picture: Picture, record: Record) -> list[Picture]:
    """The pictures that ``record`` leads to from ``picture``, which is not used any more. Raises `Rejected`."""
    match record:
        case Begun():
            return [picture]
        case Ended(actor, answer):
            steps.answered(picture, actor.number, actor.kind, actor.upload, answer)
            return [picture]
        case Completing(actor, revision):
            if actor is None:
                raise Rejected("out of every operation")
            steps.completing(picture, actor.number, revision)
            return [picture]
        case Called(name="high_volume.remove_markers"):
            return _after_removal(picture, record)
        case Called(name=name, error=error):
            if name in steps.NO_STEP or (error is not None and name not in steps.FAILING):
                return [picture]
            steps.STEPS[name](picture, record)
            return [picture]
        case _:
            assert_never(record)


def _after_removal(picture: Picture, call: Called) -> list[Picture]:
    removed, left = steps.removes_marker(picture, call)
    pictures = [picture] if left else []
    if removed:
        without = picture.copy() if left else picture
        without.remove_marker()
        pictures.append(without)
    return pictures


def _distinct(pictures: list[Picture]) -> list[Picture]:
    distinct: list[Picture] = []
    for picture in pictures:
        if not any(picture.is_like(other) for other in distinct):
            distinct.append(picture)
    return distinct


def _described(record: Record) -> str:
    match record:
        case Begun(actor):
            return f"{actor} begins"
        case Ended(actor, answer):
            return f"{actor} ends: {answer.value}"
        case Completing(actor, revision):
            return f"{actor or 'nobody'}: long_term.complete of {revision.uuid} is called"
        case Called(actor, _, name, arguments, result, error):
            shown = ", ".join(map(_short, arguments))
            return f"{actor or 'nobody'}: {name}({shown}) -> {_short(result) if error is None else repr(error)}"
        case _:
            assert_never(record)


def _short(value: object) -> str:
    if isinstance(value, Row | RowHead | TombstoneRow):
        mark = f" fenced {value.fenced.hex()[:8]}" if isinstance(value, RowHead) else ""
        return f"<version {value.version.hex()[:8]}{mark}: {_short(value.content)}>"
    if isinstance(value, Entry):
        state = f"{value.role.value} {value.state.value} epoch {value.epoch} sweeps {value.sweeps}"
        return f"<{value.revision.uuid} of {value.owner}: {state}>"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_short, value)) + "]"
    return _name(value)


def _name(value: object) -> str:
    match value:
        case ObjectId():
            return value.key
        case Revision() | BlobInfo(revision=Revision()) | UploadId(revision=Revision()):
            revision = value if isinstance(value, Revision) else value.revision
            return str(revision.uuid)
        case Claimed(entry):
            return f"claimed {_short(entry)}"
        case Tombstone(_, uuid):
            return f"tombstone of {uuid}"
        case bytes():
            return value.hex()[:8]
        case _:
            return "inline" if isinstance(value, InlineHead) else str(value)
