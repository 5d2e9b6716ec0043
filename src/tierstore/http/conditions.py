"""Conditions on mutations (RFC 9110, section 13.1): refused, for objects have no validators, and never passed over."""

from collections.abc import Iterable

from tierstore.errors import NotOffered

_CONDITIONS = frozenset({b"if-match", b"if-none-match", b"if-unmodified-since"})


def refuse_conditions(names: Iterable[bytes]) -> None:
    """Raise `NotOffered` if one of the headers with these ``names``, in lower case, makes a mutation conditional."""
    if not _CONDITIONS.isdisjoint(names):
        raise NotOffered("this release does not offer conditional requests; objects have no validators")
