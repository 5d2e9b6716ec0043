"""Which types a browser may open, be they media types at all; the wire's laws are in `tests.http.test_browsers`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore.http.browsers import may_be_opened


@given(st.text(max_size=30))
def test_what_is_no_type_is_not_opened(text: str) -> None:
    """Text that is not, but for case, parameters and space, on the list is not opened; be it no type at all."""
    essence = text.split(";", maxsplit=1)[0].strip(" \t").lower()
    inert = essence in {"text/plain", "application/json"} or essence.startswith(("image/", "audio/", "video/"))
    assert inert or not may_be_opened(text)


@pytest.mark.parametrize("spaces", ["", " ", "\t", " \t "])
@pytest.mark.parametrize("behind", ["", ";", "; charset=utf-8", "; a=text/plain", ";" + "a" * 200])
def test_spaces_case_and_parameters_mean_nothing(spaces: str, behind: str) -> None:
    """What is inert is so however it is written, and so is what is not."""
    for inert in ("text/plain", "TEXT/PLAIN", "image/Png"):
        assert may_be_opened(f"{spaces}{inert}{spaces}{behind}")
    for active in (
        "text/html",
        "Text/HTML",
        "image/svg+xml",
        "",
        "html",
        "text/plain,text/html",
        "text/plain text/html",
    ):
        assert not may_be_opened(f"{spaces}{active}{spaces}{behind}")
