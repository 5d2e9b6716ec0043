"""Ids, scopes, keys and storage paths."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.types.strategies import LIMITS, object_ids, revisions, texts
from tierstore.errors import InvalidRequest
from tierstore.limits import KIB, Limits
from tierstore.testing.hostile import (
    HOSTILE_IDS,
    HOSTILE_KEYS,
    HOSTILE_SCOPES,
    HOSTILE_USECASES,
    INVALID_KEYS,
)
from tierstore.types.ids import ObjectId, Revision, Scope, check_key, check_scopes, parse_scopes, parse_usecase

SOME_UUID = "018f3c2e-7b1a-7000-8000-000000000000"


@given(object_ids())
def test_storage_path_parses_back(object_id: ObjectId) -> None:
    """A storage path parses back to the id it was made of."""
    assert ObjectId.from_storage_path(object_id.storage_path) == object_id


@given(revisions())
def test_revision_path_parses_back(revision: Revision) -> None:
    """A revision's storage path parses back to the revision."""
    assert Revision.from_storage_path(revision.storage_path) == revision


@given(object_ids(), object_ids())
def test_different_ids_have_different_paths(one: ObjectId, other: ObjectId) -> None:
    """Ids are equal exactly when their storage paths are."""
    assert (one == other) == (one.storage_path == other.storage_path)


@given(object_ids(), object_ids())
def test_a_key_cannot_forge_a_scope(object_id: ObjectId, other: ObjectId) -> None:
    """A key that looks like the end of a path, scopes included, is still a key: the path parses back to it."""
    _, _, forged = other.storage_path.partition("/")
    nested = ObjectId(object_id.usecase, object_id.scopes, check_key(forged, Limits(key_bytes_max=32 * KIB)))
    assert ObjectId.from_storage_path(nested.storage_path, Limits(key_bytes_max=32 * KIB)) == nested


def test_hostile_ids() -> None:
    """Every id of the corpus survives its path, and no two share one."""
    for object_id in HOSTILE_IDS:
        assert ObjectId.from_storage_path(object_id.storage_path) == object_id
    assert len({object_id.storage_path for object_id in HOSTILE_IDS}) == len(HOSTILE_IDS)


def test_path_shape() -> None:
    """A path is usecase, scopes, ``objects`` and the key, as the wire protocol has it."""
    scopes = (Scope("org", "17"), Scope("project", "42"))
    assert ObjectId("attachments", scopes, "a/b").storage_path == "attachments/org.17/project.42/objects/a/b"
    assert ObjectId("attachments", (), "/").storage_path == "attachments/objects//"


@given(texts())
def test_any_text_as_a_path(text: str) -> None:
    """Text is a storage path, and then of exactly one id, or an invalid request."""
    try:
        object_id = ObjectId.from_storage_path(text)
    except InvalidRequest:
        return
    assert object_id.storage_path == text


@given(st.lists(st.sampled_from(["abc", "objects", "a.b", ".", "a.", "", SOME_UUID, "a=b"]), max_size=6).map("/".join))
def test_path_like_text_as_a_revision(text: str) -> None:
    """Text is a revision's path, and then of exactly one revision, or an invalid request."""
    try:
        revision = Revision.from_storage_path(text)
    except InvalidRequest:
        return
    assert revision.storage_path == text


@pytest.mark.parametrize(
    "path",
    [
        "",
        "abc",
        "abc/objects",
        "abc/objects/",
        "ab/objects/k",
        "abc/org=1/objects/k",
        "abc/.1/objects/k",
        "abc/org./objects/k",
        "abc/a.b.c/objects/k",
        "abc/OBJECTS/k",
        "abc/" + "a.b/" * 17 + "objects/k",
    ],
)
def test_texts_that_are_no_path(path: str) -> None:
    """What has no usecase, no ``objects`` segment, a malformed scope or no key is no storage path."""
    with pytest.raises(InvalidRequest):
        ObjectId.from_storage_path(path)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "k",
        SOME_UUID.upper(),
        SOME_UUID.replace("-", ""),
        "{" + SOME_UUID + "}",
        "urn:uuid:" + SOME_UUID,
        SOME_UUID + "/",
    ],
)
def test_only_canonical_uuids_name_revisions(name: str) -> None:
    """One revision has one path: other spellings of its UUID are refused."""
    with pytest.raises(InvalidRequest):
        Revision.from_storage_path(f"abc/objects/k/{name}")


@pytest.mark.parametrize("usecase", HOSTILE_USECASES)
def test_usecases(usecase: str) -> None:
    """A usecase has 3 to 64 characters of its alphabet, in any case, which is kept."""
    assert parse_usecase(usecase) == usecase


@pytest.mark.parametrize(
    "text", ["", "ab", "u" * 65, "a b", "abc\n", "\u00e9\u00e9\u00e9", "a/b", "abc.", "\u0661\u0662\u0663", "abc\x00"]
)
def test_no_usecases(text: str) -> None:
    """Anything else is refused, digits of other scripts and a line end included."""
    with pytest.raises(InvalidRequest):
        parse_usecase(text)


@pytest.mark.parametrize("scopes", HOSTILE_SCOPES)
def test_scopes(scopes: tuple[Scope, ...]) -> None:
    """Scopes are read in their order; ``_`` alone means none."""
    written = ";".join(f"{scope.name}={scope.value}" for scope in scopes) or "_"
    assert parse_scopes(written) == scopes == check_scopes(list(scopes))


@pytest.mark.parametrize(
    "text",
    [
        "", ";", "=", "org", "org=", "=1", "org=1;", ";org=1", "org=1;;p=2", "org=1=2", "_;_", "org=a.b", "o.g=1",
        "org=1/2",
        "org=\u00e9", "org=1 ", "org=1\n", "org=%31", ";".join(f"s{n}=v" for n in range(17)), "n" * 257 + "=v",
        "n=" + "v" * 257,
    ],
)  # fmt: skip
def test_no_scopes(text: str) -> None:
    """Empty, malformed, foreign, too long or too many: refused."""
    with pytest.raises(InvalidRequest):
        parse_scopes(text)


@given(texts())
def test_any_text_as_scopes(text: str) -> None:
    """Text is scopes or an invalid request, nothing else."""
    try:
        scopes = parse_scopes(text)
    except InvalidRequest:
        return
    assert ";".join(f"{scope.name}={scope.value}" for scope in scopes) in {text, ""}


def test_scopes_are_checked_outside_the_parser_too() -> None:
    """`check_scopes` knows the same bounds as the parser."""
    with pytest.raises(InvalidRequest):
        check_scopes([Scope("org", "1")] * 3, Limits(scopes_max=2))
    with pytest.raises(InvalidRequest):
        check_scopes([Scope("org", "a.b")])


def test_keys() -> None:
    """A key is data: the hostile ones are keys as they are."""
    for key in HOSTILE_KEYS:
        assert check_key(key) == key


@pytest.mark.parametrize("key", INVALID_KEYS, ids=lambda key: ascii(key)[:40])
def test_no_keys(key: str) -> None:
    """A key is not empty, is valid Unicode, and is bounded in bytes of UTF-8."""
    with pytest.raises(InvalidRequest):
        check_key(key)


def test_the_corpus_holds_what_it_promises() -> None:
    """Every plane, 256 levels, exactly the longest key, and pairs that only careful stores keep apart."""
    assert len(set(HOSTILE_KEYS)) == len(HOSTILE_KEYS)
    assert {ord(character) >> 16 for key in HOSTILE_KEYS for character in key} == set(range(17))
    assert any(key.count("/") == 255 and "//" not in key for key in HOSTILE_KEYS)
    assert sum(len(key.encode()) == LIMITS.key_bytes_max for key in HOSTILE_KEYS) >= 3
    assert {"\u00e9", "e\u0301", "A", "a", "..", "//", "\x00", "%2e%2e", "%00", "CON", ".git"} <= set(HOSTILE_KEYS)
    assert len(set(HOSTILE_IDS)) == len(HOSTILE_IDS)
