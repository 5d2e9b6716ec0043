"""The look at the clock that a long-term store takes right before it makes something that only time can give up."""

from tierstore.clock import Clock, UnixMicros
from tierstore.errors import GivenUp


def check_not_late(clock: Clock, not_after: UnixMicros | None) -> None:
    """Raise `GivenUp` when ``not_after`` is over. To be called in the step that makes a blob or an upload appear."""
    if not_after is not None and clock.now() > not_after:
        raise GivenUp("the write took longer than an operation may; try again")
