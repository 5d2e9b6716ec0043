"""Which requests a killswitch or an extra limit means: conditions on usecase, scopes and calling service.

Guarantees: a condition holds only if all its parts hold; a part that is left out holds always; a condition of no parts
cannot be made, for it would mean everything. A pattern is tried in time that its text and the name allow, whatever
callers send. Does not: know who a caller is; the service is what the request says of itself.
"""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tierstore.errors import InvalidRequest
from tierstore.types.ids import Scope, check_scopes, parse_usecase

_SERVICE = re.compile(r"[A-Za-z0-9._-]{1,253}")
"""What names a service: a DNS name (RFC 1123), with the underscores that people use all the same."""
_POD_SUFFIX = re.compile(
    r"(?<=.)(?:"
    r"-[bcdfghjklmnpqrstvwxz2456789]{5,10}-[bcdfghjklmnpqrstvwxz2456789]{5}"  # Kubernetes' own alphabet has no vowels
    r"|-(?=[a-z]*[0-9])[a-z0-9]{8,10}-[a-z0-9]{5}"  # other hashes: a digit tells them from a word
    r"|-[0-9]{1,5}"  # the ordinal of a stateful set
    r")"
)


def downstream_service(given: bytes | None) -> str | None:
    """The calling service by its header, without the suffix of its pod.

    None without a header, and for a value that names no service: it matches no condition.
    """
    if given is None:
        return None
    name = given.decode("latin-1").strip(" \t")
    if _SERVICE.fullmatch(name) is None:
        return None
    for match in _POD_SUFFIX.finditer(name):
        if match.end() == len(name):
            return name[: match.start()]
    return name


@dataclass(frozen=True, slots=True)
class Condition:
    """What a request must be like. Raises `InvalidRequest` when made of what no request can be like."""

    usecase: str | None = None
    scopes: tuple[Scope, ...] = ()
    """All of them must be among the request's, in any order."""
    service: str | None = None
    """A pattern with ``*``, ``?`` and ``[…]``; a request that names no service does not match it."""
    _pattern: re.Pattern[str] | None = field(init=False, repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        if self.usecase is None and not self.scopes and self.service is None:
            raise InvalidRequest("a condition has a usecase, scopes or a service")
        if self.usecase is not None:
            parse_usecase(self.usecase)
        check_scopes(self.scopes)
        pattern = None if self.service is None else re.compile(fnmatch.translate(self.service))
        object.__setattr__(self, "_pattern", pattern)

    def holds(self, usecase: str, scopes: Sequence[Scope], service: str | None) -> bool:
        """Whether a request is like that."""
        if self.usecase is not None and self.usecase != usecase:
            return False
        if not all(scope in scopes for scope in self.scopes):
            return False
        return self._pattern is None or (service is not None and self._pattern.match(service) is not None)


def condition(usecase: str | None, scopes: Mapping[str, str | int], service: str | None) -> Condition:
    """A condition as settings have it, where the value of a scope may look like a number. Raises `InvalidRequest`."""
    return Condition(usecase, tuple(Scope(name, str(value)) for name, value in scopes.items()), service)
