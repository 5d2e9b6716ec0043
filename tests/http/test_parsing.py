"""Request targets to values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore.errors import InvalidRequest
from tierstore.http.parsing import AddressParser, object_path, parse_query, parse_single, percent_decode
from tierstore.limits import Limits
from tierstore.testing.hostile import HOSTILE_IDS, INVALID_KEYS
from tierstore.types.ids import ObjectId, Scope

PARSER = AddressParser(Limits())

SCOPE_WORDS = st.text("ABCXYZabcxyz0189_-()$!+'", min_size=1, max_size=12)
IDS = st.builds(
    ObjectId,
    st.text("ABCxyz019_-", min_size=3, max_size=64),
    st.lists(st.builds(Scope, SCOPE_WORDS, SCOPE_WORDS), max_size=4).map(tuple),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60),
)


def parsed(raw_path: bytes) -> ObjectId:
    """The object that a path names."""
    address = PARSER.parse(raw_path)
    assert address is not None
    assert address.key is not None
    return address.object_id(address.key)


def every_byte_escaped(text: str) -> bytes:
    """The longest way to write a segment."""
    return "".join(f"%{byte:02x}" for byte in text.encode()).encode()


@given(IDS)
def test_written_addresses_parse_back(object_id: ObjectId) -> None:
    """The address of an id names that id, and is visible ASCII."""
    path = object_path(object_id)
    assert parsed(path) == object_id
    assert all(0x21 <= byte <= 0x7E for byte in path)


@pytest.mark.parametrize("object_id", HOSTILE_IDS, ids=range(len(HOSTILE_IDS)))
def test_hostile_ids_parse_back(object_id: ObjectId) -> None:
    """Every hostile id comes back, however little or much of it is escaped."""
    assert parsed(object_path(object_id)) == object_id
    scopes = ";".join(f"{scope.name}={scope.value}" for scope in object_id.scopes) or "_"
    segments = (object_id.usecase, scopes, object_id.key)
    assert parsed(b"/v1/objects/" + b"/".join(map(every_byte_escaped, segments))) == object_id


@given(st.binary(max_size=40))
def test_decoding_is_total(raw: bytes) -> None:
    """Any bytes are decoded or refused; without a percent sign, decoding is UTF-8 alone."""
    try:
        text = percent_decode(raw)
    except InvalidRequest:
        return
    if b"%" not in raw:
        assert text.encode() == raw


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"a+b", "a+b"),
        (b"a%2Bb", "a+b"),
        (b"a%2Fb", "a/b"),
        (b"a%252Fb", "a%2Fb"),
        (b"%25", "%"),
        (b"%2e%2E", ".."),
        (b"%C3%A9", "é"),
        (b"%c3%a9", "é"),
        (b"%00", "\0"),
        (b"%F0%9F%98%80", "😀"),
        (b"~:@!$&'()*,;=", "~:@!$&'()*,;="),
    ],
)
def test_escapes_are_decoded_once(raw: bytes, text: str) -> None:
    """One level of escapes, of either case; plus is plus."""
    assert percent_decode(raw) == text


@pytest.mark.parametrize("raw", [b"%", b"a%", b"%2", b"%zz", b"%2g", b"%%41", b"%u0041", b"% 41", b"%+1"])
def test_malformed_escapes_are_refused(raw: bytes) -> None:
    """A percent sign that begins no escape is not guessed at."""
    with pytest.raises(InvalidRequest, match="escape"):
        percent_decode(raw)


@pytest.mark.parametrize("raw", [b"%FF", b"\xff", b"%C3", b"%C0%AF", b"%ED%A0%80", b"%F4%90%80%80", b"%E2%82"])
def test_invalid_utf_8_is_refused(raw: bytes) -> None:
    """Overlong forms, surrogates and cut-off characters are no text."""
    with pytest.raises(InvalidRequest, match="UTF-8"):
        percent_decode(raw)


@pytest.mark.parametrize(
    ("raw_path", "key"),
    [
        (b"/v1/objects/abc/_", None),
        (b"/v1/objects/abc/_/", None),
        (b"/v1/objects/abc/_//", "/"),
        (b"/v1/objects/abc/_/a/", "a/"),
        (b"/v1/objects/abc/_/%2F", "/"),
        (b"/v1/objects/abc/_/a//b/../c", "a//b/../c"),
    ],
)
def test_the_key_is_the_rest_of_the_path(raw_path: bytes, key: str | None) -> None:
    """One slash ends the scopes; all others are the key's. Without a rest, it is the namespace."""
    address = PARSER.parse(raw_path)
    assert address is not None
    assert address.key == key
    assert address.namespace.usecase == "abc"
    assert address.namespace.scopes == ()


@pytest.mark.parametrize("raw_path", [b"/v1/objects/", b"/v1/objects/abc", b"/v1/objects/abc/", b"/v1/objects///k"])
def test_a_path_without_scopes_is_no_address(raw_path: bytes) -> None:
    """What names no namespace is nothing, rather than malformed."""
    assert PARSER.parse(raw_path) is None


@pytest.mark.parametrize(
    "raw_path",
    [
        b"/v1/objects/ab/_/k",
        b"/v1/objects/" + b"u" * 65 + b"/_/k",
        b"/v1/objects/a.b/_/k",
        b"/v1/objects/a%2Fb/_/k",
        b"/v1/objects/abc/org/k",
        b"/v1/objects/abc/org=/k",
        b"/v1/objects/abc/=1/k",
        b"/v1/objects/abc/org=1;/k",
        b"/v1/objects/abc/org=1,b=2/k",
        b"/v1/objects/abc/org=1%2F2/k",
        b"/v1/objects/abc/org=%20/k",
        b"/v1/objects/abc/_;a=b/k",
        b"/v1/objects/abc/_/%zz",
        b"/v1/objects/abc/%/k",
        *(b"/v1/objects/abc/_/" + every_byte_escaped(key) for key in INVALID_KEYS[4:]),
    ],
)
def test_malformed_addresses_are_refused(raw_path: bytes) -> None:
    """Bad usecases, scopes, keys and escapes are mistakes of the client."""
    with pytest.raises(InvalidRequest):
        PARSER.parse(raw_path)


def test_refusals_are_not_remembered() -> None:
    """The same bad namespace is refused each time, and a good one is the same each time."""
    for _ in range(3):
        with pytest.raises(InvalidRequest):
            PARSER.parse(b"/v1/objects/ab/_/k")
    assert PARSER.parse(b"/v1/objects/abc/a=1/k") == PARSER.parse(b"/v1/objects/abc/a=1/k")


@pytest.mark.parametrize(
    ("raw", "parameters"),
    [
        (b"", {}),
        (b"&&", {}),
        (b"upload_type=resumable", {"upload_type": "resumable"}),
        (b"a=1&b=2&a=3", {"a": "3", "b": "2"}),
        (b"session", {"session": ""}),
        (b"a=b=c", {"a": "b=c"}),
        (b"%61=%26%3D", {"a": "&="}),
        (b"a=1+2", {"a": "1+2"}),
    ],
)
def test_queries_are_decoded_once(raw: bytes, parameters: dict[str, str]) -> None:
    """Names and values are separated first and decoded then."""
    assert parse_query(raw) == parameters


def test_malformed_queries_are_refused() -> None:
    """As in paths."""
    with pytest.raises(InvalidRequest):
        parse_query(b"a=%zz")


@pytest.mark.parametrize("object_id", HOSTILE_IDS, ids=range(len(HOSTILE_IDS)))
def test_keys_are_the_same_below_every_prefix(object_id: ObjectId) -> None:
    """The addresses of uploads have the same rules of keys as those of objects."""
    prefix = b"/v1/objects:multipart:parts/"
    address = PARSER.parse(object_path(object_id).replace(b"/v1/objects/", prefix, 1), prefix)
    assert address is not None
    assert address.key is not None
    assert address.object_id(address.key) == object_id


def test_single_parameters() -> None:
    """Of a query, the named parameters, decoded once; repeated ones and malformed escapes are refused, others not."""
    assert parse_single(b"a=%2531&b=2&x=1&x=2&&c", ("a", "b", "c")) == {"a": "%31", "b": "2", "c": ""}
    assert parse_single(b"", ("a",)) == {}
    for raw in (b"a=1&a=1", b"a&%61=", b"a=%zz", b"x=%ff"):
        with pytest.raises(InvalidRequest):
            parse_single(raw, ("a",))
