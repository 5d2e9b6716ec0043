"""Making histories: runs of the simulation, and strolls, with every call and answer written down.

A run of the simulation is cut to its first actions, so that all of it fits: its troubles, the calm and the sweeps at
its end. Its stores are those that the simulation has, but for their clock, which does not let others in between: each
call has its effect and returns in one step, so that the order of the records is that of the effects. Several servers,
faults and late arrivals are all in it; only that they come at the same time is not.

What was recorded is then asked once more of new stores in memory, which must answer the same; in between there are
looks at all that the stores hold, as operators take them, and at the end everything is looked at.

Left out are calls of the sweeper that found nothing, beyond the first of a run: most of all calls are such.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random
from typing import Any, Final
from uuid import UUID

from tests.engines.histories.coverage import kinds, transitions
from tests.engines.histories.large_parts import LARGE_LIMITS, large_parts
from tests.engines.histories.looking import look_around
from tests.engines.histories.notation import Call, History, Namer, written_octets
from tests.engines.histories.scene import Asked, Scene
from tests.engines.histories.shapes import Instant, end_of, leaves, shape_of_answer, shape_of_arguments
from tests.engines.histories.sources import Recipe, Source
from tests.engines.histories.strolls import STROLL_LIMITS, stroll
from tierstore.backends.high_volume.memory import MemoryHighVolume
from tierstore.backends.long_term.memory import MemoryLongTerm, Repeats
from tierstore.build import Stores
from tierstore.changelog.memory import MemoryChangeLog
from tierstore.clock import Clock, UnixMicros
from tierstore.testing.simulation.plan import Plan, make_plan
from tierstore.testing.simulation.servers import START
from tierstore.testing.simulation.world import simulate
from tierstore.testing.traces import Called, Delivered, Recorder, Taken, recorded
from tierstore.types.ids import Revision

ACTIONS: Final = 10
"""How many of a plan's actions are kept."""
_IDLE_KEPT = 1
"""Calls of each kind that found nothing, of the sweeper's, that are kept of a run."""
_IDLE: Final = frozenset(
    {"high_volume.expired", "high_volume.remove_markers", "long_term.remove_debris", "changelog.due"},
)
_CALLS_BETWEEN_LOOKS = 60


class _AtOnce(Clock):
    """A clock by which stores let nobody in between."""

    def __init__(self, inner: Clock) -> None:
        self._inner = inner

    def now(self) -> UnixMicros:
        return self._inner.now()

    def monotonic(self) -> float:
        return self._inner.monotonic()

    async def sleep(self, seconds: float) -> None:
        if seconds > 0:
            await self._inner.sleep(seconds)


def simulated(seed: int) -> History:
    """A run of the simulation. The same seed gives the same history."""
    plan = make_plan(seed)
    plan = plan.only(frozenset(range(ACTIONS)), frozenset(event.number for event in plan.events))
    repeats = Repeats.SUCCEED if plan.repeats_succeed else Repeats.NOT_FOUND
    scene = Scene(plan.seed, plan.limits, repeats, START)
    asyncio.run(_ask_again(_calls_of(plan), scene, Random(seed)))
    return _history(f"simulation-{seed:04}", f"the simulation, seed {seed}, its first {ACTIONS} actions", scene)


def strolled(seed: int, steps: int) -> History:
    """A stroll. The same seed gives the same history."""
    repeats = Repeats.SUCCEED if seed % 2 else Repeats.NOT_FOUND
    scene = Scene(seed, STROLL_LIMITS, repeats, START)
    asyncio.run(stroll(scene, Random(seed), steps))
    return _history(f"stroll-{seed:04}", f"a stroll of {steps} steps, seed {seed}", scene)


def with_large_parts() -> History:
    """Uploads with parts that every store takes."""
    scene = Scene(0, LARGE_LIMITS, Repeats.NOT_FOUND, START)
    asyncio.run(large_parts(scene))
    return _history("stroll-large", "uploads with large parts", scene)


def _calls_of(plan: Plan) -> Sequence[Called]:
    """The calls of a run, in the order of their effects."""
    recorder = Recorder(keeping=True)

    def plant(stores: Stores) -> Stores:
        high_volume, long_term, changelog = stores.high_volume, stores.long_term, stores.changelog
        assert isinstance(high_volume, MemoryHighVolume)
        assert isinstance(long_term, MemoryLongTerm)
        assert isinstance(changelog, MemoryChangeLog)
        clock = _AtOnce(high_volume._clock)
        at_once = Stores(
            MemoryHighVolume(high_volume._store_of_rows, clock=clock, ids=high_volume._ids),
            MemoryLongTerm(long_term._blobs, limits=plan.limits, clock=clock, repeats=long_term._repeats),
            changelog,
        )
        return recorded(at_once, recorder, clock)

    outcome = simulate(plan, plant=plant, recording=True)
    if outcome.violation is not None:
        raise ValueError(f"seed {plan.seed} is no history but a bug: {outcome.violation}")
    return _without_idle(record for record in recorder.records if isinstance(record, Called))


def _without_idle(calls: Iterable[Called]) -> Sequence[Called]:
    found: Counter[str] = Counter()
    kept = []
    for call in calls:
        idle = call.name in _IDLE and not call.result
        found[call.name] += idle
        if not idle or found[call.name] <= _IDLE_KEPT:
            kept.append(call)
    return kept


async def _ask_again(calls: Sequence[Called], scene: Scene, random: Random) -> None:
    """Make the calls at the stores of ``scene``, which must answer what was recorded; and look at them in between."""
    for number, call in enumerate(calls):
        if number % _CALLS_BETWEEN_LOOKS == random.randrange(_CALLS_BETWEEN_LOOKS):
            await look_around(scene, random)
        kept = call.kept
        assert kept is not None
        scene.clock.set_now(call.at)
        arguments = dict(kept.arguments)
        if isinstance(source := arguments.get("source"), Taken):
            arguments["source"] = Source(Recipe(bytes(source.taken), end_of(source)), arguments["size"])
        answer = await scene.ask(str(call.actor or "nobody"), call.name, **arguments)
        if not _same(kept.answer if call.error is None else call.error, answer):
            raise ValueError(f"recorded wrongly: {call.name}{kept.arguments} answered {kept}, and now {answer}")
    await look_around(scene, random, everywhere=True)


def _same(before: Any, now: Any) -> bool:
    if isinstance(before, Exception):
        return type(before) is type(now)
    if isinstance(before, Delivered):
        return isinstance(now, Delivered) and now.size == before.size and now.delivered.startswith(before.delivered)
    return bool(before == now)


# Writing down


def _history(name: str, origin: str, scene: Scene) -> History:
    """What was asked in ``scene``."""
    shapes = [(asked, shape_of_arguments(asked.name, asked.kept.arguments), _answer(asked)) for asked in scene.asked]
    pages = list(_with_pages_joined(shapes))
    named = [leaf for _, given, answer in pages for leaf in (*leaves(given), *leaves(answer))]
    namer = Namer(sorted({uuid for leaf in named for uuid in uuids_in(leaf)}), scene.began)
    calls = []
    for asked, given, answer in pages:
        written = namer.written(given, answer=False)
        calls.append(
            Call(
                at=namer.written(Instant(asked.at), answer=False),
                by=asked.by,
                name=asked.name,
                given=written,
                answer=namer.written(answer, answer=True),
                error=None if asked.error is None else type(asked.error).__name__,
            )
        )
    limits = scene.limits
    return History(
        name=name,
        origin=origin,
        repeats_succeed=scene.repeats is Repeats.SUCCEED,
        limits={limit: getattr(limits, limit) for limit in LIMITS},
        objects={short: object_id.storage_path for object_id, short in namer.objects.items()},
        octets={short: written_octets(octets) for octets, short in namer.octets.items()},
        calls=calls,
    )


def uuids_in(leaf: Any) -> Iterator[UUID]:
    """The UUIDs that a leaf of a shape is written with."""
    if isinstance(leaf, UUID):
        yield leaf
    elif isinstance(leaf, Revision):
        yield leaf.uuid


LIMITS: Final = ("part_bytes_min", "part_bytes_max", "object_bytes_max", "parts_max", "stream_chunk_bytes")
"""Limits that the answers of stores depend on, or the cutting of what they read."""

_Shaped = tuple[Asked, dict[str, Any], Any]


def _answer(asked: Asked) -> Any:
    return None if asked.error is not None else shape_of_answer(asked.name, asked.kept.arguments, asked.kept.answer)


def _with_pages_joined(shapes: Sequence[_Shaped]) -> Iterable[_Shaped]:
    """A listing of blobs as one call, whose answer is all that it has found."""
    listing: _Shaped | None = None
    for shaped in shapes:
        asked, given, answer = shaped
        if asked.name == "long_term.list" and "after" in given:
            assert listing is not None
            listing[2].extend(answer)
            continue
        if listing is not None:
            yield listing
            listing = None
        if asked.name == "long_term.list":
            listing = (asked, given, list(answer))
        else:
            yield shaped
    if listing is not None:
        yield listing


# Choosing


def chosen(
    candidates: Sequence[History], count: int, beside: Sequence[History], said: Callable[[str], None]
) -> list[History]:
    """``count`` of the ``candidates``: one after the other the one that adds most, for its length, to those ``beside``.

    What adds is an answer of a kind that its method has not given yet, and, less, one that has not come yet after that
    which the last one about the same thing was (`transitions`).
    """
    left = {history.name: history for history in candidates}
    covered = {one for history in beside for one in _covers(history)}
    found: list[History] = []
    while left and len(found) < count:
        adds = {name: _covers(history) - covered for name, history in left.items()}
        name = max(sorted(left), key=lambda one: _weight(adds[one]) / (len(left[one].calls) + _OVERHEAD_CALLS))
        said(f"{name}: {len(left[name].calls)} calls, {len(adds[name])} new transitions and kinds")
        covered |= adds[name]
        found.append(left.pop(name))
    return found


_OVERHEAD_CALLS = 50
"""What a history costs beside its calls: a store is opened."""
_KIND_WEIGHT = 20


def _covers(history: History) -> set[tuple[Any, ...]]:
    return {*transitions(history.calls), *kinds(history.calls)}


def _weight(covers: set[tuple[Any, ...]]) -> int:
    return sum(_KIND_WEIGHT if len(one) == len(("method", "kind")) else 1 for one in covers)
