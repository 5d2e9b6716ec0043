"""What each recorded call is in the model: the step of its operation, and what the call shows of the stores.

A function for each call of the three contracts. It compares what the call has shown with the picture, and takes the
model's step; ``claim`` is two of the model's in one (old? and claim). Where an operation's next step is not a read, its
reads are only looked at. `NO_STEP` has the calls that are no step of anything, with the reason.

What an operation does may have its effect late, after the operation has gone on or ended: its place in the model waits
for it. `Rejected` says that the model does not allow what was recorded.
"""

from collections.abc import Callable, Mapping
from typing import Any

from tests.model.picture import Picture, Rejected, Thread
from tests.model.protocol import Outcome
from tierstore.backends.high_volume.contract import Gone, InlineHead
from tierstore.changelog.entries import Claim, Claimed, Committed, Condemned, State, Unknown
from tierstore.errors import ClientMistake, CorruptObject, NoSuchUpload
from tierstore.testing.traces import Answer, Called, Kind
from tierstore.types.ids import Revision

NO_STEP: Mapping[str, str] = {
    "changelog.advance": "it says which parts of an upload count, and the model has no parts",
    "changelog.expedite": "it changes when a sweeper comes, and the model's comes at any time",
    "long_term.remove_debris": "debris is what never became a blob, and the model has only blobs",
}
"""Calls that have no counterpart in the model, and why they need none."""

NOT_RECORDED: Mapping[str, str] = {
    "backlog": "it counts, for metrics",
    "identity": "it is about the store, not about an object",
    "adopt": "as for identity",
    "check": "as for identity",
    "close": "as for identity",
}
"""Calls that are in no trace, by method, and why not."""

_SMALL = {Kind.PUT: "C", Kind.DELETE: "D"}
_GIVES_UP = {
    "A": {"read", "old?", "assemble", "head", "row?", "why?", "swap", "gone?"},
    "B": {"read", "record", "upload", "swap"},
}
"""Where an operation may end, certain that nothing is under way, and undo what it has done (``a`` and ``b`` of the
model). If something comes after all that may not come any more, it is rejected then."""
_COMMITTED = {"mark", "delete-old", "forget", "ok"}
"""Where an operation is that has succeeded."""


def _thread(picture: Picture, call: Called) -> Thread | None:
    return None if call.actor is None else picture.threads.get(call.actor.number)


def _number(call: Called) -> int:
    if call.actor is None:
        raise Rejected("out of every operation")
    return call.actor.number


def _at(picture: Picture, call: Called, kinds: str, *places: str) -> Thread:
    """The operation of the call, which has to be at one of ``places``."""
    thread = picture.threads.get(_number(call))
    if thread is None:
        raise Rejected("an operation that has not come so far")
    if thread.kind not in kinds or thread.pc not in places:
        raise Rejected(f"{thread}, and its next step is another")
    return thread


def _check(expected: bool, reason: str) -> None:
    if not expected:
        raise Rejected(reason)


def _name(picture: Picture, revision: Revision | None) -> str | None:
    return None if revision is None else picture.names.revision(revision.uuid)


def _writes(outcome: Outcome) -> bool:
    return "row" in outcome[2]


# High-volume store


def _read_row(picture: Picture, call: Called) -> None:
    picture.observe_row(call.result)
    if call.actor is None:
        return
    thread = _thread(picture, call)
    if thread is None and call.actor.kind is Kind.PUT:
        thread = picture.begin(call.actor.number, "B")
    if thread is None and call.actor.kind in {Kind.COMPLETE, Kind.RESUME} and call.actor.upload is not None:
        thread = picture.begin(call.actor.number, "A", picture.names.revision(call.actor.upload.uuid))
    if thread is None:
        return
    if thread.kind in "AB" and thread.pc in {"read", "gone?"}:
        picture.take(call.actor.number, call.at, "reads the row")
    if thread.kind == "A" and thread.pc == "swap" and picture.row[1] == ("tomb", thread.rev):
        # It has been told that its parts are not those of the blob, or has not been told what became of its commit.
        picture.lost[call.actor.number] = thread.loc
        picture.put_at(call.actor.number, "row?")
        picture.take(call.actor.number, call.at, "looks whether its revision has been committed")


def _write_blindly(kind: Kind) -> Callable[[Picture, Called], None]:
    """Small put or delete, the first step: written, or a tombstone met."""

    def write(picture: Picture, call: Called) -> None:
        number = _number(call)
        if number not in picture.threads:
            _check(call.actor is not None and call.actor.kind is kind, "another kind of operation")
            picture.begin(number, _SMALL[kind])
        _at(picture, call, _SMALL[kind], "read")
        if call.result is not None:
            picture.observe_row(call.result)
        met = call.result is not None
        picture.take(number, call.at, "met a tombstone" if met else "met none", lambda to: (to[0] == "record") == met)

    return write


def _compare_and_write(picture: Picture, call: Called) -> None:
    _, expected, content, if_expired_by, not_after = call.arguments
    number = _number(call)
    based = picture.row_of_version(expected)
    if call.actor is not None and call.actor.kind in {Kind.SWEEP, Kind.EXPIRE} and if_expired_by:
        thread = _thread(picture, call)
        if thread is None or thread.kind != "E" or thread.pc != "swap":
            picture.begin(number, "E")
        before = picture.threads[number]
        _check(based is not None, "it goes by a row that never was")
        after = picture.put_at(number, "swap", based)
        _check(before.old == after.old, f"it settles a row with {after.old}, and has recorded {before.old} as old")
    thread = _at(picture, call, "CDE", "swap")
    _check(isinstance(content, InlineHead if thread.kind == "C" else Gone), f"{thread.me} does not write {content}")
    _check(expected is not None, "it goes by no row")
    picture.observe_version(thread.loc[0], expected, "version that it goes by")
    too_late = not_after is not None and call.at > not_after
    _check(call.result is None or not too_late, "it was written, and it was too late")
    by_clock = (too_late or if_expired_by is not None) and thread.loc[0] == picture.row[0]
    if call.result is None and by_clock:  # which the model has not: as if lost
        lost = "read" if thread.kind != "E" else "ok" if thread.old is None else "forget"
        picture.put_at(number, lost, ("again",))
        return
    written = call.result is not None
    picture.take(number, call.at, "written" if written else "lost", lambda to: _writes(to) == written)
    if written:
        picture.observe_version(picture.row[0], call.result, "version that was written")


def _point(picture: Picture, call: Called) -> None:
    _, base, content, not_after = call.arguments
    number = _number(call)
    before = _thread(picture, call)
    if before is not None and before.kind == "A" and before.pc in _COMMITTED | {"done"} and not call.result:
        return  # it has looked, found its revision committed and gone on; its own try arrives late, and has to be lost
    thread = _at(picture, call, "AB", "swap")
    picture.observe_base(thread, base)
    points_to = picture.names.revision(content.revision)
    _check(points_to == thread.rev, f"it points the row to {points_to}, and its own revision is {thread.rev}")
    _check(not call.result or call.at <= not_after, "it was written, and it was too late")
    if thread.kind == "A" and not call.result:
        picture.lost[number] = thread.loc
    if not call.result and call.at > not_after:  # by the clock, which the model has not: as if lost
        picture.put_at(number, "read", ("seen",) if thread.kind == "A" else ())
        return
    after = {"read"} if not call.result else {"done"} if thread.kind == "A" else _COMMITTED
    picture.take(number, call.at, "pointed" if call.result else "lost", lambda to: to[0] in after)


def _bring_inline(picture: Picture, call: Called) -> None:
    _, expected, not_after = call.arguments
    number = _number(call)
    before = _at(picture, call, "N", "swap")
    based = picture.row_of_version(expected)
    _check(based is not None and based[1] == before.loc[1], f"it goes by {based}, and not by one with {before.old}")
    thread = picture.put_at(number, "swap", based)
    _check(not call.result or call.at <= not_after, "it was written, and it was too late")
    if not call.result and call.at > not_after and thread.loc[0] == picture.row[0]:  # as if lost
        picture.put_at(number, "forget", ("again",))
        return
    picture.take(number, call.at, "written" if call.result else "lost", lambda to: _writes(to) == call.result)


def _fence(picture: Picture, call: Called) -> None:
    _at(picture, call, "S", "fence")
    picture.take(_number(call), call.at, "fences")
    picture.observe_row(call.result)


def _extend(picture: Picture, call: Called) -> None:
    """No step, be it an access's bump, a client's extension, or a read that makes sure that there is none.

    It changes no version and no content, and the model has no clocks: what there is to decide is the same before it and
    after. That an extension or the settling of what has expired wins, and not both, is a matter of the row's deadline:
    a law of every store, and none of the order of steps. But a row of another version, or none, cannot be extended.
    """
    _, version, _ = call.arguments
    if call.result:
        _check(picture.row[1][0] in {"inline", "tomb"}, f"extended, and the row is {picture.row}")
        picture.observe_version(picture.row[0], version, "version that was extended")


def _list_rows(picture: Picture, call: Called) -> None:
    """What is listed is as in the model; an absence says something only where everything is listed."""
    for found in call.result:
        if found.object_id == picture.names.object_id:
            picture.observe_row(found.row)
            return
    if call.name == "high_volume.scan":
        prefix, after, limit = call.arguments
        if not prefix and after is None and len(call.result) < limit:
            picture.observe_row(None)


# Long-term store


def _put(picture: Picture, call: Called) -> None:
    thread = _at(picture, call, "B", "upload")
    _check(_name(picture, call.arguments[0]) == thread.rev, f"it writes another blob than {thread.rev}")
    picture.take(_number(call), call.at, "writes its blob")


def _read_blob(picture: Picture, call: Called) -> None:
    revision: Revision = call.arguments[0]
    found = call.result is not None or isinstance(call.error, CorruptObject)
    picture.observe_blob(revision.uuid, found)
    thread = _thread(picture, call)
    if thread is not None and (thread.kind, thread.pc, found) == ("N", "swap", False):  # somebody was faster
        _check(_name(picture, revision) == thread.old, f"it reads another blob than {thread.old}")
        picture.take(_number(call), call.at, "finds no blob to bring inline", lambda to: to[0] == "forget")
        return
    if thread is None or call.name != "long_term.head" or _name(picture, revision) != thread.its:
        return
    if (thread.kind, thread.pc) == ("A", "assemble"):  # its own assembly has failed so far, and may still come late
        thread = picture.take(_number(call), call.at, "has not assembled", lambda to: "lt" not in to[2])
    if (thread.kind, thread.pc) in {("A", "head"), ("S", "look")}:
        # Whether an attempt goes on with the blob that it has found, or has been refused, shows later.
        picture.take(_number(call), call.at, "looks at the blob", lambda to: to[0] != "row?")


def _delete_blob(picture: Picture, call: Called) -> None:
    number = _number(call)
    thread = _thread(picture, call)
    name = _name(picture, call.arguments[0])
    if thread is not None and thread.kind == "B" and name == thread.rev and thread.pc in _GIVES_UP["B"]:
        thread = picture.put_at(number, "discard")
    thread = _at(picture, call, "ABCDENS", "delete-old", "delete", "discard")
    its = thread.old if thread.pc == "delete-old" else thread.its
    _check(name == its, f"it deletes {name}, and is to delete {its}")
    picture.take(number, call.at, "deletes the blob")


def _initiate(picture: Picture, call: Called) -> None:
    thread = _at(picture, call, "I", "initiate")
    _check(_name(picture, call.arguments[0]) == thread.rev, f"it begins another upload than {thread.rev}")
    picture.take(_number(call), call.at, "begins the upload")


def _complete(picture: Picture, call: Called) -> None:
    """It has returned. If it has had an effect, that came before: see `may_assemble`."""
    number = _number(call)
    rev = picture.names.revision(call.arguments[0].revision.uuid)
    picture.assembling -= {number}
    if isinstance(call.error, ClientMistake) and not isinstance(call.error, NoSuchUpload):
        picture.refused |= {number}
    if call.error is None:
        _check(rev not in picture.open, f"it has completed {rev}, and no blob has come of it")
    elif number in picture.makers.get(rev, ()):  # then another has made the blob, if there is another
        picture.makers[rev] -= {number}
        _check(bool(picture.makers[rev]), f"it has failed, and nobody else can have assembled {rev}")


def may_assemble(picture: Picture) -> set[str]:
    """The uploads of which an assembly is under way, and would have an effect now."""
    return {picture.threads[number].rev for number in picture.assembling} & picture.open


def completing(picture: Picture, number: int, revision: Revision) -> None:
    """An assembly was called, and may have its effect from now on."""
    thread = picture.threads.get(number)
    if thread is None or thread.kind != "A" or (thread.pc in {"read", "old?"} and not thread.has_seen_blob):
        raise Rejected(f"it completes an upload that it has not claimed: {thread}")
    name = picture.names.revision(revision.uuid)
    _check(name == thread.rev, f"it completes {name}, and is to complete {thread.rev}")
    picture.assembling |= {number}


def _abort(picture: Picture, call: Called) -> None:
    thread = _at(picture, call, "S", "abort")
    revision = call.arguments[0]
    _check(isinstance(revision, Revision), "it aborts one upload of a revision, and has to abort all")
    _check(_name(picture, revision) == thread.its, "it aborts another upload")
    picture.take(_number(call), call.at, "aborts the upload")


def _parts(picture: Picture, call: Called) -> None:
    """Parts are the store's business alone, and no step. But only an upload in progress has them."""
    rev = picture.names.revision(call.arguments[0].revision.uuid)
    _check(rev in picture.open, f"it has parts of {rev}, which is not in progress")


def _list_blobs(picture: Picture, call: Called) -> None:
    prefix, after, limit = call.arguments
    listed = [blob.revision.uuid for blob in call.result if blob.revision.object_id == picture.names.object_id]
    for uuid in listed:
        picture.observe_blob(uuid, found=True)
    if not prefix and after is None and len(call.result) < limit:
        missing = picture.blobs - {picture.names.revision(uuid) for uuid in listed}
        _check(not missing, f"the blobs {sorted(missing)} of the model are not there")


# Change log


def _record(picture: Picture, call: Called) -> None:
    owner, new, old = call.arguments
    number = _number(call)
    if call.actor is not None and call.actor.kind is Kind.EXPIRE and number not in picture.threads:
        picture.begin(number, "E")
        base = None if old is None else picture.last_row_with(("tomb", picture.names.revision(old.uuid)))
        _check(base is not None, "it settles a tombstone that never was")
        picture.put_at(number, "record", base)
    if call.actor is not None and call.actor.kind is Kind.INLINE and number not in picture.threads:
        _check(old is not None, "it brings nothing inline")
        rev = picture.names.revision(old.uuid)
        picture.begin(number, "N", rev)
        base = picture.last_row_with(("tomb", rev))
        _check(base is not None, "it brings inline what was never committed")
        picture.put_at(number, "record", base)
    thread = _at(picture, call, "BCDEN", "record")
    if new is not None:
        picture.names.revision(new.uuid, thread.me)
    picture.names.own(owner, thread.me)
    _check(_name(picture, new) == (thread.rev if thread.kind == "B" else None), f"it records {new} as new")
    _check_old(picture, thread, old)
    again = call.name == "changelog.record_again"
    goes_on = {"swap"} if again or thread.kind != "B" else {"upload"}
    refused = again and not call.result
    places = {"discard"} if refused else goes_on
    picture.take(number, call.at, "refused" if refused else "recorded", lambda to: to[0] in places)


def _check_old(picture: Picture, thread: Thread, old: Revision | None) -> None:
    name = _name(picture, old)
    _check(name == thread.old, f"it records {name} as old, and has read a row that points to {thread.old}")


def _begin_upload(picture: Picture, call: Called) -> None:
    _check(call.actor is not None and call.actor.kind is Kind.INITIATE, "another kind of operation")
    number = _number(call)
    _check(number not in picture.threads, f"{picture.threads.get(number)}, and begins another upload")
    picture.begin(number, "I", picture.names.revision(call.arguments[0].uuid))
    picture.take(number, call.at, "records the upload")


def _claim(picture: Picture, call: Called) -> None:
    revision, owner, old = call.arguments
    number = _number(call)
    thread = _at(picture, call, "A", "old?")
    _check(_name(picture, revision) == thread.rev, f"it claims another upload than {thread.rev}")
    _check_old(picture, thread, old)
    picture.names.own(owner, thread.me)
    thread = picture.take(number, call.at, "claims")
    own = picture.upload_entry(thread.rev)
    if thread.pc == "claim":
        thread = picture.take(number, call.at, "claims")
    claim: Claim = call.result
    match claim:
        case Committed():
            _check(thread.pc in {"ok", "forget"}, f"it was committed, and in the model {thread}")
        case Unknown():
            _check(thread.pc == "gone?" and own is None, f"it is unknown, and in the model {own}: {thread}")
        case Condemned(swept):
            place, state = ("gone?", "swept") if swept else ("old?", "condemned")
            condemned = thread.pc == place and own is not None and own[4] == state
            _check(condemned, f"it is {state}, and in the model {own}: {thread}")
        case Claimed(entry):
            _check(thread.pc in {"assemble", "head", "swap"}, f"it is claimed, and in the model {own}: {thread}")
            seen, now = picture.names.entry(entry), picture.upload_entry(thread.rev)
            _check(seen == now, f"its entry is {seen}, and in the model {now}")


def _mark_done(picture: Picture, call: Called) -> None:
    number = _number(call)
    lost = picture.lost.get(number)
    before = _thread(picture, call)
    if lost is not None and before is not None and before.pc == "forget":
        picture.put_at(number, "done", lost)  # it has not been told that it lost, has looked as at "swap", and goes on
    thread = _at(picture, call, "ABCDENS", "done", "mark", "drop", "keep")
    name = _name(picture, call.arguments[0])
    its = thread.old if thread.pc == "mark" else thread.its
    _check(thread.pc != "keep" or thread.loc[0][1] == "U", "an upload's own entry is marked, and this is another")
    _check(name == its, f"it marks {name}, and is to mark {its}")
    picture.take(number, call.at, "marks the upload as done")


def _forget(picture: Picture, call: Called) -> None:
    number = _number(call)
    thread = picture.threads.get(number)
    if thread is None:  # it was given up before it had recorded anything
        return
    picture.names.own(call.arguments[0], thread.me)
    if thread.pc in {"forget", "undo"}:
        picture.take(number, call.at, "forgets its entries")
    elif any(entry[1] == thread.me for entry in picture.log):
        ended = {"ok", "failed"} if thread.kind == "A" else set()
        if thread.pc not in _GIVES_UP["A"] | ended or thread.kind != "A":
            raise Rejected(f"{thread}, and is not to forget its entries yet")
        picture.put_at(number, "undo", ())
        picture.take(number, call.at, "forgets its entries")
        if thread.pc in ended:
            picture.put_at(number, thread.pc)


def _condemn(picture: Picture, call: Called) -> None:
    number = _number(call)
    _check(call.actor is not None and call.actor.kind is Kind.SETTLE, "nothing but a settling condemns")
    seen = picture.names.entry(call.arguments[0])
    picture.begin(number, "S")
    if call.result is None:
        _check(seen not in picture.log or seen[4] == "done", f"it lost {seen}, which is as it was in the model")
        picture.put_at(number, "ok")
        return
    condemned = picture.names.entry(call.result)
    _check(seen in picture.log, f"it condemned {seen}, which the model has not")
    picture.take(number, call.at, f"condemned {condemned}", lambda to: to[1][:1] == (condemned,))


def _resume_later(picture: Picture, call: Called) -> None:
    thread = _at(picture, call, "S", "resume")
    _check_settled(picture, call, thread.loc[0])
    picture.take(_number(call), call.at, "is to come again")


def _forget_settled(picture: Picture, call: Called) -> None:
    entry = call.arguments[0]
    if entry.state is State.DONE:  # by the clock, which the model has not: remembered long enough
        _check_settled(picture, call, picture.names.entry(entry))
        picture.outlive(picture.names.entry(entry))
        return
    thread = _at(picture, call, "S", "keep", "clear")
    _check(thread.pc == "clear" or thread.loc[0][1] != "U", "an upload's own entry is kept, and not forgotten")
    _check_settled(picture, call, thread.loc[0])
    picture.take(_number(call), call.at, "forgets the entry")


def _check_settled(picture: Picture, call: Called, entry: Any) -> None:
    seen = picture.names.entry(call.arguments[0])
    _check(seen == entry, f"it settles {seen}, and has condemned {entry}")
    _check(call.result == (entry in picture.log), f"it {'has' if call.result else 'has not'} changed {entry}")


def _find(picture: Picture, call: Called) -> None:
    revision: Revision = call.arguments[0]
    name = picture.names.revision(revision.uuid)
    picture.observe_entries(call.result, all_of=name)
    thread = _thread(picture, call)
    if thread is not None and (thread.kind, thread.pc) == ("A", "swap") and _number(call) in picture.refused:
        thread = picture.put_at(_number(call), "why?")
    if thread is not None and (thread.kind, thread.pc) in {("A", "why?"), ("S", "old?")}:
        _check(name == thread.its, f"it looks at the entries of {name}, and is to look at those of {thread.its}")
        picture.take(_number(call), call.at, "looks at the entries")


def _list_entries(picture: Picture, call: Called) -> None:
    entries = [entry for entry in call.result if entry.revision.object_id == picture.names.object_id]
    complete = False
    if call.name == "changelog.list":
        after, limit, uploads = call.arguments
        complete = after is None and not uploads and len(call.result) < limit
    picture.observe_entries(entries, all_there=complete)


STEPS: Mapping[str, Callable[[Picture, Called], None]] = {
    "high_volume.read": _read_row,
    "high_volume.head": _read_row,
    "high_volume.put_inline": _write_blindly(Kind.PUT),
    "high_volume.delete_inline": _write_blindly(Kind.DELETE),
    "high_volume.compare_and_write": _compare_and_write,
    "high_volume.point": _point,
    "high_volume.bring_inline": _bring_inline,
    "high_volume.fence": _fence,
    "high_volume.extend": _extend,
    "high_volume.scan": _list_rows,
    "high_volume.expired": _list_rows,
    "long_term.put": _put,
    "long_term.upload_part": _parts,
    "long_term.list_parts": _parts,
    "long_term.get": _read_blob,
    "long_term.head": _read_blob,
    "long_term.delete": _delete_blob,
    "long_term.initiate": _initiate,
    "long_term.complete": _complete,
    "long_term.abort": _abort,
    "long_term.list": _list_blobs,
    "changelog.record": _record,
    "changelog.record_again": _record,
    "changelog.begin_upload": _begin_upload,
    "changelog.claim": _claim,
    "changelog.mark_done": _mark_done,
    "changelog.forget": _forget,
    "changelog.condemn": _condemn,
    "changelog.resume_later": _resume_later,
    "changelog.forget_settled": _forget_settled,
    "changelog.due": _list_entries,
    "changelog.find": _find,
    "changelog.list": _list_entries,
}

FAILING = frozenset({"long_term.head", "long_term.get", "long_term.complete"})
"""A call that fails at the raw store has no effect, and so is no step, but for these: a blob that cannot be read is
there, and an assembly that fails is over."""


def removes_marker(picture: Picture, call: Called) -> tuple[bool, bool]:
    """Whether ``high_volume.remove_markers`` may have removed the row, and whether it may have left it."""
    before, limit = call.arguments
    _check(call.actor is not None and call.actor.kind is Kind.SWEEP, "none but a sweeper removes markers")
    may = bool(call.result) and picture.row[1] == ("gone",) and picture.changed <= before
    return may, not (may and call.result < limit)


# Answers


def answered(picture: Picture, number: int, kind: Kind, upload: Revision | None, answer: Answer) -> None:
    """What the caller was told has happened in the model; an answer that tells nothing always has."""
    thread = picture.threads.get(number)
    match kind, answer:
        case ((Kind.PUT | Kind.DELETE), Answer.OK):
            _check(thread is not None and thread.pc in _COMMITTED, f"acknowledged, and in the model {thread}")
        case Kind.INITIATE, Answer.OK:
            _check(thread is not None and thread.pc == "begun", f"begun, and in the model {thread}")
        case Kind.COMPLETE, Answer.OK:
            _check(thread is not None and thread.pc in _COMMITTED | {"done"}, f"completed, and in the model {thread}")
        case Kind.COMPLETE, Answer.REFUSED:
            _check(thread is not None and thread.pc == "failed", f"refused, and in the model {thread}")
            if thread is not None and thread.rev in picture.outlived:
                return
            _check(thread is None or thread.rev not in picture.commits, "refused, and it has been committed")
        case Kind.RESUME, Answer.OK if upload is not None:  # maybe told by its entry alone
            rev = picture.names.revision(upload.uuid)
            _check(rev in picture.commits, f"completed, and in the model {thread}, after commits of {picture.commits}")
        case Kind.RESUME, Answer.REFUSED if upload is not None:
            own = picture.upload_entry(rev := picture.names.revision(upload.uuid))
            ended = (own is None or own[4] == "swept") and (rev not in picture.commits or rev in picture.outlived)
            _check(ended, f"refused, and in the model {own}, after commits of {picture.commits}")
        case Kind.ABORT, Answer.OK if upload is not None:
            own = picture.upload_entry(rev := picture.names.revision(upload.uuid))
            aborted = (own is None or own[4] == "swept") and rev not in picture.commits
            _check(aborted, f"aborted, and in the model {own}, after commits of {picture.commits}")
        case Kind.ABORT, Answer.REFUSED if upload is not None:
            own = picture.upload_entry(picture.names.revision(upload.uuid))
            _check(own is None or own[4] == "done", f"nothing to abort, and in the model {own}")
