"""Hypothesis strategies for values, hostile ones among them."""

from uuid import UUID

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tierstore.clock import MICROS_PER_SECOND
from tierstore.limits import Limits
from tierstore.testing.hostile import HOSTILE_KEYS, HOSTILE_SCOPES, HOSTILE_USECASES
from tierstore.types.ids import ObjectId, Revision, Scope
from tierstore.types.metadata import Expiration, Manual, Metadata, ObjectInfo, TimeToIdle, TimeToLive, deadline
from tierstore.types.timestamps import EARLIEST, LATEST

LIMITS = Limits()

_USECASE_CHARACTERS = "ABab09_-"
_SCOPE_CHARACTERS = "ABab09_-()$!+'"
_TOKEN_CHARACTERS = "abz019!#$%&'*+.^_`|~-"


def texts(max_size: int | None = None) -> SearchStrategy[str]:
    """Any text that UTF-8 can hold."""
    return st.text(st.characters(exclude_categories=["Cs"]), max_size=max_size)


def scopes() -> SearchStrategy[tuple[Scope, ...]]:
    """Valid scopes."""
    words = st.text(_SCOPE_CHARACTERS, min_size=1, max_size=8)
    return st.lists(st.builds(Scope, words, words), max_size=4).map(tuple) | st.sampled_from(HOSTILE_SCOPES)


def object_ids() -> SearchStrategy[ObjectId]:
    """Valid ids."""
    return st.builds(
        ObjectId,
        st.text(_USECASE_CHARACTERS, min_size=3, max_size=8) | st.sampled_from(HOSTILE_USECASES),
        scopes(),
        texts(max_size=40).filter(bool) | st.sampled_from(HOSTILE_KEYS),
    )


def revisions() -> SearchStrategy[Revision]:
    """Revisions of valid ids."""
    return st.builds(Revision, object_ids(), st.uuids() | st.just(UUID(int=0)))


def instants() -> SearchStrategy[int]:
    """Instants that can be written."""
    return st.integers(EARLIEST, LATEST) | st.sampled_from([EARLIEST, LATEST, 0, -1, 1_767_323_045_678_901])


def durations() -> SearchStrategy[int]:
    """Whole seconds that a client may ask for."""
    return st.integers(0, LIMITS.duration_seconds_max) | st.sampled_from([0, 1, 59, 60, 3_600, 86_400, 90_061])


def expirations() -> SearchStrategy[Expiration]:
    """Each kind of expiration."""
    return st.just(Manual()) | st.builds(TimeToLive, durations()) | st.builds(TimeToIdle, durations())


def media_types() -> SearchStrategy[str]:
    """Media types as RFC 9110 allows them."""
    token = st.text(_TOKEN_CHARACTERS + "ABZ", min_size=1, max_size=8)
    quoted = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=8).map(
        lambda text: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    )
    spaces = st.sampled_from(["", " ", "\t", " \t "])
    parameter = st.builds("{}={}".format, token, token | quoted) | st.just("")
    parameters = st.lists(st.builds("{};{}{}".format, spaces, spaces, parameter), max_size=3).map("".join)
    return st.builds("{}/{}{}".format, token, token, parameters).map(lambda text: text.rstrip(" \t"))


def metadata() -> SearchStrategy[Metadata]:
    """Metadata that a client may give."""
    free = texts(max_size=20) | st.sampled_from(HOSTILE_KEYS)
    names = st.text(_TOKEN_CHARACTERS, min_size=1, max_size=8)
    return st.builds(
        Metadata,
        content_type=media_types() | st.sampled_from(["application/octet-stream", "text/plain; charset=utf-8"]),
        compression=st.sampled_from([None, "zstd"]),
        expiration=expirations(),
        origin=st.none() | free,
        filename=st.none() | free,
        custom=st.dictionaries(names, free, max_size=3).map(lambda entries: tuple(sorted(entries.items()))),
    )


@st.composite
def fresh_infos(draw: st.DrawFn) -> ObjectInfo:
    """An object that was just created: its deadline is what its expiration says."""
    given = draw(metadata())
    created = draw(st.integers(0, LATEST - LIMITS.duration_seconds_max * MICROS_PER_SECOND))
    return ObjectInfo(
        metadata=given,
        size=draw(st.integers(0, LIMITS.object_bytes_max)),
        time_created=created,
        time_expires=deadline(given.expiration, created),
    )
