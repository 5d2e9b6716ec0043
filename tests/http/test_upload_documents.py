"""What completes an upload, read; and what a failed completion is called."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.http.harness import LIMITS
from tests.http.test_responses import LEAVES, made
from tierstore import errors
from tierstore.errors import InvalidDocument, InvalidRequest, TierstoreError
from tierstore.http.uploads import CODE_BY_ERROR, INTERNAL_ERROR, code_of, parse_parts
from tierstore.types.multipart import PartName

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["parts", "part_number", "etag", "x"]), inner, max_size=3),
        st.builds(lambda number, etag: {"part_number": number, "etag": etag}, st.integers(-1, 20), st.text(max_size=3)),
        st.builds(lambda parts: {"parts": parts}, st.lists(inner, max_size=3)),
    ),
    max_leaves=8,
)


@given(st.one_of(st.binary(max_size=60), JSON.map(lambda content: json.dumps(content).encode())))
@settings(max_examples=200, deadline=None)
def test_documents_are_parsed_or_refused(body: bytes) -> None:
    """Any bytes become parts within bounds, or a client's mistake."""
    try:
        parts = parse_parts(body, LIMITS)
    except (InvalidRequest, InvalidDocument):
        return
    assert 1 <= len(parts) <= LIMITS.parts_max
    assert all(1 <= part.number <= LIMITS.parts_max and part.etag.isascii() for part in parts)


def test_unknown_fields_are_passed_over() -> None:
    """Other clients may send more than is asked for."""
    body = b'{"parts": [{"part_number": 2, "etag": "e", "size": 1}, {"etag": "d", "part_number": 1}], "x": []}'
    assert list(parse_parts(body, LIMITS)) == [PartName(2, "e"), PartName(1, "d")]


@pytest.mark.parametrize("kind", LEAVES)
def test_every_error_has_a_code(kind: type[TierstoreError]) -> None:
    """Each leaf of the tree has a code, and it is that of a client's mistake only if it is one."""
    code = code_of(made(kind))
    assert code in CODE_BY_ERROR.values()
    assert (code == "ServiceUnavailable") == issubclass(kind, errors.Unavailable)
    ours = not issubclass(kind, errors.ClientMistake | errors.Unavailable)
    assert (code == INTERNAL_ERROR) == ours


def test_what_is_not_ours_is_a_fault() -> None:
    """An error from elsewhere has a code too."""
    assert code_of(RuntimeError("x")) == INTERNAL_ERROR
