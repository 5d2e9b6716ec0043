"""What histories cover: each method of the three contracts, with each kind of answer that the stores in memory give.

Left out are `CorruptObject`, which needs a damaged store, and what is answered after `close`.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from tests.engines.histories.notation import Call

STORES: Final = ("high_volume", "long_term", "changelog")
KINDS: Final[Mapping[str, frozenset[str]]] = {
    name: frozenset(kinds.split(", "))
    for name, kinds in {
        "high_volume.read": "no row, inline, tombstone, gone",
        "high_volume.head": "no row, inline, tombstone, gone",
        "high_volume.put_inline": "done, tombstone met",
        "high_volume.delete_inline": "done, tombstone met",
        "high_volume.compare_and_write": "written, refused",
        "high_volume.point": "true, false",
        "high_volume.bring_inline": "true, false",
        "high_volume.fence": "inline, tombstone, gone",
        "high_volume.extend": "true, false",
        "high_volume.scan": "nothing, some, a full page",
        "high_volume.expired": "nothing, some, a full page",
        "high_volume.remove_markers": "nothing, some, a full page",
        "high_volume.identity": "none, one",
        "high_volume.adopt": "its own, another",
        "high_volume.check": "done",
        "long_term.put": "stored, GivenUp, InvariantBroken, IncompleteBody",
        "long_term.get": "no blob, all, a span, InvariantBroken",
        "long_term.head": "no blob, a blob",
        "long_term.delete": "done",
        "long_term.list": "nothing, some, a full page",
        "long_term.initiate": "begun, GivenUp",
        "long_term.upload_part": "stored, NoSuchUpload, ChecksumMismatch, InvariantBroken, IncompleteBody",
        "long_term.list_parts": "all, truncated, NoSuchUpload",
        "long_term.complete": (
            "done, NoSuchUpload, InvalidPart, InvalidPartOrder, EntityTooSmall, ObjectTooLarge, a repeated success"
        ),
        "long_term.abort": "done, NoSuchUpload, all of a revision, a repeated success",
        "long_term.remove_debris": "nothing",
        "long_term.identity": "none, one",
        "long_term.adopt": "its own, another",
        "long_term.check": "done",
        "changelog.record": "done, GivenUp, InvariantBroken",
        "changelog.record_again": "true, false, InvariantBroken",
        "changelog.begin_upload": "done",
        "changelog.advance": "true, false",
        "changelog.claim": "claimed, committed, condemned, condemned and swept, unknown, InvariantBroken",
        "changelog.mark_done": "done",
        "changelog.forget": "done",
        "changelog.expedite": "done",
        "changelog.condemn": "condemned, refused",
        "changelog.resume_later": "true, false",
        "changelog.forget_settled": "true, false",
        "changelog.due": "nothing, some, a full page",
        "changelog.find": "nothing, some",
        "changelog.list": "nothing, some, a full page",
        "changelog.backlog": "nothing, something",
        "changelog.identity": "none, one",
        "changelog.adopt": "its own, another",
        "changelog.check": "done",
    }.items()
}
"""The methods, and the kinds of their answers."""


def kinds(calls: Iterable[Call]) -> Counter[tuple[str, str]]:
    """How often each method gave each kind of answer."""
    in_progress: set[tuple[str, str]] = set()
    return Counter((call.name, kind(call, in_progress)) for call in calls)


def kind(call: Call, in_progress: set[tuple[str, str]]) -> str:
    """What kind of answer it got. ``in_progress`` are the uploads that are; kept from call to call."""
    if call.error is not None:
        return call.error
    if call.name in {"long_term.initiate", "long_term.complete", "long_term.abort"}:
        return _of_upload(call, in_progress)
    if isinstance(call.answer, bool):
        return str(call.answer).lower()
    kind_of = _KIND_OF.get(call.name)
    return "done" if kind_of is None else kind_of(call)


def _of_row(call: Call) -> str:
    if call.answer is None:
        return "no row"
    content = call.answer["content"]
    return content if isinstance(content, str) else str(next(iter(content)))


def _of_count(call: Call) -> str:
    count = call.answer if isinstance(call.answer, int) else len(call.answer)
    if not count:
        return "nothing"
    return "a full page" if count >= call.given.get("limit", math.inf) else "some"


def _of_claim(call: Call) -> str:
    match call.answer:
        case {"claimed": _}:
            return "claimed"
        case {"condemned": swept}:
            return "condemned and swept" if swept else "condemned"
        case _:
            return str(call.answer)


def _of_upload(call: Call, in_progress: set[tuple[str, str]]) -> str:
    if call.name == "long_term.initiate":
        in_progress.add((call.given["revision"], call.answer))
        return "begun"
    upload = call.given["upload"]
    if isinstance(upload, str):
        in_progress.difference_update({one for one in in_progress if one[0] == upload})
        return "all of a revision"
    if (upload[0], upload[1]) not in in_progress:
        return "a repeated success"
    in_progress.remove((upload[0], upload[1]))
    return "done"


def _either(if_none: str, otherwise: str) -> Callable[[Call], str]:
    return lambda call: if_none if call.answer is None else otherwise


def _of_get(call: Call) -> str:
    return _either("no blob", "a span" if "span" in call.given else "all")(call)


_KIND_OF: Mapping[str, Callable[[Call], str]] = {
    **dict.fromkeys(("high_volume.read", "high_volume.head", "high_volume.fence"), _of_row),
    **dict.fromkeys(("high_volume.put_inline", "high_volume.delete_inline"), _either("done", "tombstone met")),
    **dict.fromkeys(("high_volume.scan", "high_volume.expired", "high_volume.remove_markers"), _of_count),
    **dict.fromkeys(("long_term.list", "long_term.remove_debris"), _of_count),
    **dict.fromkeys(("changelog.due", "changelog.list", "changelog.find"), _of_count),
    **dict.fromkeys((f"{store}.identity" for store in STORES), _either("none", "one")),
    **dict.fromkeys(
        (f"{store}.adopt" for store in STORES),
        lambda call: "its own" if call.answer == call.given["identity"] else "another",
    ),
    **dict.fromkeys(("long_term.put", "long_term.upload_part"), lambda _: "stored"),
    "high_volume.compare_and_write": _either("refused", "written"),
    "long_term.get": _of_get,
    "long_term.head": _either("no blob", "a blob"),
    "long_term.list_parts": lambda call: "truncated" if call.answer["truncated"] else "all",
    "changelog.condemn": _either("refused", "condemned"),
    "changelog.claim": _of_claim,
    "changelog.backlog": lambda call: "something" if any(call.answer.values()) else "nothing",
}


def transitions(calls: Sequence[Call]) -> set[tuple[str, str, str, bool]]:
    """Which answers came after which other ones about the same thing, and whether another server had got those."""
    in_progress: set[tuple[str, str]] = set()
    before: dict[tuple[str, str], tuple[str, str]] = {}
    found = set()
    for call in calls:
        now, by, subject = kind(call, in_progress), server_of(call), (call.store, _subject(call))
        last, last_by = before.get(subject, ("", ""))
        found.add((last, call.name, now, by != last_by))
        before[subject] = f"{call.name} {now}", by
    return found


def server_of(call: Call) -> str:
    """The server that made a call of the simulation's."""
    return call.by.rpartition(" of ")[2]


def _subject(call: Call) -> str:
    match call.given:
        case {"object_id": str(name)} | {"revision": str(name)} | {"upload": str(name)} | {"upload": [str(name), _]}:
            return name
        case {"entry": [str(name), *_]} | {"new": str(name)} | {"old": str(name)} | {"owner": str(name)}:
            return name
        case _:
            return ""


def table(histories: Mapping[str, Sequence[Call]]) -> str:
    """Method by method, how often it gave which kind of answer."""
    counts = Counter[tuple[str, str]]()
    for calls in histories.values():
        counts += kinds(calls)
    lines = [f"{sum(counts.values())} calls in {len(histories)} histories"]
    for name, wanted in KINDS.items():
        told = ", ".join(f"{one} {counts[name, one]}" for one in sorted(wanted))
        lines.append(f"  {name}: {told}")
    return "\n".join(lines)
