"""What a seed decides: the settings of each server, the faults of each round, the requests of each client."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random

from tierstore.limits import KIB, MIB

CLIENTS = 6
HOT_KEYS = 4
QUIET_KEYS_PER_ROUND = 3
INLINE_MAX_BYTES = 64 * KIB
PATIENCE_SECONDS = 1.2
"""How long a client waits for an answer; pauses are shorter and longer."""

Config = Mapping[str, Mapping[str, object]]


class Fault(Enum):
    """What is done to the server."""

    KILL_WORKER = "worker_kills"
    KILL_GROUP = "group_kills"
    RESTART = "restarts"
    PAUSE = "pauses"
    FULL_DISK = "full_disks"
    KILL_SERVER = "server_kills"
    """One of several."""
    KILL_ENGINE = "engine_kills"
    PAUSE_ENGINE = "engine_pauses"
    CUT_LINE = "line_cuts"
    BLOCK_LINE = "line_blocks"
    HOLD_LINE = "line_holds"


ENGINE_FAULTS = frozenset(
    {Fault.KILL_SERVER, Fault.KILL_ENGINE, Fault.PAUSE_ENGINE, Fault.CUT_LINE, Fault.BLOCK_LINE, Fault.HOLD_LINE}
)
"""Those of several servers on engines."""


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """A fault, and when it comes, in seconds from the beginning of its round."""

    at: float
    fault: Fault
    choice: int = 0
    """Which worker, server, engine or line, modulo how many there are; or how many bytes are left on the disk."""
    seconds: float = 0.0
    """How long a pause or a full disk lasts, or a server or an engine stays away."""


@dataclass(frozen=True, slots=True)
class Round:
    """A time of load, and the faults in it, in order."""

    seconds: float
    faults: Sequence[PlannedFault]


class Action(Enum):
    """What a client does next."""

    PUT = "put"
    DELETE = "delete"
    GET = "get"
    RANGE = "get a range"
    HEAD = "head"
    UPLOAD = "upload"
    RESUME = "go on with an upload"
    COMPLETE_AGAIN = "complete again"
    SESSION = "resumable upload"
    GO_ON = "go on with a resumable upload"
    ASK_AGAIN = "ask again what became of a resumable upload"


WEIGHTS: Mapping[Action, int] = {
    Action.PUT: 26,
    Action.DELETE: 9,
    Action.GET: 22,
    Action.RANGE: 6,
    Action.HEAD: 6,
    Action.UPLOAD: 14,
    Action.RESUME: 8,
    Action.COMPLETE_AGAIN: 7,
    Action.SESSION: 8,
    Action.GO_ON: 5,
    Action.ASK_AGAIN: 4,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of one campaign: everything follows from ``seed``."""

    seed: int
    small_disk: bool
    """Whether its disk is small enough to be filled."""
    round_seconds: float

    def servers(self) -> int:
        """How many servers there are, side by side."""
        return 1

    def workers(self) -> int:
        """How many processes of each serve, for the whole campaign."""
        return self._random("workers").choice([2, 2, 3])

    def part_bytes_min(self) -> int:
        """How many bytes each part of an upload has, but the last; 0 for any."""
        return 0

    def weights(self) -> Mapping[Action, int]:
        """How often clients draw what."""
        return WEIGHTS

    def seconds_after_faults(self) -> float:
        """How long the load of a round goes on behind its last fault, at least."""
        return 0.0

    def retention_seconds(self) -> float:
        """How long an upload that nobody completes is left alone."""
        return self._random("retention").choice([4.0, 3600.0])

    def config(self, life: int) -> Config:
        """The settings of the server's process group number ``life``: sweepers from polite to reckless."""
        random = self._random(f"config {life}")
        reserve = random.choice([0, 256 * KIB, MIB])
        return {
            "tiering": {"inline_max": INLINE_MAX_BYTES, "operation_deadline": random.choice([2, 5, 5, 60])},
            "sweeper": {"grace": random.choice([0, 0, 1, 60]), "second_visit": random.choice([0, 1]), "period": 1},
            "uploads": {"retention": self.retention_seconds()},
            "http": {"shutdown_grace": 3},
            "long_term": {"reserve": 2 * reserve},
            "high_volume": {"reserve": reserve, "readers": random.choice([1, 4])},
        }

    def rounds(self) -> Iterator[Round]:
        """Rounds without end. Each kind comes before one of them comes a second time."""
        random = self._random("rounds")
        kinds = self._kinds()
        while True:
            for kind in random.sample(kinds, len(kinds)):
                faults = sorted(kind(random), key=lambda planned: planned.at)
                yield Round(self.round_seconds, faults)

    def _kinds(self) -> Sequence[Callable[[Random], list[PlannedFault]]]:
        """What gives the faults of a round, for each kind of round."""
        kinds = [self._kills, self._kills, self._pauses, self._long_pauses, self._group, self._restart, self._mixture]
        if self.small_disk:
            kinds += [self._full_disk, self._full_disk, self._killed_on_a_full_disk]
        return kinds

    def client(self, round_number: int, client: int) -> Random:
        """Where the requests of one client in one round are drawn from."""
        return self._random(f"client {round_number} {client}")

    def _random(self, purpose: str) -> Random:
        return Random(f"{self.seed}/{purpose}")

    def _at(self, random: Random, latest: float = 0.95) -> float:
        return random.uniform(0.1, latest) * self.round_seconds

    def _kills(self, random: Random) -> list[PlannedFault]:
        count = random.randint(1, 4)
        return [PlannedFault(self._at(random), Fault.KILL_WORKER, random.randrange(64)) for _ in range(count)]

    def _pauses(self, random: Random) -> list[PlannedFault]:
        """Many short ones: each may fall between two steps of an operation, so that others come between them."""
        count = random.randint(8, 20)
        return [self._pause(random, random.choice([0.01, 0.03, 0.1, 0.3])) for _ in range(count)]

    def _long_pauses(self, random: Random) -> list[PlannedFault]:
        count = random.randint(1, 2)
        return [self._pause(random, PATIENCE_SECONDS + random.uniform(0.2, 1.5), latest=0.5) for _ in range(count)]

    def _pause(self, random: Random, seconds: float, latest: float = 0.95) -> PlannedFault:
        return PlannedFault(self._at(random, latest), Fault.PAUSE, random.randrange(64), seconds)

    def _group(self, random: Random) -> list[PlannedFault]:
        return [PlannedFault(self._at(random, 0.7), Fault.KILL_GROUP)]

    def _restart(self, random: Random) -> list[PlannedFault]:
        return [PlannedFault(self._at(random, 0.5), Fault.RESTART)]

    def _mixture(self, random: Random) -> list[PlannedFault]:
        paused_when_killed = self._pause(random, 5.0, latest=0.3)
        return [*self._kills(random), paused_when_killed, PlannedFault(0.75 * self.round_seconds, Fault.KILL_GROUP)]

    def _full_disk(self, random: Random) -> list[PlannedFault]:
        left = random.choice([0, 0, 64 * KIB, 512 * KIB])
        return [
            PlannedFault(self._at(random, 0.4), Fault.FULL_DISK, left, random.uniform(0.2, 0.5) * self.round_seconds)
        ]

    def _killed_on_a_full_disk(self, random: Random) -> list[PlannedFault]:
        full = PlannedFault(0.15 * self.round_seconds, Fault.FULL_DISK, 0, 0.6 * self.round_seconds)
        kill = random.choice([Fault.KILL_WORKER, Fault.KILL_GROUP])
        return [full, PlannedFault(self._at(random, 0.6) + full.at, kill, random.randrange(64))]
