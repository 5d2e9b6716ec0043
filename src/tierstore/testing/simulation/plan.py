"""What happens in one run: drawn from its seed beforehand, so that parts of it can be left out.

Guarantees: an action or event is drawn with a seed of its own, and everything that is decided while it runs (latencies,
faults, which server it goes to) comes from that seed. So leaving out some actions does not change the others, which is
what makes a failing run shrinkable.
"""

from dataclasses import dataclass, field, replace
from enum import Enum
from random import Random
from typing import assert_never

from tierstore.limits import Limits


class Kind(Enum):
    """What a client does."""

    PUT_SMALL = "put small"
    PUT_LARGE = "put large"
    DELETE = "delete"
    GET = "get"
    HEAD = "head"
    UPLOAD = "upload"
    """Initiate, parts, and complete until there is an answer."""
    COMPLETE = "complete"
    """Complete once more, from another client, an upload that was begun before."""
    ABORT = "abort"
    EXTEND = "extend"
    """Extend the expiry."""
    LATE_PART = "late part"
    """Send a part that nobody names, of an upload that may have ended."""
    SESSION = "resumable upload"
    """Create a session, and send pieces until there is an answer; sometimes several at once."""
    RESUME = "resume"
    """Go on, from another client, with a session that was begun before."""
    CANCEL = "cancel"
    """Of a session."""
    BATCH = "batch"
    """Several operations in one request, on several objects or on one."""


class Trouble(Enum):
    """What befalls the servers, besides what befalls their calls."""

    CRASH = "crash"
    CRASH_ALL = "crash of all"
    PAUSE = "pause"
    JUMP = "clock jump"
    SETTLE = "settled at once"
    """Somebody settles entries under live operations, whatever their time."""
    SWEEP = "sweep"


@dataclass(frozen=True, slots=True)
class Action:
    """What one client does."""

    number: int
    at: float
    """Seconds of virtual time."""
    kind: Kind
    key: str
    seed: int
    upload: int = -1
    """For actions on an upload or session of others: the number of the action that begins it."""
    keys: tuple[str, ...] = ()
    """For a batch: the key of each of its operations."""

    def __str__(self) -> str:
        target = f" of {self.upload}" if self.upload >= 0 else ""
        keys = ", ".join(map(repr, self.keys or (self.key,)))
        return f"{self.at:10.3f} action {self.number}: {self.kind.value}{target} on {keys}"


@dataclass(frozen=True, slots=True)
class Event:
    """What befalls a server."""

    number: int
    at: float
    trouble: Trouble
    server: int
    seconds: float
    """How long it lasts, or by how much the clock jumps."""
    seed: int

    def __str__(self) -> str:
        return f"{self.at:10.3f} event {self.number}: {self.trouble.value}, server {self.server}, {self.seconds:.3f} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How probable it is that a call to a store goes wrong, by how."""

    fail: float = 0.0
    """Fails without effect."""
    lose: float = 0.0
    """Has its effect, and the answer is lost."""
    late: float = 0.0
    """Seems to fail, and has its effect later."""
    slow: float = 0.0
    """Takes very long."""
    tear: float = 0.0
    """A read breaks off."""

    NAMES = ("fail", "lose", "late", "slow", "tear")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run."""

    seed: int
    limits: Limits
    servers: int
    repeats_succeed: bool
    """Which kind of long-term store it is (see `tierstore.backends.long_term.memory.Repeats`)."""
    latency: float
    """Seconds that a call to a store takes, about."""
    sweep_period: float
    client_timeout: float
    attempts: int
    """How often a client tries."""
    ttl: int
    """Seconds; 0 if nothing expires."""
    drift: float
    """By how much the servers' clocks run fast or slow, at most."""
    faults: Faults
    actions: tuple[Action, ...]
    events: tuple[Event, ...]

    @property
    def clocks_jump(self) -> bool:
        """Whether deadlines can be told only roughly."""
        return any(event.trouble is Trouble.JUMP for event in self.events)

    def only(self, actions: frozenset[int], events: frozenset[int]) -> "Plan":
        """The same run with only these actions and events."""
        return replace(
            self,
            actions=tuple(action for action in self.actions if action.number in actions),
            events=tuple(event for event in self.events if event.number in events),
        )

    def with_faults(self, **probabilities: float) -> "Plan":
        """The same run with other probabilities of some faults."""
        return replace(self, faults=replace(self.faults, **probabilities))

    def __str__(self) -> str:
        happening: list[Action | Event] = sorted([*self.actions, *self.events], key=lambda one: one.at)
        settings = (
            f"seed {self.seed}: {self.servers} servers, {self.faults}, latency {self.latency} s, sweeps every "
            f"{self.sweep_period} s, client timeout {self.client_timeout} s, {self.attempts} attempts, ttl {self.ttl}"
            f" s, drift {self.drift}, repeats {'succeed' if self.repeats_succeed else 'are not found'}, grace "
            f"{self.limits.entry_grace_seconds} s, operations {self.limits.operation_deadline_seconds} s"
        )
        return "\n".join([settings, *map(str, happening)])


_SWEEP_PERIOD_MIN = 30.0
"""Seconds. Sweeps that find nothing cost as much as operations do; those at the worst moment are events."""


_CLOCK_ERROR_MAX = 0.2
"""By how much clocks may be wrong, in operation deadlines: those of two then differ by less than a half."""


@dataclass(slots=True)
class _Draft:
    random: Random
    span: float
    keys: int
    actions: list[Action] = field(default_factory=list)


_OTHERS_IN_BATCH_MAX = 7
"""Operations of a batch besides its first: more than run at once, and few enough for the judge to find their order."""


_WEIGHTS = {
    Kind.PUT_SMALL: 4,
    Kind.PUT_LARGE: 5,
    Kind.DELETE: 3,
    Kind.GET: 6,
    Kind.HEAD: 1,
    Kind.EXTEND: 3,
    Kind.UPLOAD: 4,
    Kind.COMPLETE: 4,
    Kind.ABORT: 1,
    Kind.LATE_PART: 1,
    Kind.SESSION: 4,
    Kind.RESUME: 3,
    Kind.CANCEL: 1,
}


_BEGUN_BY = {
    Kind.COMPLETE: Kind.UPLOAD,
    Kind.ABORT: Kind.UPLOAD,
    Kind.LATE_PART: Kind.UPLOAD,
    Kind.RESUME: Kind.SESSION,
    Kind.CANCEL: Kind.SESSION,
}
"""What begins that which these actions are on."""


def make_plan(seed: int) -> Plan:
    """Draw the run of ``seed``. Each run picks its own kinds of trouble, so that rare combinations come together."""
    random = Random(seed)
    beside = Random(seed ^ 0xBA7C)  # for batches, which change nothing of the rest
    deadline = random.choice([30.0, 900.0])
    latency = random.choice([0.005, 0.05, 0.5])
    span = random.choice([1.0, 10.0, 100.0, 2000.0]) * random.uniform(0.5, 1.5)
    limits = replace(
        Limits.tiny(),
        stream_chunk_bytes=128,
        parts_max=random.choice([12, 64]),
        parts_listed_max=16,
        part_bytes_min=random.choice([0, 0, 20]),
        operation_deadline_seconds=deadline,
        marker_retention_seconds=deadline * 2,
        entry_grace_seconds=random.choice([0.0, 5.0, 600.0]),
        complete_poll_seconds=0.25,
        sweep_lease_seconds=random.choice([1.0, 60.0]),
        upload_retention_seconds=random.choice([5.0, 300.0, 3600.0]),
        outcome_retention_seconds=1e6,
        background_tasks_max=random.choice([1, 8, 64]),
        batch_held_max=beside.choice([1, 2, 4]),
        operations_max=beside.choice([6, 256, 256, 256]),
    )
    troubles = [trouble for trouble in Trouble if random.random() < 0.4]
    probability = random.choice([0.0, 0.01, 0.05, 0.15])
    faults = Faults(**{name: probability for name in Faults.NAMES if random.random() < 0.5})
    weights = {kind: weight * random.choice([0.2, 1, 1, 2]) for kind, weight in _WEIGHTS.items()}
    draft = _Draft(random, span, keys=random.choice([1, 1, 2, 3, 12]))
    _draw_actions(draft, random.randint(20, 120), weights)
    _draw_batches(draft, beside)
    return Plan(
        seed=seed,
        limits=limits,
        servers=random.randint(1, 4),
        repeats_succeed=random.random() < 0.5,
        latency=latency,
        sweep_period=max(_SWEEP_PERIOD_MIN, random.choice([span / 10, span])),
        client_timeout=random.choice([latency * 4, latency * 40, 60.0, 2 * deadline]),
        attempts=random.choice([1, 3, 6]),
        ttl=random.choice([0, 1 + int(span / 4)]),
        drift=random.choice([0.0, 0.001]),
        faults=faults,
        actions=tuple(draft.actions),
        events=tuple(_draw_events(random, troubles, span, deadline)),
    )


def _draw_actions(draft: _Draft, count: int, weights: dict[Kind, float]) -> None:
    """Actions in bursts, since what races is what comes at once."""
    random = draft.random
    bursts = sorted(random.uniform(0, draft.span) for _ in range(random.randint(1, 12)))
    width = draft.span * random.choice([0.001, 0.01, 0.1])
    begun: dict[Kind, list[Action]] = {Kind.UPLOAD: [], Kind.SESSION: []}
    for at in sorted(random.choice(bursts) + random.expovariate(1 / width) for _ in range(count)):
        kind = random.choices(list(weights), list(weights.values()))[0]
        number, key, upload = len(draft.actions), f"k{random.randrange(draft.keys)}", -1
        if (begins := _BEGUN_BY.get(kind)) is not None:
            if not begun[begins]:
                kind = begins
            else:
                first = random.choice(begun[begins][-4:])
                upload, key = first.number, first.key
        action = Action(number, at, kind, key, random.getrandbits(62), upload)
        if kind in begun:
            begun[kind].append(action)
        draft.actions.append(action)


def _draw_batches(draft: _Draft, random: Random) -> None:
    """A few batches, each at about the time of another action, and on its key and others."""
    others, width = tuple(draft.actions), draft.span * random.choice([0.0, 0.001, 0.01])
    for _ in range(random.choice([0, 1, 2, 3])):
        other = random.choice(others)
        keys = (
            other.key,
            *(f"k{random.randrange(draft.keys)}" for _ in range(random.randint(1, _OTHERS_IN_BATCH_MAX))),
        )
        at, seed = other.at + width * random.random(), random.getrandbits(62)
        draft.actions.append(Action(len(draft.actions), at, Kind.BATCH, other.key, seed, keys=keys))


def _draw_events(random: Random, troubles: list[Trouble], span: float, deadline: float) -> list[Event]:
    events: list[Event] = []
    for trouble in troubles:
        for _ in range(random.randint(1, 6)):
            seconds = _length(random, trouble, span, deadline)
            events.append(
                Event(
                    len(events), random.uniform(0, span), trouble, random.randrange(4), seconds, random.getrandbits(62)
                )
            )
    return events


def _length(random: Random, trouble: Trouble, span: float, deadline: float) -> float:
    """How long it lasts; for a jump, by how much."""
    match trouble:
        case Trouble.CRASH | Trouble.CRASH_ALL:
            return random.choice([0.0, span / 20])
        case Trouble.PAUSE:
            return random.choice([span / 20, span / 2, 1.5 * deadline])
        case Trouble.JUMP:
            return random.uniform(-_CLOCK_ERROR_MAX, _CLOCK_ERROR_MAX) * deadline
        case Trouble.SETTLE | Trouble.SWEEP:
            return 0.0
        case _:
            assert_never(trouble)
