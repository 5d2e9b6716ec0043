"""The base of all law suites: tests that every backend of a kind must pass, and that none can switch off.

A suite is a class whose ``test_…`` methods are the laws and whose abstract methods are what a backend's test module
supplies: a factory and a back door to the raw store. Deriving a class that redefines a law, or marks or hides the
suite, fails where the class is defined, and so at collection.
"""

from abc import ABC
from typing import Any, ClassVar

_SWITCHES = ("pytestmark", "__test__")
"""Attributes by which pytest skips, expects to fail, or does not collect a whole class."""


class LawSuite(ABC):  # noqa: B024  # because what is abstract differs from suite to suite
    """Derive a suite from this, and from the suite a class ``Test…`` for each backend."""

    laws: ClassVar[frozenset[str]] = frozenset()
    """Names of the laws of this class and of those it derives from."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        inherited = frozenset[str]().union(*(getattr(base, "laws", ()) for base in cls.__bases__))
        own = frozenset(vars(cls))
        if redefined := sorted(own & inherited):
            raise TypeError(f"{cls.__name__} redefines a law of its suite: {', '.join(redefined)}")
        if inherited and (switches := sorted(own.intersection(_SWITCHES))):
            raise TypeError(f"{cls.__name__} would switch the laws of its suite off: {', '.join(switches)}")
        cls.laws = inherited | {name for name in own if name.startswith("test_")}
        if hidden := sorted(name for name in inherited if _owner_count(cls, name) > 1):
            raise TypeError(f"{cls.__name__} hides a law of its suite: {', '.join(hidden)}")


def _owner_count(cls: type, name: str) -> int:
    """How many classes above ``cls`` define ``name``: with more than one, only the first would be run."""
    return sum(name in vars(base) for base in cls.__mro__)
