"""Uploads through several server processes at once, with other writers, aborts, sweepers, and answers that get lost.

Two servers, one of them with two workers, and an operator's command, work on the same stores. Rounds are drawn from
seeds; each has a key of its own, on which an upload is completed 2 to 8 times while all the others are at it. The
servers lose replies of their stores, and log what they commit before they can lose that; so every answer is judged by
what was true when it was given. Which of two racing requests is faster is not drawn: a seed repeats what is done, not
its order.
"""

import asyncio
import hashlib
import itertools
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from urllib.parse import urlencode, urlsplit

import aiohttp
import pytest

from tests.end_to_end.helpers import PROMPT_SWEEPER, remains, send_once, stop, until_log_is_empty
from tests.end_to_end.histories import (
    ABSENT,
    INVALID_PART,
    NO_SUCH_UPLOAD,
    SUCCESS,
    TRY_AGAIN,
    Answer,
    Commit,
    Read,
    UploadHistory,
    Write,
    check_reads,
)
from tierstore.build import Tools, open_tools
from tierstore.changelog.entries import State
from tierstore.config_loading import Setting, load_config
from tierstore.limits import KIB, Limits
from tierstore.testing.process_faults import Act, ProcessFault
from tierstore.testing.server import HOST, ServerProcess
from tierstore.types.ids import ObjectId, Scope
from tierstore.types.multipart import UploadId

USECASE, SCOPES = "processes", (Scope("org", "1"),)
OBJECTS, UPLOADS, PARTS, COMPLETES = (
    f"/v1/{resource}/{USECASE}/org=1"
    for resource in ("objects", "objects:multipart", "objects:multipart:parts", "objects:multipart:complete")
)
ROUNDS_PER_TEST, ROUNDS_AT_ONCE = 30, 5
TRIES_MAX = 100
ENTRIES_MAX = 100_000
LARGE_BYTES = 6 * KIB
SETTINGS = PROMPT_SWEEPER | {"tiering": PROMPT_SWEEPER["tiering"] | {"inline_max": "4 KiB"}}
IMPATIENT = SETTINGS | {"uploads": {"retention": 1}}
"""Settings of a server whose uploads are aborted a second after they began."""

CALLS = [
    (task, call)
    for task, calls in {
        "complete_upload": ("changelog.claim", "long_term.complete", "long_term.head", "high_volume.point"),
        "finish_upload": ("changelog.mark_done", "long_term.delete", "changelog.forget"),
        "clean_up": ("changelog.mark_done", "long_term.delete", "changelog.forget"),
    }.items()
    for call in calls
]
ACTS = (Act.LOSE_REPLY, Act.FAIL_BEFORE, Act.DELAY_BEFORE, Act.DELAY_AFTER)


DELAYS_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.2, 1.2)
"""With the last one the client gets a space or two before the outcome."""


def drawn_faults(random: Random) -> list[ProcessFault]:
    """What goes wrong in one process in the next moments."""
    return [
        ProcessFault(call, random.choice(ACTS), task, random.choice([1, 1, 2]), seconds=random.choice(DELAYS_SECONDS))
        for task, call in random.sample(CALLS, 5)
    ]


@dataclass
class Upload:
    """One upload, its parts as the client has them, and its history."""

    key: str
    id: str
    must_succeed: bool
    """Whether no client and no sweeper ends it but by completing it."""
    contents: dict[str, bytes] = field(default_factory=dict)
    """Parts that were stored, by their ETags."""
    lists: list[list[tuple[int, str]]] = field(default_factory=list)
    """Numbers and ETags of the parts to complete it with, the latest list last."""
    history: UploadHistory = field(default_factory=UploadHistory)

    @property
    def path(self) -> str:
        """The storage path of its revision."""
        return UploadId.decode(self.id, ObjectId(USECASE, SCOPES, self.key), Limits()).revision.storage_path

    @property
    def sees(self) -> dict[str, str]:
        """What is read of the object that each of the lists makes."""
        return {
            str(number): label(b"".join(self.contents.get(etag, b"?") for _, etag in parts))
            for number, parts in enumerate(self.lists)
        }


def label(payload: bytes) -> str:
    """What a read of ``payload`` is said to have seen."""
    return hashlib.sha256(payload).hexdigest()[:12]


class Deployment:
    """The two servers, and the operator."""

    def __init__(self, servers: Sequence[ServerProcess], http: aiohttp.ClientSession, tools: Tools) -> None:
        self.servers = servers
        self.http = http
        self.tools = tools
        self.happened: Counter[Act] = Counter()

    async def trouble(self, random: Random) -> None:
        """Give all processes other faults, again and again, until cancelled."""
        armed: dict[int, list[ProcessFault]] = {}
        try:
            while True:
                for number, server in enumerate(self.servers):
                    faults = drawn_faults(random)
                    reports = await asyncio.to_thread(server.arm, *faults)
                    for report in reports:
                        unused = Counter(fault.act for fault in report.unused)
                        self.happened += Counter(fault.act for fault in armed.get(number, [])) - unused
                    armed[number] = faults
                await asyncio.sleep(0.1)
        finally:
            for server in self.servers:
                server.arm()


@asynccontextmanager
async def deployment(data: Path) -> AsyncIterator[Deployment]:
    """Servers on the same stores, and the operator's tools, which count as another process."""
    patient = ServerProcess(data, faults=[], config=SETTINGS)
    impatient = ServerProcess(data, faults=[], config=IMPATIENT, workers=2)
    settings: Mapping[str, Mapping[str, object]] = SETTINGS | {"data": {"path": str(data)}}
    flags = {f"{part}.{name}": Setting(value, "test") for part, of in settings.items() for name, value in of.items()}
    config = load_config(None, {}, flags).config
    async with patient, impatient, open_tools(config) as tools:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as http:
            send_once(http)
            yield Deployment([patient, impatient], http, tools)
        for server in (patient, impatient):
            await asyncio.to_thread(stop, server)


class Round:
    """One seed's round on one key."""

    def __init__(self, seed: int, deployed: Deployment) -> None:
        self.random = Random(seed)
        self.seed = seed
        self.key = f"round/{seed}"
        self.deployed = deployed
        self.http = deployed.http
        self.reads: list[Read] = []
        self.writes = [Write(frozenset({ABSENT}), -math.inf, -math.inf)]
        self.uploads: list[Upload] = []
        self._payloads = 0
        self._settled: set[str] = set()
        """Revisions of uploads that the operator has settled."""

    async def run(self) -> None:
        """The round, and what its clients do until each knows how its upload has ended."""
        random = self.random
        await random.choice([self._put_small, self._put_large, self._upload_another, self._delete])()
        upload = await self._begin()
        if random.random() < 0.15:  # the attempts name a part that has been replaced
            await self._send(upload, 1)
        actors = self._attempts(upload)
        others = [self._put_small, self._put_large, self._delete, self._upload_another]
        actors += [self._later(random.choice(others)) for _ in range(random.randint(0, 4))]
        if random.random() < 0.25:
            actors.append(self._later(lambda: self._abort(upload)))
        if random.random() < 0.3:
            actors.append(self._later(lambda: self._late_part(upload)))
        if random.random() < 0.3:
            actors.append(self._later(lambda: self._settle(upload)))
        reading = asyncio.create_task(self._read_on())
        try:
            await asyncio.gather(*actors)
            await self._end(upload)
            for _ in range(random.randint(0, 4)):  # it is replaced, and while that is cleaned up somebody asks again
                await random.choice(others)()
                await self._end(random.choice(self.uploads))
        finally:
            reading.cancel()
        await self.read()

    async def run_replaced(self, fault: ProcessFault, other: str) -> None:
        """One attempt that meets the fault, then another client that replaces the object, then the retry."""
        patient = self.deployed.servers[0]
        await self._put_large()
        upload = await self._begin(patient=True)
        patient.arm(fault)
        await self._attempt(upload, patient)
        for _ in range(200):
            (report,) = patient.arm(fault)
            if not report.unused:
                break
            await asyncio.sleep(0.01)
        else:
            raise AssertionError("the fault has not happened")
        patient.arm()
        acts = {"small": self._put_small, "large": self._put_large, "upload": self._upload_another}
        await (acts | {"delete": self._delete})[other]()
        await self._end(upload)
        await self.read()

    def judge(self, commits: Mapping[str, list[Commit]]) -> None:
        """See that all was answered truthfully, and that nothing acknowledged was lost."""
        writes = list(self.writes)
        for upload in self.uploads:
            upload.history.commits = commits.get(upload.path, [])
            upload.history.check(upload.sees)
            writes += upload.history.writes(upload.sees)
            if upload.must_succeed and upload.path not in self._settled:
                assert SUCCESS in {answer.text for answer in upload.history.answers}, "nobody but its client ended it"
        check_reads(self.reads, writes)

    async def read(self) -> str | None:
        """Read the object; return what was seen, None if no server could tell."""
        begun = time.time()
        async with self.http.get(self._url(OBJECTS)) as response:
            payload = await response.read()
        if response.status == 503:
            return None
        assert response.status in {200, 404}, response.status
        seen = label(payload) if response.status == 200 else ABSENT
        self.reads.append(Read(seen, begun, time.time()))
        return seen

    def _url(self, resource: str, server: ServerProcess | None = None, **parameters: object) -> str:
        """An address at the server, or at any."""
        server = server or self.random.choice(self.deployed.servers)
        return f"{server.url}{resource}/{self.key}?{urlencode(parameters)}"

    def _payload(self, size: int) -> bytes:
        self._payloads += 1
        unit = b"%d/%d;" % (self.seed, self._payloads)
        return (unit * (size // len(unit) + 1))[:size]

    async def _later(self, act: Callable[[], Awaitable[None]]) -> None:
        await asyncio.sleep(self.random.uniform(0, 0.1))
        await act()

    async def _read_on(self) -> None:
        while True:
            await self.read()
            await asyncio.sleep(0.02)

    async def _put_small(self) -> None:
        await self._put(self._payload(self.random.randint(20, 4 * KIB)))

    async def _put_large(self) -> None:
        await self._put(self._payload(LARGE_BYTES))

    async def _put(self, payload: bytes) -> None:
        begun = time.time()
        async with self.http.put(self._url(OBJECTS), data=payload) as response:
            await response.read()
        self._wrote(label(payload), begun, response.status)

    async def _delete(self) -> None:
        begun = time.time()
        async with self.http.delete(self._url(OBJECTS)) as response:
            await response.read()
        self._wrote(ABSENT, begun, response.status)

    def _wrote(self, seen: str, begun: float, status: int) -> None:
        assert status in {200, 204, 503}, status
        self.writes.append(Write(frozenset({seen}), begun, math.inf if status == 503 else time.time()))

    async def _begin(self, *, patient: bool | None = None) -> Upload:
        """Begin an upload, by default at any server, and send its parts through all of them, in any order."""
        patient = self.random.random() < 0.7 if patient is None else patient
        server = self.deployed.servers[not patient]
        async with self.http.put(f"{server.url}{UPLOADS}/{self.key}") as response:
            upload = Upload(self.key, (await response.json())["upload_id"], must_succeed=patient)
        self.uploads.append(upload)
        numbers = [1, 2, 3]
        self.random.shuffle(numbers)
        etags = dict(zip(numbers, await asyncio.gather(*[self._send(upload, each) for each in numbers]), strict=True))
        upload.lists.append([(number, etags[number] or "none") for number in sorted(etags)])
        return upload

    async def _send(self, upload: Upload, number: int) -> str | None:
        """Send a part; return its ETag, or None if there is no such upload any more."""
        payload = self._payload(self.random.randint(1, 3 * KIB))
        url = self._url(PARTS, upload_id=upload.id, part_number=number)
        async with self.http.put(url, data=payload) as response:
            if response.status != 200:
                assert response.status in {404, 503}, response.status
                return None
            etag = str((await response.json())["etag"])
        upload.contents[etag] = payload
        return etag

    async def _late_part(self, upload: Upload) -> None:
        """One more, or another one with the number of one that the attempts name."""
        await self._send(upload, self.random.choice([1, 4]))

    async def _abort(self, upload: Upload) -> None:
        upload.must_succeed = False
        async with self.http.delete(self._url(UPLOADS, upload_id=upload.id)) as response:
            assert response.status in {204, 404, 503}, response.status
        if response.status == 204:
            upload.history.aborted = True

    async def _settle(self, upload: Upload) -> None:
        """An operator settles what the log has of the key, long before a sweeper would."""
        for _ in range(self.random.randint(1, 5)):
            for entry in await self.deployed.tools.stores.changelog.list(None, ENTRIES_MAX):
                if entry.revision.object_id.key != self.key or entry.state is State.DONE:
                    continue
                if entry.owner_is_upload:
                    if self.random.random() < 0.7:
                        continue
                    self._settled.add(entry.revision.storage_path)
                await self.deployed.tools.settler.settle(entry)
            await asyncio.sleep(self.random.uniform(0, 0.02))

    def _attempts(self, upload: Upload) -> list[Awaitable[None]]:
        """2 to 8 of them: one after the other, all at once, or in any way."""
        random = self.random
        count = random.randint(2, 8)
        wait = random.uniform(0.7, 1.3) if random.random() < 0.2 else 0.0  # for the sweepers of the impatient
        if random.random() < 0.3:
            return [self._attempt_in_turn(upload, count, wait)]
        spread = random.choice([0.0, 0.05, 0.2])
        return [self._attempt_in_turn(upload, 1, wait + random.uniform(0, spread)) for _ in range(count)]

    async def _attempt_in_turn(self, upload: Upload, count: int, wait: float) -> None:
        await asyncio.sleep(wait)
        for _ in range(count):
            if self.random.random() < 0.4:
                await self._attempt_and_leave(upload)
            else:
                await self._attempt(upload)

    def _completion(self, upload: Upload, server: ServerProcess | None = None) -> tuple[str, str, bytes]:
        """Of a completion with the latest list: the list's name, the address and the body."""
        parts = [{"part_number": number, "etag": etag} for number, etag in upload.lists[-1]]
        body = json.dumps({"parts": parts}).encode()
        return str(len(upload.lists) - 1), self._url(COMPLETES, server, upload_id=upload.id), body

    async def _attempt(self, upload: Upload, server: ServerProcess | None = None) -> str:
        """Complete the upload, through any server if none is named; return the answer."""
        parts, url, body = self._completion(upload, server)
        begun = time.time()
        async with self.http.post(url, data=body) as response:
            assert response.status == 200, response.status
            content = json.loads(await response.read())
        text = SUCCESS if content == {"key": self.key} else str(content["error"]["code"])
        upload.history.answers.append(Answer(text, parts, begun, time.time()))
        return text

    async def _attempt_and_leave(self, upload: Upload) -> None:
        """Complete the upload, and go away at any point of the answer, or before it."""
        parts, url, body = self._completion(upload)
        target = urlsplit(url)
        begun = time.time()
        reader, writer = await asyncio.open_connection(HOST, target.port)
        try:
            head = f"POST {target.path}?{target.query} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            request = head.encode() + body
            cut = self.random.choice([len(request), len(request), self.random.randrange(len(request))])
            writer.write(request[:cut])
            await writer.drain()
            with suppress(TimeoutError):
                async with asyncio.timeout(self.random.choice([0.001, 0.01, 0.05, 1.1])):
                    await reader.read(self.random.choice([1, 20, 100, 180, 1000]))
        finally:
            if self.random.random() < 0.5:
                writer.transport.abort()
            writer.close()
        upload.history.answers.append(Answer(TRY_AGAIN, parts, begun, math.inf))

    async def _upload_another(self) -> None:
        upload = await self._begin()
        await self._end(upload)

    async def _end(self, upload: Upload) -> None:
        """Try again until the client knows how its upload has ended, and once more."""
        for _ in range(TRIES_MAX):
            answer = await self._attempt(upload)
            if answer in {SUCCESS, NO_SUCH_UPLOAD}:
                assert await self._attempt(upload) in {answer, TRY_AGAIN}
                return
            if answer == INVALID_PART:
                await self._list(upload)
            await asyncio.sleep(0.1)
        raise AssertionError("the upload cannot be ended")

    async def _list(self, upload: Upload) -> None:
        """Take the parts as the server has them."""
        async with self.http.get(self._url(PARTS, upload_id=upload.id)) as response:
            if response.status == 200:
                listed = (await response.json())["parts"]
                upload.lists.append([(part["part_number"], part["etag"]) for part in listed])


def commits_of(servers: Sequence[ServerProcess]) -> dict[str, list[Commit]]:
    """When each revision became an object, as the servers have logged it, by its storage path."""
    commits: dict[str, list[Commit]] = defaultdict(list)
    for server in servers:
        for line in server.logs("pointed"):
            commits[line["revision"]].append(Commit(line["begun"], line["ended"]))
    return commits


async def run_rounds(rounds: Sequence[Round]) -> None:
    """Some at a time. A failure names its seed."""
    at_once = asyncio.Semaphore(ROUNDS_AT_ONCE)

    async def run(one: Round) -> None:
        async with at_once:
            with named(one):
                await one.run()

    async with asyncio.TaskGroup() as group:
        for one in rounds:
            group.create_task(run(one))


@contextmanager
def named(one: Round, case: str = "") -> Iterator[None]:
    """Say of a failure which seed it is of, and which case."""
    try:
        yield
    except Exception as error:
        histories = [upload.history for upload in one.uploads]
        raise AssertionError(f"seed {one.seed} {case}: {error!r}\n{one.writes}\n{histories}") from error


async def until_settled(deployed: Deployment) -> None:
    """Wait until the sweepers have settled everything.

    Of an upload that was committed, without any server having had the time to remember that, they would know only at
    the end of its retention; so the operator settles it.
    """
    for entry in await deployed.tools.stores.changelog.list(None, ENTRIES_MAX, uploads=True):
        if entry.state is State.OPEN:
            assert await deployed.tools.settler.settle(entry) in {"done", "lost"}, entry
    async with aiohttp.ClientSession(deployed.servers[0].url) as http:
        await until_log_is_empty(http)


@pytest.mark.parametrize("first", [0, 1000])
async def test_all_that_is_answered_is_true(tmp_path: Path, first: int) -> None:
    """Committed at most once, answered truthfully, nothing acknowledged lost, nothing left over; the seed is named."""
    async with deployment(tmp_path) as deployed:
        trouble = asyncio.create_task(deployed.trouble(Random(first)))
        rounds = [Round(seed, deployed) for seed in range(first, first + ROUNDS_PER_TEST)]
        await run_rounds(rounds)
        trouble.cancel()
        await asyncio.wait([trouble])
        seen = [await one.read() for one in rounds]
        await until_settled(deployed)
        assert [await one.read() for one in rounds] == seen, "a sweep changed an object"
    assert not [line for server in deployed.servers for line in server.logs() if "lost blob" in line["event"]]
    commits = commits_of(deployed.servers)
    for one in rounds:
        with named(one):
            one.judge(commits)
    answers = Counter(answer.text for one in rounds for upload in one.uploads for answer in upload.history.answers)
    assert set(answers) == {SUCCESS, NO_SUCH_UPLOAD, INVALID_PART, TRY_AGAIN}, answers
    assert set(deployed.happened) == set(ACTS), deployed.happened
    (await remains(tmp_path)).check_settled()


async def test_a_retry_learns_the_truth_though_the_object_was_replaced_meanwhile(tmp_path: Path) -> None:
    """Whatever call of the first attempt fails, before its effect or after it: the retry succeeds, and is no second
    commit; what the other client wrote stays if the upload was committed before it.
    """
    acts = (Act.FAIL_BEFORE, Act.LOSE_REPLY)
    faults = [ProcessFault(call, act, task) for task, call in CALLS if task != "clean_up" for act in acts]
    others = ("small", "large", "upload", "delete")
    async with deployment(tmp_path) as deployed:
        cases = [
            (Round(seed, deployed), fault, other)
            for seed, (fault, other) in enumerate(itertools.product(faults, others))
        ]
        for one, fault, other in cases:
            with named(one, f"{fault}, {other}"):
                await one.run_replaced(fault, other)
        await until_settled(deployed)
    commits = commits_of(deployed.servers)
    for one, fault, other in cases:
        with named(one, f"{fault}, {other}"):
            one.judge(commits)
    (await remains(tmp_path)).check_settled()


def _upload(*answers: Answer, commits: Sequence[float] = (), aborted: bool = False) -> UploadHistory:
    return UploadHistory(list(answers), aborted=aborted, commits=[Commit(at, at) for at in commits])


@pytest.mark.parametrize(
    "wrong",
    [
        _upload(Answer(SUCCESS, "0", 1, 2)),
        _upload(Answer(SUCCESS, "0", 1, 2), commits=[3]),
        _upload(Answer(SUCCESS, "0", 1, 2), commits=[1.5, 3]),
        _upload(Answer(NO_SUCH_UPLOAD, "0", 1, 2), commits=[3]),
        _upload(Answer(INVALID_PART, "0", 2, 3), commits=[1]),
        _upload(Answer("InternalError", "0", 1, 2)),
        _upload(aborted=True, commits=[1]),
    ],
)
def test_the_judge_of_answers_finds_lies(wrong: UploadHistory) -> None:
    """What was not so when it was said."""
    with pytest.raises(AssertionError):
        wrong.check({"0": "a"})


@pytest.mark.parametrize(
    "wrong",
    [
        [Read("b", 10, 11)],
        [Read(ABSENT, 10, 11)],
        [Read("a", 10, 11)],
        [Read("c", 5, 5.5)],
        [Read("c", 10, 11), Read("mixed", 10, 11)],
    ],
)
def test_the_judge_of_reads_finds_losses(wrong: Sequence[Read]) -> None:
    """A write of "a", then "b" refused for good, then "c" acknowledged, which begins at 6."""
    writes = [Write(frozenset({"a"}), 1, 2), Write(frozenset({"c", "d"}), 6, 7)]
    check_reads([Read("a", 3, 4), Read("a", 6.5, 6.6), Read("c", 6.1, 6.5), Read("d", 9, 10)], writes)
    with pytest.raises(AssertionError):
        check_reads(wrong, writes)
