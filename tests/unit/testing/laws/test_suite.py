"""The base of law suites: no backend can switch a law off."""

import pytest

from tierstore.testing.laws.suite import LawSuite


class Laws(LawSuite):
    """A suite with two laws and a helper. Not collected: it has no name of a test class."""

    def test_one(self) -> None:
        """A law."""

    async def test_two(self) -> None:
        """Another law."""

    def helper(self) -> int:
        """No law."""
        return 1


class Wider(Laws):
    """A suite built on another one."""

    def test_three(self) -> None:
        """A third law."""


@pytest.mark.parametrize("base", [Laws, Wider])
@pytest.mark.parametrize("name", ["test_one", "test_two"])
@pytest.mark.parametrize("value", [None, lambda _self: None])
def test_a_law_cannot_be_redefined(base: type[LawSuite], name: str, value: object) -> None:
    """A class that gives a law another body, or none, cannot be defined."""
    with pytest.raises(TypeError, match=f"TestIt redefines a law of its suite: {name}"):
        type("TestIt", (base,), {name: value})


def test_a_law_cannot_be_redefined_from_aside() -> None:
    """A class that inherits a law from two sides, one of them not its suite, cannot put the other before it."""
    aside = type("Aside", (LawSuite,), {"test_one": lambda _self: None})
    with pytest.raises(TypeError, match="TestIt hides a law of its suite: test_one"):
        type("TestIt", (aside, Laws), {})
    with pytest.raises(TypeError, match="TestIt hides a law of its suite: test_two"):
        type("TestIt", (type("Mixin", (), {"test_two": None}), Laws), {})


@pytest.mark.parametrize("switch", ["pytestmark", "__test__"])
def test_a_suite_cannot_be_switched_off(switch: str) -> None:
    """A class that is marked, or not collected, cannot be defined."""
    with pytest.raises(TypeError, match=f"switch the laws of its suite off: {switch}"):
        type("TestIt", (Wider,), {switch: False})


def test_what_a_backend_supplies_is_its_own() -> None:
    """Helpers may be replaced and tests added; laws are those of all suites above."""
    test_it = type("TestIt", (Wider,), {"helper": lambda _self: 2, "test_mine": lambda _self: None})
    assert getattr(test_it, "laws", None) == {"test_one", "test_two", "test_three", "test_mine"}
    assert Wider.laws == {"test_one", "test_two", "test_three"}
