"""Laws of `tierstore.service.concurrency`: who has a turn, who waits, and who is refused."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore.errors import Busy, IncompleteBody
from tierstore.limits import Limits
from tierstore.service.concurrency import OperationKind, OperationLimiter, Turn
from tierstore.types.streams import Body

SINGLE, BULK = OperationKind.SINGLE, OperationKind.BULK


def _limiter(running: int = 2, waiting: int = 2, seconds: float = 60.0, bulk_percent: int = 50) -> OperationLimiter:
    return OperationLimiter(
        replace(
            Limits(),
            operations_max=running,
            operations_queue_max=waiting,
            operation_wait_seconds_max=seconds,
            operations_bulk_percent=bulk_percent,
        )
    )


async def _settle() -> None:
    """Let everything that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


async def _queued(limiter: OperationLimiter, *kinds: OperationKind) -> list[asyncio.Task[Turn]]:
    tasks = []
    for kind in kinds:
        tasks.append(asyncio.create_task(limiter.turn(kind)))
        await _settle()
    return tasks


class _GivenBody(Body):
    """A body whose chunks come when a test sends them; None is its end, an error fails it."""

    def __init__(self) -> None:
        self.size = None
        self.chunks: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()

    async def __anext__(self) -> bytes:
        chunk = await self.chunks.get()
        if isinstance(chunk, Exception):
            raise chunk
        if chunk is None:
            self.complete = True
            raise StopAsyncIteration
        return chunk


async def test_turns_are_bounded_and_the_next_comes_in_order() -> None:
    """As many run as may; of those that wait, the one that came first is next."""
    limiter = _limiter()
    first, second = await limiter.turn(), await limiter.turn()
    third, fourth = await _queued(limiter, SINGLE, SINGLE)
    assert (limiter.running, limiter.waiting) == (2, 2)
    second.end()
    await _settle()
    assert (third.done(), fourth.done(), limiter.running, limiter.waiting) == (True, False, 2, 1)
    first.end()
    await _settle()
    assert fourth.done()
    for task in (third, fourth):
        (await task).end()
    assert (limiter.running, limiter.waiting) == (0, 0)


async def test_beyond_the_queue_it_is_busy_at_once() -> None:
    """What finds the queue full has done nothing, and changes nothing for the others."""
    limiter = _limiter()
    turns = [await limiter.turn(), await limiter.turn()]
    queued = await _queued(limiter, SINGLE, SINGLE)
    with pytest.raises(Busy, match="as many operations wait"):
        await limiter.turn()
    turns[0].end()
    await _settle()
    assert queued[0].done()
    for task in queued:
        task.cancel()


async def test_waiting_has_an_end() -> None:
    """Who has waited for as long as may be is refused, and holds neither a place nor a turn."""
    limiter = _limiter(seconds=0.02)
    turns = [await limiter.turn(), await limiter.turn()]
    with pytest.raises(Busy, match="busy for too long"):
        await limiter.turn()
    assert (limiter.running, limiter.waiting) == (2, 0)
    turns[0].end()
    assert limiter.running == 1


async def test_ending_twice_is_ending_once() -> None:
    """A turn's place is given up once."""
    limiter = _limiter()
    turn, other = await limiter.turn(), await limiter.turn()
    turn.end()
    turn.end()
    assert limiter.running == 1
    other.end()
    assert limiter.running == 0


@pytest.mark.parametrize("late", [False, True])
async def test_who_goes_away_while_waiting_leaves_nothing(late: bool) -> None:
    """Cancelled before its turn, or in the moment in which it gets it, a waiter holds nothing."""
    limiter = _limiter()
    turns = [await limiter.turn(), await limiter.turn()]
    gone, next_one = await _queued(limiter, SINGLE, SINGLE)
    if late:
        turns[0].end()
    gone.cancel()
    if not late:
        turns[0].end()
    await _settle()
    assert gone.cancelled()
    assert next_one.done()
    assert (limiter.running, limiter.waiting) == (2, 0)


async def test_bulk_has_its_share_and_no_more() -> None:
    """Operations in bulk leave room for single ones, of what runs and of the queue."""
    limiter = _limiter(running=4, waiting=4)
    bulk = [await limiter.turn(BULK), await limiter.turn(BULK)]
    waiting = await _queued(limiter, BULK, BULK)
    with pytest.raises(Busy):
        await limiter.turn(BULK)
    assert (limiter.running, limiter.waiting) == (2, 2)
    # Singles pass by those that wait for their share, though these came first.
    singles = await _queued(limiter, SINGLE, SINGLE, SINGLE)
    assert [single.done() for single in singles] == [True, True, False]
    (await singles[0]).end()
    await _settle()
    assert singles[2].done()
    bulk[0].end()
    await _settle()
    assert [task.done() for task in waiting] == [True, False]
    waiting[1].cancel()


async def test_singles_do_not_keep_bulk_from_its_turn() -> None:
    """While singles come without end, bulk that waits is next when it is its turn."""
    limiter = _limiter(running=1, waiting=8)
    turn = await limiter.turn()
    queued = await _queued(limiter, SINGLE, BULK, SINGLE)
    turn.end()
    order = []
    for _ in range(3):
        await _settle()
        (running,) = [number for number, task in enumerate(queued) if task.done() and number not in order]
        order.append(running)
        (await queued[running]).end()
    assert order == [0, 1, 2]


async def test_who_waits_for_its_client_leaves_its_place() -> None:
    """While the next chunk does not come, another has the turn; then the operation goes on before all who wait."""
    limiter = _limiter(running=1)
    slow, source = await limiter.turn(), _GivenBody()
    body = slow.body(source)
    reading = asyncio.ensure_future(anext(body))
    await _settle()
    assert limiter.running == 0
    other = await limiter.turn()
    (waiting,) = await _queued(limiter, SINGLE)
    source.chunks.put_nowait(b"chunk")
    await _settle()
    assert not reading.done()
    assert limiter.running == 1
    other.end()
    await _settle()
    assert await reading == b"chunk"
    assert not waiting.done()
    slow.end()
    await _settle()
    assert waiting.done()


async def test_fast_uploads_keep_nobody_from_a_first_turn() -> None:
    """More uploads than may run, whose next bytes are always there: who comes anew has its turn all the same."""
    limiter = _limiter(running=2, waiting=8)
    moved = 0

    async def upload() -> None:
        nonlocal moved
        turn, source = await limiter.turn(), _GivenBody()
        while True:
            source.chunks.put_nowait(b"x")
            await turn.next_chunk(source)
            moved += 1
            await asyncio.sleep(0)  # the store takes it

    uploads = [asyncio.create_task(upload()) for _ in range(6)]
    await _settle()
    began = moved
    async with asyncio.timeout(5):
        for _ in range(3):
            (await limiter.turn()).end()
    assert moved - began < 100
    went_on = moved
    await _settle()
    assert moved > went_on
    for task in uploads:
        task.cancel()


async def test_a_body_is_the_same() -> None:
    """Chunks, size, end and completeness are those of the body below."""
    limiter = _limiter(running=1)
    turn, source = await limiter.turn(), _GivenBody()
    for chunk in (b"a", b"b", None):
        source.chunks.put_nowait(chunk)
    body = turn.body(source)
    assert (body.size, body.complete) == (None, False)
    assert [chunk async for chunk in body] == [b"a", b"b"]
    assert body.complete
    assert limiter.running == 1
    turn.end()
    assert limiter.running == 0


async def _failed(turn: Turn, source: _GivenBody) -> None:
    source.chunks.put_nowait(IncompleteBody("the body ended"))
    with pytest.raises(IncompleteBody):
        await anext(turn.body(source))


async def _cancelled(turn: Turn, source: _GivenBody) -> None:
    reading = asyncio.ensure_future(anext(turn.body(source)))
    await _settle()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def _ended(turn: Turn, source: _GivenBody) -> None:
    reading = asyncio.ensure_future(anext(turn.body(source)))
    await _settle()
    turn.end()
    source.chunks.put_nowait(b"chunk")
    assert await reading == b"chunk"


@pytest.mark.parametrize("how", [_failed, _cancelled, _ended])
async def test_no_place_is_left_behind(how: Callable[[Turn, _GivenBody], Awaitable[None]]) -> None:
    """However waiting for a client ends, the place is free when the turn has ended."""
    limiter = _limiter(running=1)
    turn = await limiter.turn()
    await how(turn, _GivenBody())
    turn.end()
    assert limiter.running == 0
    (await limiter.turn()).end()


async def test_what_has_ended_does_not_go_on() -> None:
    """A place that becomes free for an operation which has ended meanwhile is nobody's."""
    limiter = _limiter(running=1)
    turn, source = await limiter.turn(), _GivenBody()
    reading = asyncio.create_task(turn.next_chunk(source))
    await _settle()
    other = await limiter.turn()
    source.chunks.put_nowait(b"late")
    await _settle()
    turn.end()
    other.end()
    assert await reading == b"late"
    assert limiter.running == 0


async def test_who_is_cancelled_while_it_waits_to_go_on_leaves_nothing() -> None:
    """A write whose time is up, in line to go on, is not given a place any more."""
    limiter = _limiter(running=1)
    turn, source = await limiter.turn(), _GivenBody()
    reading = asyncio.ensure_future(anext(turn.body(source)))
    await _settle()
    other = await limiter.turn()
    source.chunks.put_nowait(b"chunk")
    await _settle()
    reading.cancel()
    await _settle()
    turn.end()
    other.end()
    assert limiter.running == 0


_PLANS = st.lists(
    st.tuples(st.sampled_from([SINGLE, BULK]), st.integers(0, 3), st.sampled_from(["end", "cancel", "body"])),
    max_size=40,
)


@given(_PLANS, st.integers(1, 4), st.integers(0, 6), st.integers(1, 100))
def test_bounds_hold_and_nothing_is_lost(
    plans: list[tuple[OperationKind, int, str]], running: int, waiting: int, percent: int
) -> None:
    """Whatever operations do, the bounds hold at every step, and at the end every place is free."""
    limiter = _limiter(running, waiting, bulk_percent=percent)
    bulk_max = max(1, int(running * percent / 100))
    under_way = dict.fromkeys(OperationKind, 0)

    async def operation(kind: OperationKind, steps: int, how: str) -> None:
        try:
            turn = await limiter.turn(kind)
        except Busy:
            return
        try:
            for _ in range(steps):
                under_way[kind] += 1
                assert sum(under_way.values()) <= running
                assert under_way[BULK] <= bulk_max
                assert limiter.waiting <= waiting
                try:
                    await asyncio.sleep(0)
                finally:
                    under_way[kind] -= 1
                if how == "body":
                    source = _GivenBody()
                    source.chunks.put_nowait(b"chunk")
                    await anext(turn.body(source))
        finally:
            turn.end()

    async def run() -> None:
        tasks = []
        for kind, steps, how in plans:
            tasks.append(asyncio.create_task(operation(kind, steps, how)))
            await asyncio.sleep(0)
            if how == "cancel":
                tasks[len(tasks) // 2].cancel()
        for outcome in await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10):
            assert outcome is None or isinstance(outcome, asyncio.CancelledError), outcome

    asyncio.run(run())
    assert (limiter.running, limiter.waiting) == (0, 0)
