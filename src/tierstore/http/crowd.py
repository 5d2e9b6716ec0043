"""The clients of one worker together: how many connections there are, what they hold, and which of them give way.

A connection costs its client nothing. So those on which the server waits for the client (for a request, for the rest of
a body, for somebody to take an answer) may be many, but not without end, and they may never keep others from being
served. Guarantees:

- At most ``connections_max`` connections. For one more, those give way whose clients have been waited for longest; if
  there are none, all of them busy, it is the new one that is refused.
- What clients have sent and the server must keep, and what they have not taken of their answers, is at most
  ``client_bytes_max``, about: beyond it those give way in the same order that hold something, and while that does not
  help, requests with bodies are refused.
- Nobody gives way who keeps to ``patience_seconds``, nor a request that is being worked on.
- A look at all of them is paid for: it ends several connections, or is not repeated for a while.

Does not: bound a single connection (`tierstore.http.connection`), or requests at work (`tierstore.http.places`).
"""

from abc import ABC, abstractmethod
from typing import Final

from tierstore import telemetry
from tierstore.clock import Clock
from tierstore.errors import Overloaded
from tierstore.invariants import invariant
from tierstore.limits import Limits

_SHARE_MADE_FREE: Final = 32
"""Of all there may be, one in so many is made free at once."""
_FUTILE_SECONDS: Final = 0.25
"""After a look that found nobody, there is none for so long."""


class Member(ABC):
    """A connection, as the crowd sees it."""

    crowd_bytes: int = 0
    """What it holds; the crowd's own account."""

    @abstractmethod
    def waited_since(self, now: float) -> float | None:
        """Since when its client has been waited for, without due progress; None if there is nothing to wait for.

        By the crowd's clock, as is ``now``.
        """

    @abstractmethod
    def give_way(self) -> None:
        """End it, with an answer if one can be given. Does not raise, and does not call the crowd for others."""


class Crowd:
    """The connections of one event loop."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self.clock = clock
        self._connections_max = limits.connections_max
        self._bytes_max = limits.client_bytes_max
        self._patience_seconds = limits.patience_seconds
        self._members: dict[Member, None] = {}
        self._look_after = {False: float("-inf"), True: float("-inf")}
        self.bytes_held = 0
        telemetry.connections_max.set(limits.connections_max)

    def __len__(self) -> int:
        return len(self._members)

    def join(self, member: Member) -> bool:
        """Take ``member`` in, at the cost of others if need be; False if there is no room."""
        if len(self._members) >= self._connections_max:
            wanted = max(1, self._connections_max // _SHARE_MADE_FREE)
            for given_up in self._those_that_wait()[:wanted]:
                self._end(given_up, "connections")
        if len(self._members) >= self._connections_max:
            telemetry.connections_ended.labels("refused").inc()
            return False
        self._members[member] = None
        telemetry.connections_open.inc()
        return True

    def leave(self, member: Member) -> None:
        """``member`` is no more, or never was one."""
        self.bytes_held -= member.crowd_bytes
        member.crowd_bytes = 0
        if member in self._members:
            del self._members[member]
            telemetry.connections_open.dec()

    def hold(self, member: Member, size: int) -> None:
        """``member`` now holds ``size`` bytes. Others may be ended for it, and so may it."""
        if member not in self._members:
            return
        grown = size - member.crowd_bytes
        member.crowd_bytes = size
        self.bytes_held += grown
        invariant(self.bytes_held >= 0, "nothing is given back twice")
        if grown > 0 and self.bytes_held > self._bytes_max:
            self._make_room()

    def check_room(self) -> None:
        """Raise `Overloaded` if there is no room for another body."""
        if self.bytes_held >= self._bytes_max:
            self._make_room()
            if self.bytes_held >= self._bytes_max:
                raise Overloaded("the server holds as much for its clients as it can; try again")

    def _make_room(self) -> None:
        wanted = self._bytes_max - self._bytes_max // _SHARE_MADE_FREE
        for given_up in self._those_that_wait(holding=True):
            if self.bytes_held <= wanted:
                break
            self._end(given_up, "memory")

    def _end(self, member: Member, reason: str) -> None:
        self.leave(member)
        telemetry.connections_ended.labels(reason).inc()
        member.give_way()

    def _those_that_wait(self, *, holding: bool = False) -> list[Member]:
        """Whose clients have had their time, the longest first."""
        now = self.clock.monotonic()
        if now < self._look_after[holding]:
            return []
        waiting: list[tuple[float, int, Member]] = []
        for number, member in enumerate(self._members):
            if holding and not member.crowd_bytes:
                continue
            since = member.waited_since(now)
            if since is not None and now - since >= self._patience_seconds:
                waiting.append((since, number, member))
        if not waiting:
            self._look_after[holding] = now + _FUTILE_SECONDS
        waiting.sort()
        return [member for _, _, member in waiting]
