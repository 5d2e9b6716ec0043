"""Where each planted bug shows: one operation with one kind of fault, and what is wrong then."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Showing:
    """Where a planted bug shows."""

    operation: str
    fault: str
    violation: str


_LATE = "arrives late, after a sweep"
_DANGLES = "a tombstone dangles"
_LOOSE = "a blob is neither referenced nor in the log"
_UNTRUE = "complete was said not to have happened, and did"
_AGAIN = "complete again what is being overwritten"

SHOWN: Mapping[str, Showing] = {
    "version-cas": Showing("small over large", _LATE, _LOOSE),
    "gone-marker": Showing("large over nothing", _LATE, _DANGLES),
    "token": Showing("large over small", _LATE, _DANGLES),
    "pointer": Showing("large over large", "overtaken by a large write", _LOOSE),
    "record-old": Showing("delete large", "process dies after it", _LOOSE),
    "revalidate": Showing("large over nothing", "overtaken by a sweeper", _DANGLES),
    "old-check": Showing(_AGAIN, "fails", "a revision was committed twice"),
    "mark-done": Showing("complete again what was overwritten", "fails", _UNTRUE),
    "condemned-check": Showing("complete over nothing", "overtaken by another attempt", _DANGLES),
    "abort-first": Showing("complete over small", "arrives late, after all is settled", _LOOSE),
    "fence": Showing("delete large", _LATE, _LOOSE),
    "time": Showing("large over nothing", "process paused", _DANGLES),
    "second visit": Showing("large over nothing", _LATE, "after the sweeps: an orphan"),
}
"""By the rule that is taken away; the bugs are those of `tierstore.testing.planted`."""
