"""The judge is exact: it accepts what some order explains, and nothing else."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kill.history import Kind, Result, Step, Violation, Write
from tests.kill.judge import KeyJudge

KEY = "k"


def write(name: str, ttl_seconds: float | None = None, begun: float | None = None) -> Write:
    """A write whose effect is possible from ``begun`` on."""
    return Write(name, KEY, ttl_seconds, begun=begun)


A, B = write("a"), write("b")
U, V = write("u"), write("v")


def put(what: Write, start: float, end: float, result: Result = Result.DONE) -> Step:
    """A put."""
    return Step(Kind.PUT, start, end, result, what)


def delete(start: float, end: float, result: Result = Result.DONE) -> Step:
    """A delete."""
    return Step(Kind.DELETE, start, end, result)


def read(what: Write | None, start: float, end: float) -> Step:
    """A read that saw ``what``."""
    return Step(Kind.READ, start, end, Result.DONE, what)


def complete(what: Write, start: float, end: float, result: Result = Result.DONE) -> Step:
    """An attempt to complete an upload."""
    return Step(Kind.COMPLETE, start, end, result, what)


def abort(what: Write, start: float, end: float) -> Step:
    """An abort that was acknowledged."""
    return Step(Kind.ABORT, start, end, Result.NEVER, what)


def life_end(at: float) -> Step:
    """The end of all processes."""
    return Step(Kind.LIFE_END, at, at, Result.DONE)


UNKNOWN = Result.UNKNOWN
EXPLAINED: Mapping[str, Sequence[Step]] = {
    "nothing was ever there": [read(None, 0, 1)],
    "an acknowledged write is read": [put(A, 0, 1), read(A, 2, 3), read(A, 4, 5)],
    "a delete is an absence": [put(A, 0, 1), delete(2, 3), read(None, 4, 5)],
    "a reader beside a write sees old or new": [put(A, 0, 1), put(B, 2, 9), read(A, 3, 4), read(B, 5, 6)],
    "of two writes at once either is the last": [put(A, 0, 9), put(B, 0, 9), read(A, 10, 11)],
    "a write without an answer happened": [put(A, 0, 1), put(B, 2, 3, UNKNOWN), read(B, 4, 5)],
    "it did not": [put(A, 0, 1), put(B, 2, 3, UNKNOWN), read(A, 4, 5)],
    "it happened late": [put(B, 0, 1, UNKNOWN), put(A, 2, 3), read(A, 4, 5), read(B, 6, 7)],
    "it happened before the life ended": [put(B, 0, 1, UNKNOWN), life_end(2), read(B, 3, 4)],
    "so did one that nobody saw before": [
        *(put(A, 0, 1), put(B, 2, 3, UNKNOWN), delete(2, 3, UNKNOWN), life_end(4), read(None, 5, 6), put(A, 7, 8))
    ],
    "an upload was committed, and overwritten by that": [
        *(complete(A, 0, 1, UNKNOWN), put(B, 2, 3, UNKNOWN), life_end(4), complete(A, 5, 6), read(B, 7, 8))
    ],
    "a delete without an answer happened late": [
        *(put(A, 0, 1), delete(2, 3, UNKNOWN), read(A, 4, 5), put(B, 6, 7), read(B, 8, 9), read(None, 10, 11))
    ],
    "two deletes without an answer": [
        *(delete(0, 1, UNKNOWN), delete(0, 1, UNKNOWN), put(A, 2, 3), read(None, 4, 5), put(B, 6, 7), read(None, 8, 9))
    ],
    "a refused write is not there": [put(A, 0, 1), put(B, 2, 3, Result.NOTHING), read(A, 4, 5)],
    "an upload is committed at any of its completions": [
        *(complete(A, 0, 1, UNKNOWN), read(None, 2, 3), complete(A, 4, 9), read(A, 10, 11))
    ],
    "an upload was committed and overwritten before it was told so": [
        *(complete(A, 0, 1, UNKNOWN), put(B, 2, 3), complete(A, 4, 5), read(B, 6, 7))
    ],
    "an upload without an answer is committed in the next life": [
        *(complete(A, 0, 1, UNKNOWN), life_end(2), read(None, 3, 4), complete(A, 5, 6), read(A, 7, 8))
    ],
    "a completion was refused for now": [complete(A, 0, 1, Result.NOT_YET), complete(A, 2, 3), read(A, 4, 5)],
    "it was, beside the one that succeeded": [complete(A, 0, 9, Result.NOT_YET), complete(A, 0, 9), read(A, 10, 11)],
    "an upload is aborted": [complete(A, 0, 1, UNKNOWN), abort(A, 2, 3), read(None, 4, 5)],
    "an upload is refused for good": [put(B, 0, 1), complete(A, 2, 3, Result.NEVER), read(B, 4, 5)],
    "an object without an answer came, and has expired": [
        *(put(A, 0, 1), put(write("t", 2.0, 2.0), 2, 3, UNKNOWN), read(None, 4, 5))
    ],
    "an object expires": [put(write("t", 2.0, 0.0), 0, 1), read(None, 3, 4)],
}


@pytest.mark.parametrize("name", EXPLAINED)
def test_what_can_be_explained_is_accepted(name: str) -> None:
    """A history that some order of effects explains is no violation."""
    KeyJudge(KEY).judge(EXPLAINED[name])


SHORT_LIVED = write("t", 5.0, 0.0)
PLANTED: Mapping[str, Sequence[Step]] = {
    "an acknowledged write is lost": [put(A, 0, 1), read(None, 2, 3)],
    "an acknowledged write is lost after a restart": [put(A, 0, 1), life_end(2), read(None, 3, 4)],
    "an acknowledged overwrite is lost": [put(A, 0, 1), put(B, 2, 3), read(A, 4, 5)],
    "a delete is undone": [put(A, 0, 1), delete(2, 3), read(A, 4, 5)],
    "a delete that was seen is undone": [put(A, 0, 1), delete(2, 9), read(None, 3, 4), read(A, 5, 6)],
    "a read is stale beside a write": [put(A, 0, 1), put(B, 2, 9), read(B, 3, 4), read(A, 5, 6)],
    "a write without an answer happens twice": [
        *(put(B, 0, 1, UNKNOWN), read(B, 2, 3), put(A, 4, 5), read(A, 6, 7), read(B, 8, 9))
    ],
    "a write without an answer happens in the next life": [
        *(put(B, 0, 1, UNKNOWN), life_end(2), read(None, 3, 4), read(B, 5, 6))
    ],
    "a delete without an answer happens in the next life": [
        *(put(A, 0, 1), delete(2, 3, UNKNOWN), life_end(4), read(A, 5, 6), read(None, 7, 8))
    ],
    "one delete without an answer happens twice": [
        *(delete(0, 1, UNKNOWN), put(A, 2, 3), read(None, 4, 5), put(B, 6, 7), read(None, 8, 9))
    ],
    "a write without an answer is seen before it was sent": [read(A, 0, 1), put(A, 2, 3, UNKNOWN)],
    "a refused write is there": [put(A, 0, 1, Result.NOTHING), read(A, 2, 3)],
    "a completed upload is absent": [complete(A, 0, 1), read(None, 2, 3)],
    "a completed upload comes back": [complete(A, 0, 1), put(B, 2, 3), complete(A, 4, 5), read(A, 6, 7)],
    "an upload is completed after it was refused for good": [complete(A, 0, 1, Result.NEVER), complete(A, 2, 3)],
    "an upload is refused for good after it was completed": [complete(A, 0, 1), complete(A, 2, 3, Result.NEVER)],
    "an upload is refused for now after it was completed": [complete(A, 0, 1), complete(A, 2, 3, Result.NOT_YET)],
    "an upload is refused for now after it was seen": [
        *(complete(A, 0, 1, UNKNOWN), read(A, 2, 3), complete(A, 4, 5, Result.NOT_YET))
    ],
    "an upload is refused for good after it was seen": [
        *(complete(A, 0, 1, UNKNOWN), read(A, 2, 3), put(B, 4, 5), complete(A, 6, 7, Result.NEVER))
    ],
    "an aborted upload is there": [complete(A, 0, 1, UNKNOWN), abort(A, 2, 3), read(A, 4, 5)],
    "an aborted upload was there": [complete(A, 0, 1, UNKNOWN), read(A, 2, 3), abort(A, 4, 5)],
    "an object goes before its time": [put(SHORT_LIVED, 0, 1), read(None, 3, 4)],
    "an expired object comes back": [put(SHORT_LIVED, 0, 1), read(None, 6, 7), read(SHORT_LIVED, 8, 9)],
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_caught(name: str) -> None:
    """What no order of effects explains is a violation, and its text has the history."""
    with pytest.raises(Violation, match=KEY):
        KeyJudge(KEY).judge(PLANTED[name])


@pytest.mark.parametrize("name", PLANTED)
def test_it_is_caught_when_it_comes_in_portions(name: str) -> None:
    """It makes no difference that a history is judged round by round."""
    with pytest.raises(Violation):
        _judge_in_portions(PLANTED[name])


def _judge_in_portions(steps: Sequence[Step]) -> None:
    judge = KeyJudge(KEY)
    for portion in _portions(steps):
        judge.judge(portion)


def _portions(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """The steps in portions between which nothing is under way."""
    portion: list[Step] = []
    for step in sorted(steps, key=lambda step: step.start):
        if portion and step.start > max(earlier.end for earlier in portion):
            yield portion
            portion = []
        portion.append(step)
    yield portion


# A search that leaves out nothing, to compare with.


@dataclass(frozen=True)
class _Effect:
    """Something that takes effect at one instant from ``start`` to ``end``; not at all, if it is ``optional``."""

    kind: str
    what: Write | None
    start: float
    end: float
    optional: bool


def _effects(steps: Sequence[Step]) -> list[_Effect]:
    """The effects of a history. Uploads have one, whatever the number of their completions."""
    effects = []
    ends = [step.end for step in steps if step.kind is Kind.LIFE_END]
    uploads: dict[Write, list[Step]] = {}
    for step in steps:
        if step.kind in {Kind.COMPLETE, Kind.ABORT} and step.write is not None:
            uploads.setdefault(step.write, []).append(step)
        if step.kind in {Kind.PUT, Kind.DELETE} and step.result is not Result.NOTHING:
            optional = step.result is Result.UNKNOWN
            latest = min((end for end in ends if end > step.start), default=1e9) if optional else step.end
            effects.append(_Effect("set", step.write, step.start, latest, optional))
            if step.write is not None and step.write.ttl_seconds is not None:
                effects.append(_Effect("expire", step.write, step.start + step.write.ttl_seconds, 1e9, True))
        elif step.kind is Kind.READ:
            effects.append(_Effect("see", step.write, step.start, step.end, False))
        elif step.result is Result.NOT_YET:
            effects.append(_Effect("not yet", step.write, step.start, step.end, False))
    for upload, attempts in uploads.items():
        begun = min(step.start for step in attempts)
        done = [step.end for step in attempts if step.result is Result.DONE]
        if any(step.result is Result.NEVER for step in attempts):
            effects.append(_Effect("never", upload, begun, begun, bool(not done)))
        else:
            effects.append(_Effect("set", upload, begun, min(done, default=1e9), not done))
    return effects


def _explicable(steps: Sequence[Step]) -> bool:
    """Whether some order of some of the optional effects and all others explains the history."""
    effects = _effects(steps)
    if any(effect.kind == "never" and not effect.optional for effect in effects):
        return False
    effects = [effect for effect in effects if effect.kind != "never"]
    certain = [effect for effect in effects if not effect.optional]
    optional = [effect for effect in effects if effect.optional]
    chosen = itertools.chain.from_iterable(itertools.combinations(optional, n) for n in range(len(optional) + 1))
    return any(_in_some_order([*certain, *some], None, frozenset()) for some in chosen)


def _in_some_order(left: Sequence[_Effect], holds: Write | None, before: frozenset[Write]) -> bool:
    if not left:
        return True
    first_end = min(effect.end for effect in left)
    for number, effect in enumerate(left):
        if effect.start > first_end:  # another one has ended before this one begins
            continue
        if effect.kind in {"see", "expire"} and effect.what is not holds:
            continue
        if effect.kind == "not yet" and effect.what in before:
            continue
        rest = [*left[:number], *left[number + 1 :]]
        now = {"set": effect.what, "expire": None}.get(effect.kind, holds)
        then = before | {effect.what} if effect.kind == "set" and effect.what is not None else before
        if _in_some_order(rest, now, then):
            return True
    return False


_SECOND_LIFE = 30
_LATE = 12


@dataclass
class _Truth:
    """What a server did."""

    effects: list[tuple[float, Write | None]]
    committed: dict[Write, float]

    def held(self, at: float) -> Write | None:
        """What the key held then."""
        earlier = [(when, number, what) for number, (when, what) in enumerate(self.effects) if when <= at]
        if not earlier:
            return None
        when, _, what = max(earlier, key=lambda effect: effect[:2])
        return None if what and what.ttl_seconds is not None and at >= when + what.ttl_seconds else what

    def tellable(self, step: Step) -> list[Result]:
        """What a completion may be told."""
        committed = None if step.write is None else self.committed.get(step.write)
        if committed is None:
            return [UNKNOWN, Result.NOT_YET, Result.NEVER]
        return [UNKNOWN, Result.NOT_YET] if committed >= step.end else [UNKNOWN, Result.DONE]


def _instant(draw: st.DrawFn, start: float, end: float) -> float:
    return start + (end - start) * draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))


def _add(draw: st.DrawFn, truth: _Truth, number: int, kind: str, start: float) -> Step:
    """One step, and what it did."""
    end = start + draw(st.integers(0, 5)) + 0.005
    if kind == "complete":
        upload = draw(st.sampled_from([U, V]))
        if upload not in truth.committed and draw(st.booleans()):
            truth.committed[upload] = _instant(draw, start, end)
            truth.effects.append((truth.committed[upload], upload))
        return complete(upload, start, end)
    if kind == "read":
        return read(None, start, end)
    new = write(f"w{number}", draw(st.sampled_from([None, 1.5, 4.5])), start) if kind == "put" else None
    result = draw(st.sampled_from([Result.DONE, Result.DONE, UNKNOWN, UNKNOWN, Result.NOTHING]))
    if result is Result.DONE:
        truth.effects.append((_instant(draw, start, end), new))
    elif result is UNKNOWN and draw(st.booleans()):
        truth.effects.append((_instant(draw, start, start + _LATE), new))
    return Step(Kind.DELETE if new is None else Kind.PUT, start, end, result, new)


@st.composite
def _histories(draw: st.DrawFn) -> list[Step]:
    """A few steps over each other, answered as a server may have done it; in half of them one answer is made up."""
    lives = draw(st.booleans())
    truth = _Truth([], {})
    kinds = draw(
        st.lists(st.sampled_from(["put", "put", "delete", "read", "read", "complete"]), min_size=3, max_size=7)
    )
    steps = []
    for number, kind in enumerate(kinds):
        later = _SECOND_LIFE if lives and draw(st.booleans()) else 0
        steps.append(_add(draw, truth, number, kind, draw(st.integers(0, 9)) + number * 0.005 + later))
    reads = [step for step in steps if step.kind is Kind.READ]
    for step in reads:
        step.write = truth.held(_instant(draw, step.start, step.end))
    for step in steps:
        if step.kind is Kind.COMPLETE:
            step.result = draw(st.sampled_from(truth.tellable(step)))
    made_up = draw(st.booleans())
    if reads and made_up:
        draw(st.sampled_from(reads)).write = draw(st.sampled_from([None, *(what for _, what in truth.effects)]))
    return [*steps, *([life_end(_SECOND_LIFE - 1)] if lives else [])]


@settings(max_examples=400)
@given(_histories())
def test_it_agrees_with_a_search_that_leaves_out_nothing(steps: list[Step]) -> None:
    """Any small history is accepted if, and only if, trying every order of every choice of effects explains it."""
    try:
        KeyJudge(KEY).judge(steps)
        accepted = True
    except Violation:
        accepted = False
    assert accepted == _explicable(steps)
