"""Recorded storms walk through the model; what is no implementation of the protocol does not."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.model import protocol, steps
from tests.model.planted import LEFT_OUT, Plant
from tests.model.storm import Storm, as_it_is
from tests.model.walk import StepNotAllowed, changing, walk
from tierstore.backends.high_volume.contract import HighVolumeBackend
from tierstore.backends.long_term.contract import LongTermBackend
from tierstore.changelog.contract import ChangeLog
from tierstore.testing.planted import PLANTED
from tierstore.testing.traces import Answer, Begun, Called, Completing, Ended, Kind, Record

SEEDS_PER_TEST, TESTS = 50, 5
PLANTED_SEEDS_MAX = 500
WITHOUT_PARTS = {"progress-cas"}
"""Rules about the parts of an upload, which the model has not: ``tests/simulation`` finds their absence."""


@pytest.mark.parametrize("first", [number * SEEDS_PER_TEST for number in range(TESTS)])
async def test_storms_are_allowed(first: int) -> None:
    """Whatever happens to the implementation, each of its steps is a step of the model; the seed repeats it."""
    for seed in range(first, first + SEEDS_PER_TEST):
        trace = await Storm(seed).run()
        try:
            walk(trace)
        except StepNotAllowed as error:
            raise AssertionError(f"seed {seed}: {error}") from error


@pytest.mark.parametrize("probability", [0.0, 0.02, 0.2])
async def test_crowds_are_allowed(probability: float) -> None:
    """As above, with many more operations at once on each object, and few faults or very many."""
    for seed in range(1000, 1005):
        trace = await Storm(seed, probability=probability).run(actors=120)
        try:
            walk(trace)
        except StepNotAllowed as error:
            raise AssertionError(f"seed {seed}: {error}") from error


async def test_storms_have_what_the_walk_is_about() -> None:
    """Every call is made, in every kind of operation; effects come after the end; races are lost; answers are all."""
    seen: Counter[Any] = Counter()
    for seed in range(60):
        ended: set[int] = set()
        for record in await Storm(seed).run():
            match record:
                case Ended(actor, answer):
                    ended.add(actor.number)
                    seen[actor.kind] += 1
                    seen[answer] += 1
                case Called(actor, _, name, _, result, error):
                    assert actor is not None, f"out of every operation: {record}"
                    seen[name] += 1
                    seen[actor.kind] += 1
                    seen[name, None if error is not None else bool(result)] += 1
                    seen["late", name] += actor.number in ended
                case Begun() | Completing():
                    seen[type(record)] += 1
    assert not {name for name in (*steps.STEPS, *steps.NO_STEP, "high_volume.remove_markers") if not seen[name]}
    assert not {kind for kind in Kind if not seen[kind]}
    assert not {answer for answer in Answer if not seen[answer]}
    for name in ("point", "compare_and_write", "put_inline", "delete_inline", "remove_markers"):
        assert seen[f"high_volume.{name}", True], f"{name} never happened, or never met anything"
        assert seen[f"high_volume.{name}", False], f"{name} never lost, or never met nothing"
    assert seen["changelog.record_again", False], "no write was given up"
    assert seen["changelog.condemn", False], "no sweeper was too late"
    assert seen["long_term.complete", None], "no assembly failed"
    late = {call for call in steps.STEPS if seen["late", call]}
    assert {"high_volume.point", "long_term.complete", "changelog.claim", "long_term.put"} <= late


async def _rejection(plant: Plant = as_it_is, plant_inside: Plant = as_it_is) -> str | None:
    """Why the walk rejects the first storm that it rejects, of those with something planted."""
    for seed in range(PLANTED_SEEDS_MAX):
        trace = await Storm(seed, plant=plant, plant_inside=plant_inside).run()
        try:
            walk(trace)
        except StepNotAllowed as error:
            return str(error)
    return None


@pytest.mark.parametrize("what", LEFT_OUT)
async def test_a_step_that_is_left_out_is_rejected(what: str) -> None:
    """An implementation that leaves a step out, or goes by something else, makes a trace that the model rejects."""
    rejection = await _rejection(plant=LEFT_OUT[what])
    assert rejection is not None, f"without {what}, {PLANTED_SEEDS_MAX} storms were allowed"


@pytest.mark.parametrize("rule", sorted(set(PLANTED) - WITHOUT_PARTS))
async def test_a_store_that_breaks_a_rule_is_rejected(rule: str) -> None:
    """An implementation over stores that break a rule makes a trace that the model rejects."""
    rejection = await _rejection(plant_inside=PLANTED[rule])
    assert rejection is not None, f"without {rule}, {PLANTED_SEEDS_MAX} storms were allowed"


def test_every_rule_of_the_model_is_taken_away() -> None:
    """Each rule is broken in one of the tests above."""
    assert set(PLANTED) >= protocol.RULES


async def test_an_effect_that_is_missing_is_missed() -> None:
    """A trace without any one of the calls that have changed something is rejected: the walk passes nothing over."""
    missed: Counter[str] = Counter()
    passed: Counter[str] = Counter()
    for seed in range(6):
        trace = await Storm(seed, probability=0.0).run()
        for place in changing(trace):
            call = trace[place]
            assert isinstance(call, Called)
            try:
                walk(list(_without(trace, call)))
            except StepNotAllowed:
                missed[call.name] += 1
            else:
                passed[call.name] += 1
    assert missed.total() > 300
    # Nobody misses the mark of an upload that is swapped out, and so marked once more, before its entry is looked at;
    # nor what became of entries that their owner then records anew, or forgets because it gives up; nor an assembly
    # of which there were several; nor that an outcome is forgotten which nobody looks at any more.
    may_pass = {"changelog.mark_done", "changelog.resume_later", "changelog.record_again", "long_term.complete"}
    may_pass |= {"changelog.forget_settled"}
    assert passed.keys() <= may_pass, passed
    assert passed.total() < missed.total() / 20


def _without(trace: Sequence[Record], call: Called) -> Iterator[Record]:
    """The trace without ``call``, and without the announcement of an assembly."""
    for record in trace:
        announced = isinstance(record, Completing) and call.name == "long_term.complete" and record.actor == call.actor
        if record is not call and not announced:
            yield record


async def test_an_answer_that_is_wrong_is_rejected() -> None:
    """What was not committed cannot be acknowledged; an upload that was cannot be refused."""
    lies = 0
    for seed in range(30):
        trace = await Storm(seed, probability=0.1).run()
        for place, record in enumerate(trace):
            lie = _lie(record, trace)
            if lie is not None:
                lies += 1
                with pytest.raises(StepNotAllowed):
                    walk([*trace[:place], lie, *trace[place + 1 :]])
    assert lies > 100


def _lie(record: Record, trace: Sequence[Record]) -> Ended | None:
    if not isinstance(record, Ended):
        return None
    if record.actor.kind is Kind.COMPLETE and record.answer is Answer.OK:
        return replace(record, answer=Answer.REFUSED)
    its = [one for one in trace if isinstance(one, Called) and one.actor == record.actor]
    if record.actor.kind is Kind.PUT and record.answer is Answer.UNKNOWN and not any(map(_may_commit, its)):
        return replace(record, answer=Answer.OK)
    return None


def _may_commit(call: Called) -> bool:
    return call.name in {"high_volume.put_inline", "high_volume.point", "high_volume.compare_and_write"}


async def test_the_message_tells_what_happened() -> None:
    """It shows the step, the model's state before it, and what the model would have allowed."""
    message = await _rejection(plant_inside=PLANTED["revalidate"])
    assert message is not None
    for part in ("changelog.record_again(", "not allowed: recorded: B", "outcomes: to 'discard'", "row: (", "log: ["):
        assert part in message, f"{part} is not in {message}"


def test_every_call_has_its_place() -> None:
    """Each method of the contracts is a step, or has a reason for being none."""
    contracts = {"high_volume": HighVolumeBackend, "long_term": LongTermBackend, "changelog": ChangeLog}
    calls = {f"{store}.{method}" for store, contract in contracts.items() for method in contract.__abstractmethods__}
    unrecorded = {call for call in calls if call.partition(".")[2] in steps.NOT_RECORDED}
    assert calls - unrecorded == {*steps.STEPS, *steps.NO_STEP, "high_volume.remove_markers"}
    assert not steps.STEPS.keys() & steps.NO_STEP.keys()
