"""How many requests are at work in a process: more than ``max_requests`` are refused at once.

A request that waits for its client, for bytes of its body or for somebody to take its answer, has no place meanwhile:
clients that are slow, or mean to be, take nobody's. When it goes on, it is let in without asking, as it must not fail
for having been started; so at times a few more are at work. Those that wait are bounded with the connections they are
on (`tierstore.http.crowd`).
"""

from tierstore import telemetry
from tierstore.errors import Overloaded


class RequestPlaces:
    """The places of one process."""

    def __init__(self, requests_max: int) -> None:
        self._requests_max = requests_max
        self.at_work = 0

    def take(self) -> "Place":
        """A place; it is to be ended. Raises `Overloaded`."""
        if self.at_work >= self._requests_max:
            raise Overloaded("the server has as many requests under way as it takes; try again")
        return Place(self)

    def _move(self, by: int) -> None:
        self.at_work += by
        if by > 0:
            telemetry.requests_in_flight.inc()
        else:
            telemetry.requests_in_flight.dec()


class Place:
    """One request's place. Taken when it is made."""

    __slots__ = ("_ended", "_held", "_places")

    def __init__(self, places: RequestPlaces) -> None:
        self._places = places
        self._held = False
        self._ended = False
        self.resume()

    def leave(self) -> None:
        """The request waits for its client from now on."""
        if self._held:
            self._held = False
            self._places._move(-1)  # noqa: SLF001  # because a place is the other half of its places

    def resume(self) -> None:
        """The request goes on."""
        if not self._held and not self._ended:
            self._held = True
            self._places._move(1)  # noqa: SLF001  # because a place is the other half of its places

    def end(self) -> None:
        """The request is over: nothing takes a place for it any more."""
        self._ended = True
        self.leave()
