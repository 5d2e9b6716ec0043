"""Rounds of load and faults on one directory: each is read back and judged, and at the end nothing may be left over.

At the end every upload is concluded: one that nobody has ended can be completed, however long ago whoever was settling
it was killed, as soon as that one's lease is over. A campaign in which too little was done to tell anything fails.
"""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from tests.engines.deployment import EMBEDDED, Deployment
from tests.kill.history import Violation, Write
from tests.kill.ledger import Ledger
from tests.kill.load import LoadClient, Shared
from tests.kill.plan import CLIENTS, Fault, Plan, PlannedFault, Round
from tests.kill.remains import check_remains
from tests.kill.server import LivingServers
from tests.kill.session_load import SharedSessions
from tests.kill.sessions import Session, SessionLedger
from tests.kill.uploads import COMPLETED_AFTER_A_KILL, Upload, UploadLedger
from tierstore.limits import Limits
from tierstore.testing.process_faults import ProcessFault

_ANSWER_SECONDS_MAX = 30.0
_READERS = 4
_PAUSE_SECONDS = 0.05
_DECIDE_TRIES_MAX = 2
_CONCLUDE_SECONDS_MAX = Limits().sweep_lease_seconds + 2 * Limits().complete_wait_seconds_max + 5.0
"""How long a killed sweeper, or a killed abort, is waited for, and then the one who takes over."""
_CONCLUDE_PATIENCE_SECONDS = 2 * Limits().complete_wait_seconds_max
_CONCLUDED_AT_ONCE = 8
_ROUNDS_JUDGED_MIN = 7
"""With so many rounds each kind of them has come."""
FLOORS: Mapping[str, int] = {
    "put_done": 30,
    "delete_done": 10,
    "read_done": 30,
    "complete_done": 10,
    "session_done": 5,
    "abort_never": 1,
    COMPLETED_AFTER_A_KILL: 1,
}
"""What has to have been acknowledged, and how often, in a campaign of so many rounds: far less than what is."""
_TOLD_LINES = 40
_TOLD_CHARACTERS = 400
_FRAMES = re.compile(r'"frames":\[[^]]*\],?')
_ALARMS = ("Traceback", "lost blob", '"level":"critical"', "CorruptObject", "InvariantBroken")
"""Words that the server's log never has, whatever is done to it here."""


class Campaign:
    """The rounds of ``plan``, with what is embedded in ``directory``.

    With ``faults``, on servers that have these; on ``deployment``: see `LivingServers`.
    """

    def __init__(
        self,
        directory: Path,
        plan: Plan,
        faults: Sequence[ProcessFault] | None = None,
        conclude_seconds_max: float = _CONCLUDE_SECONDS_MAX,
        deployment: Deployment = EMBEDDED,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._conclude_seconds_max = conclude_seconds_max
        self._plan = plan
        self._ledger = Ledger()
        self._ledger.counts = self.counts
        self._uploads = UploadLedger(self._ledger, plan.retention_seconds())
        self._sessions = SharedSessions(SessionLedger(self._ledger, plan.retention_seconds()), plan.part_bytes_min())
        self._server = LivingServers(
            directory,
            self.counts,
            servers=plan.servers(),
            workers=plan.workers(),
            faults=faults,
            deployment=deployment,
        )
        self._shared = Shared(
            self._ledger, self._uploads, self._sessions, self._server, plan.part_bytes_min(), plan.weights()
        )
        self._clients = [LoadClient(number, self._shared) for number in range(CLIENTS)]
        self._concluder = LoadClient(CLIENTS, self._shared, _CONCLUDE_PATIENCE_SECONDS)
        self._life = 0
        self._emptying: set[asyncio.Task[None]] = set()

    async def run(self, goes_on: Callable[[int], bool]) -> None:
        """Rounds for as long as ``goes_on``, asked with how many were done; then the end. Raises `Violation`."""
        rounds = self._plan.rounds()
        asyncio.get_running_loop().set_exception_handler(_pass_over_broken_connections)
        try:
            await self._server.start(self._plan.config(self._life))
            while goes_on(self.counts["rounds"]):
                await self._round(next(rounds))
                self.counts["rounds"] += 1
            if self.counts["rounds"] >= _ROUNDS_JUDGED_MIN:
                check_enough_was_done(self.counts)
            await self._end()
        except Violation as violation:
            raise Violation(f"{violation}\n{self._circumstances()}") from violation
        finally:
            await _end_the_rest()
            for client in [*self._clients, self._concluder]:
                await client.close()
            await self._server.resume_all()
            self._server.close()

    async def _round(self, planned: Round) -> None:
        """Load and faults, then calm: decide uploads, read everything back, judge."""
        number = self._shared.round_number = self.counts["rounds"]
        self._shared.until = time.monotonic() + planned.seconds
        begun = time.monotonic()
        loads = [client.load(self._plan.client(number, index)) for index, client in enumerate(self._clients)]
        await _all(self._faults(planned, begun), *loads)
        for task in self._emptying:
            task.cancel()
        await asyncio.gather(*self._emptying, return_exceptions=True)
        self._emptying.clear()
        self._server.empty_disk()
        await self._server.resume_all()
        await self._server.recover()
        await self._calm()

    async def _faults(self, planned: Round, begun: float) -> None:
        for fault in planned.faults:
            await asyncio.sleep(max(0.0, begun + fault.at - time.monotonic()))
            await self._do(fault)
        self._shared.until = max(self._shared.until, time.monotonic() + self._plan.seconds_after_faults())

    async def _do(self, planned: PlannedFault) -> None:
        match planned.fault:
            case Fault.KILL_WORKER:
                self._uploads.killed()
                self._server.kill_worker(planned.choice)
            case Fault.PAUSE:
                self._server.pause_worker(planned.choice, planned.seconds)
            case Fault.FULL_DISK:
                self._server.fill_disk(planned.choice)
                self._emptying.add(asyncio.get_running_loop().create_task(self._empty_later(planned.seconds)))
            case Fault.KILL_GROUP:
                self._uploads.killed()
                await self._server.kill()
                await self._next_life()
            case Fault.RESTART:
                await self._server.stop()
                self.counts["restarts"] += 1
                await self._next_life()
            case _:
                await self._do_to_one(planned)

    async def _do_to_one(self, planned: PlannedFault) -> None:
        """Harm one of several servers, an engine, or a line to one."""
        deployment, choice, seconds = self._server.deployment, planned.choice, planned.seconds
        match planned.fault:
            case Fault.KILL_SERVER:
                self._uploads.killed()
                await self._server.kill_server(choice, seconds)
                return
            case Fault.KILL_ENGINE:
                harmed = await deployment.kill_engine(choice, seconds)
            case Fault.PAUSE_ENGINE:
                harmed = await deployment.pause_engine(choice, seconds)
            case Fault.CUT_LINE:
                harmed = deployment.cut_line(choice)
            case Fault.BLOCK_LINE:
                harmed = await deployment.block_line(choice, seconds)
            case Fault.HOLD_LINE:
                harmed = await deployment.hold_line(choice, seconds)
            case _:
                raise AssertionError(planned)
        self.counts[planned.fault.value] += 1
        self.counts[f"{planned.fault.value}: {harmed}"] += 1
        self._server.note(f"{planned.fault.value}: {harmed}, for {seconds:.2f} s until now")

    async def _empty_later(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._server.empty_disk()

    async def _next_life(self) -> None:
        self._ledger.end_life(self._server.ended_at)
        self._uploads.end_life(self._server.ended_at)
        self._life += 1
        await self._server.start(self._plan.config(self._life))

    async def _calm(self) -> None:
        """Learn what became of everything, without faults; judge it."""
        for upload in self._uploads.uploads:
            upload_open = upload in self._shared.open_uploads
            if not (upload.decided or upload_open or upload.ending > time.monotonic()):
                await self._decide(upload)
        for session in self._sessions.ledger.sessions:
            if not (session.decided or session in self._sessions.open):
                await self._clients[0].sessions.decide(session)
        await self._judge()

    async def _judge(self) -> None:
        keys = asyncio.Queue[str]()
        for key in self._ledger.keys:
            keys.put_nowait(key)
        await _all(*[self._read_back(client, keys) for client in self._clients[:_READERS]])
        self._ledger.judge_round()

    async def _decide(self, upload: Upload) -> None:
        """Ask what became of it. Nobody can tell while whoever was killed settling it is thought to be still at it."""
        for _ in range(_DECIDE_TRIES_MAX):
            await self._clients[0].decide(upload)
            if upload.settled:
                return
        self.counts["undecided_uploads"] += 1

    async def _read_back(self, client: LoadClient, keys: asyncio.Queue[str]) -> None:
        while not keys.empty():
            key = keys.get_nowait()
            deadline = time.monotonic() + _ANSWER_SECONDS_MAX
            while not await client.read_back(key):
                if time.monotonic() > deadline:
                    raise Violation(f"key {key} cannot be read, long after the last fault")
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _end(self) -> None:
        """One more life without load or faults, whose answers are exact; then what is in the stores."""
        await self._server.kill()
        await self._next_life()
        await self._conclude()
        await self._judge()
        await self._server.stop()
        self._check_logs()
        expected: dict[str, Write] = {}
        for key in self._ledger.keys:
            held = self._ledger.can_hold(key)
            if len(held) != 1:
                raise Violation(f"key {key} was read, and could still hold any of {held}")
            (write,) = held
            if write is not None and write.ttl_seconds is None:
                expected[key] = write
        try:
            await check_remains(self._server.data, expected, self._server.deployment)
        except Violation as violation:
            could = {
                key: [(write.identity, write.ttl_seconds) for write in self._ledger.can_hold(key) if write]
                for key in self._ledger.keys
            }
            raise Violation(f"{violation}\nThe ledger: {could}") from violation

    async def _conclude(self) -> None:
        """Complete or abort every upload, of either kind. Raises `Violation` if that cannot be done to one of them."""
        deadline = time.monotonic() + self._conclude_seconds_max
        client = self._concluder
        left: Iterator[Upload | Session] = iter(
            [upload for upload in self._uploads.uploads if not upload.settled]
            + [session for session in self._sessions.ledger.sessions if not session.decided]
        )

        async def conclude() -> None:
            for each in left:
                while not await client.concluded(each):
                    if time.monotonic() > deadline:
                        raise Violation(
                            f"key {each.write.key}, upload {each.write.identity}: neither completed nor ended, "
                            f"{self._conclude_seconds_max} seconds after the last fault"
                        )
                    await asyncio.sleep(_PAUSE_SECONDS)
                self.counts["concluded_uploads" if isinstance(each, Upload) else "concluded_sessions"] += 1

        await _all(*[conclude() for _ in range(_CONCLUDED_AT_ONCE)])

    def _check_logs(self) -> None:
        if alarms := self._server.log_lines(*_ALARMS):
            raise Violation("the server's log has what it must never have:\n" + "\n".join(alarms[-_TOLD_LINES:]))

    def _circumstances(self) -> str:
        events = "\n".join(self._server.events[-_TOLD_LINES:])
        lines = [line[:_TOLD_CHARACTERS] for line in self._server.log_lines('"level":"warning"')[-_TOLD_LINES:]]
        errors = self._server.log_lines('"level":"error"')[-_TOLD_LINES:]
        lines += [_FRAMES.sub("", line)[:_TOLD_CHARACTERS] for line in errors]
        log = "\n".join(lines)
        return (
            f"seed {self._plan.seed}, small disk: {self._plan.small_disk}, round {self.counts['rounds']}; "
            f"what was done to the server:\n{events}\nwarnings and errors of its log:\n{log}"
        )


def check_enough_was_done(counts: Mapping[str, int]) -> None:
    """Raise `Violation` if a server that does next to nothing would have passed as well."""
    if missing := {name: counts.get(name, 0) for name, least in FLOORS.items() if counts.get(name, 0) < least}:
        raise Violation(f"too little was done to tell anything: {missing}, and at least {FLOORS} is wanted")


def _pass_over_broken_connections(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Report what nobody awaits, but for the tasks that aiohttp leaves behind when a server dies under a request."""
    if not isinstance(context.get("exception"), aiohttp.ClientError):
        loop.default_exception_handler(context)


async def _end_the_rest() -> None:
    """End what still runs when a violation was found in the middle of it."""
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


async def _all(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run them at once; when one fails, end the others and raise what it raised."""
    tasks = [asyncio.get_running_loop().create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
