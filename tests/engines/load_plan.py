"""What a seed decides of a load on engines: two servers side by side, and the faults of each round.

One server is killed, and comes back; each engine that keeps what it has is killed and started again, or stands still;
a line to one that does not is cut, blocked and held.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from tests.kill.plan import INLINE_MAX_BYTES, WEIGHTS, Action, Config, Fault, Plan, PlannedFault, Round

SERVERS = 2
_DOWN_SECONDS_MAX = 0.5
"""How long an engine stays away before it is started again, at most."""
_STILL_SECONDS = (0.05, 0.5, 2.0)
"""How long an engine stands still, or a line is held: shorter and longer than clients are patient."""


@dataclass(frozen=True, slots=True)
class EnginePlan(Plan):
    """The plan of one campaign on so many engines, and lines to engines."""

    engines: int = 0
    lines: int = 0
    least: int = 0
    """How many bytes each part of an upload has, but the last."""

    def servers(self) -> int:
        return SERVERS

    def workers(self) -> int:
        return 1

    def part_bytes_min(self) -> int:
        return self.least

    def weights(self) -> Mapping[Action, int]:
        """More uploads of both kinds: less gets done while engines are away."""
        return {**WEIGHTS, Action.UPLOAD: 24, Action.SESSION: 24, Action.GO_ON: 12}

    def seconds_after_faults(self) -> float:
        return 0.5 * self.round_seconds

    def retention_seconds(self) -> float:
        return 3600.0

    def config(self, life: int) -> Config:
        random = self._random(f"config {life}")
        return {
            "tiering": {"inline_max": INLINE_MAX_BYTES, "operation_deadline": random.choice([5, 60])},
            "sweeper": {"grace": random.choice([1, 60]), "second_visit": random.choice([0, 1]), "period": 1},
            "uploads": {"retention": self.retention_seconds()},
            "http": {"shutdown_grace": 3},
        }

    def rounds(self) -> Iterator[Round]:
        """The first one has everything, so that a short campaign has it, too."""
        random = self._random("first round")
        yield Round(self.round_seconds, sorted(self._all_of_them(random), key=lambda planned: planned.at))
        yield from Plan.rounds(self)  # the class was made anew, for its slots: super() knows only the old one

    def _kinds(self) -> Sequence[Callable[[Random], list[PlannedFault]]]:
        return [self._all_of_them, *([self._server_and_engine] if self.engines or self.lines else []), self._stillness]

    def _all_of_them(self, random: Random) -> list[PlannedFault]:
        """Every engine, every line and a server, one after the other."""
        harmed = [self._engine_killed(random, number) for number in range(self.engines)]
        harmed += [self._line_broken(random, number) for number in range(self.lines)]
        return [*random.sample(harmed, len(harmed)), self._server_killed(random)]

    def _server_and_engine(self, random: Random) -> list[PlannedFault]:
        """A server comes back while an engine is down."""
        killed = PlannedFault(0.1 * self.round_seconds, Fault.KILL_SERVER, random.randrange(64), 0.0)
        down = PlannedFault(killed.at, Fault.KILL_ENGINE, random.randrange(64), _DOWN_SECONDS_MAX)
        if not self.engines:
            down = PlannedFault(killed.at, Fault.BLOCK_LINE, random.randrange(64), 2 * _DOWN_SECONDS_MAX)
        return [killed, down]

    def _stillness(self, random: Random) -> list[PlannedFault]:
        """Engines, lines and servers stand still for a while."""
        faults = [
            PlannedFault(self._at(random), Fault.PAUSE_ENGINE, number, random.choice(_STILL_SECONDS))
            for number in range(self.engines)
        ]
        faults += [
            PlannedFault(self._at(random), Fault.HOLD_LINE, number, random.choice(_STILL_SECONDS))
            for number in range(self.lines)
        ]
        return [*faults, *[self._pause(random, random.choice([0.03, 0.3])) for _ in range(4)]]

    def _server_killed(self, random: Random) -> PlannedFault:
        return PlannedFault(self._at(random, 0.7), Fault.KILL_SERVER, random.randrange(64), random.uniform(0.0, 0.5))

    def _engine_killed(self, random: Random, number: int) -> PlannedFault:
        return PlannedFault(self._at(random, 0.7), Fault.KILL_ENGINE, number, random.uniform(0.0, _DOWN_SECONDS_MAX))

    def _line_broken(self, random: Random, number: int) -> PlannedFault:
        if random.random() < 0.5:
            return PlannedFault(self._at(random), Fault.CUT_LINE, number)
        return PlannedFault(self._at(random), Fault.BLOCK_LINE, number, random.uniform(0.1, _DOWN_SECONDS_MAX))
