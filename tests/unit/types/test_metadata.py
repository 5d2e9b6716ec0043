"""Metadata values: what may stand in them, and deadlines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.types.strategies import media_types, texts
from tierstore.clock import MICROS_PER_SECOND
from tierstore.types.metadata import (
    Manual,
    Metadata,
    TimeToIdle,
    TimeToLive,
    deadline,
    is_custom_name,
    is_media_type,
)


@given(media_types())
def test_media_types(text: str) -> None:
    """Type, subtype, parameters with tokens or quoted strings: what RFC 9110 allows is a media type."""
    assert is_media_type(text)


@pytest.mark.parametrize(
    "text",
    [
        "text/plain",
        "application/vnd.api+json",
        "text/plain;charset=utf-8",
        'multipart/form-data; boundary="a b;\\"c\\\\"',
        "text/plain;",
        "text/plain ; ; charset=utf-8",
        "a/b;" + "p=v;" * 100,
        "*/*",
    ],
)
def test_some_media_types(text: str) -> None:
    """Suffixes, quoted pairs, empty parameters, long ones."""
    assert is_media_type(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "text", "text/", "/plain", "text/plain/x", "text plain", "text /plain", "text/plain charset=utf-8",
        " text/plain",
        "text/plain ", "text/plain; charset", "text/plain; charset=", "text/plain; charset =utf-8",
        'text/plain; charset="utf-8',
        'text/plain; charset="utf-8"x', "text/plain, text/html", "text/pl\u00e4in", 'text/plain; a="\u00e9"',
        "text/plain\n",
        "text/plain\r\nx: y", 'text/plain; a="\r\nx: y"', "text/plain\x00",
        'a/b; c="\\\u00e9"', 'a/b; c="\\\n"',
        "a/b" + ";" * 100_000 + "!",
        "a/b" + " ; " * 30_000 + "!", "a/b;c=" + '"' + "\\a" * 30_000,
    ],
)  # fmt: skip
def test_no_media_types(text: str) -> None:
    """Half a type, spaces out of place, open quotes, line ends, bytes beyond ASCII: refused, and quickly."""
    assert not is_media_type(text)


@given(texts(), st.text(st.characters(max_codepoint=0x7F)))
def test_a_media_type_cannot_break_a_header(text: str, ascii_text: str) -> None:
    """Whatever is accepted is ASCII without control characters, but for the tab."""
    for candidate in (text, ascii_text, f'a/b;c="{ascii_text}"', f"a/b;{ascii_text}", f"{ascii_text}/{ascii_text}"):
        if is_media_type(candidate):
            assert candidate.isascii()
            assert candidate.replace("\t", "").isprintable()


@given(texts())
def test_a_custom_name_cannot_break_a_header(text: str) -> None:
    """Whatever is accepted is visible, lower-case ASCII without separators."""
    if is_custom_name(text):
        assert text.isascii()
        assert text.isprintable()
        assert text == text.lower() != ""
        assert not set(text) & set(' "(),/:;<=>?@[\\]{}')


@pytest.mark.parametrize("name", ["a", "foo-bar", "0", "a.b_c~d", "!#$%&'*+-.^_`|~", "n" * 1_000])
def test_custom_names(name: str) -> None:
    """Every token without upper-case letters is a name."""
    assert is_custom_name(name)


@pytest.mark.parametrize("name", ["", "A", "a b", "a:", "a\n", "\u00e9", "a/b", "a\x00", "(a)", "n" * 1_000 + "N"])
def test_no_custom_names(name: str) -> None:
    """Upper case, separators, control characters, nothing at all: refused."""
    assert not is_custom_name(name)


def test_deadlines() -> None:
    """Both kinds count whole seconds from the start they are given; manual objects have no deadline."""
    assert deadline(Manual(), 5) is None
    assert deadline(TimeToLive(2), 5) == 5 + 2 * MICROS_PER_SECOND
    assert deadline(TimeToIdle(3), 5) == 5 + 3 * MICROS_PER_SECOND


def test_metadata_is_a_value() -> None:
    """Metadata compares and hashes by its content, and does not change."""
    metadata = Metadata(origin="here")
    assert metadata == Metadata(origin="here") != Metadata()
    assert hash(metadata) == hash(Metadata(origin="here"))
    with pytest.raises(AttributeError):
        metadata.origin = "there"  # type: ignore[misc]  # because the refusal is what is tested
