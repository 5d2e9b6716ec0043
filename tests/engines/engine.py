"""A real engine of a store, as a process of its own on loopback, for tests.

Guarantees: what a test starts is gone at its end, with its files, however the test went, also if its process is killed
(where the machine has ``setpriv``); every wait has a bound; an engine that does not start says why, with what it wrote.
An engine that this machine does not have skips the tests that want it, visibly; with ``CI=true`` they fail.

Does not: wait without blocking. In an asynchronous test, start and stop it where nothing else has to go on, or in a
thread.
"""

import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Final, Self, TypeVar

import psutil
import pytest

HOST: Final = "127.0.0.1"
_POLL_SECONDS = 0.01
_LOG_CHARACTERS_MAX = 4_000
"""How much of what an engine wrote is in the text of its failure."""
_PORTS = range(12_000, 22_000)
"""Below what systems give to outgoing connections, so that none takes the port of an engine that is down; and so that
a port that is 10,000 higher is there, too."""
_PORT_DRAWS_MAX = 1_000
_STARTER: Final = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engines")
"""The thread that starts engines, because it lives for as long as this process."""


class EngineMissing(Exception):
    """The engine is not on this machine. The text says what is missing."""


class EngineFailed(Exception):
    """The engine ended, or did not do in time what was expected. The text holds the end of its log."""


class Engine(ABC):
    """One engine with its files in ``home``. Made by a test's fixture; `close` ends it.

    The constructor of a derived class raises `EngineMissing` where the engine cannot be had. ``port`` and ``address``
    stay the same however often it is restarted.
    """

    name: ClassVar[str]
    start_seconds_max: ClassVar[float] = 20.0
    stop_seconds_max: ClassVar[float] = 10.0
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, *, port: int | None = None, user: str | None = None, folder: Path | None = None) -> None:
        """Choose a port, unless it is given, and make ``home``, in ``folder`` or where temporary files are.

        With ``user`` the process, and ``home``, are theirs.
        """
        self.port = free_ports(1)[0] if port is None else port
        self._account = None if user is None else pwd.getpwnam(user)
        self._process: subprocess.Popen[bytes] | None = None
        self.home = Path(tempfile.mkdtemp(prefix=f"tierstore-{self.name}-", dir=folder))
        self.log = self.home / "log"
        self.give(self.home)

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"{HOST}:{self.port}"

    @abstractmethod
    def command(self) -> Sequence[str]:
        """What runs in the foreground until it is told to stop."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether it serves now; asked again and again while it starts. An `OSError` means no."""

    def environment(self) -> Mapping[str, str]:
        """Variables that it gets beside those of this process."""
        return {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        return self._started.pid

    @property
    def runs(self) -> bool:
        """Whether it was started, and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def log_text(self) -> str:
        """What it has written so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def start(self) -> None:
        """Start it, and wait until it serves. What it kept before it was stopped is there. Raises `EngineFailed`."""
        with self.log.open("ab") as log:
            self._process = self._spawn(self.command(), log.fileno())
        try:
            self.wait_until(self._serves, "serves", self.start_seconds_max)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Ask it to stop, and wait for its end; kill it if it does not. Nothing happens if it is not running."""
        if self._process is None:
            return
        self._process.send_signal(self.stop_signal)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(self.stop_seconds_max)
        self.kill()

    def kill(self) -> None:
        """Kill it and all that it has started, as a crash would (SIGKILL), and wait until they are gone."""
        if self._process is None:
            return
        family = self._family()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(self.stop_seconds_max)
        deadline = time.monotonic() + self.stop_seconds_max
        while any(map(_runs, family)) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        self._process = None

    def restart(self) -> None:
        """Stop it and start it again."""
        self.stop()
        self.start()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Meanwhile it stands still (SIGSTOP): connections stay, and nothing is answered."""
        family = self._family()
        for process in family:
            process.suspend()
        try:
            yield
        finally:
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()

    def close(self) -> None:
        """Kill what still runs of it, and remove its files. Safe to repeat."""
        self.kill()
        shutil.rmtree(self.home, ignore_errors=True)

    def run(self, *command: str, seconds: float = 60.0) -> None:
        """Run a command of the engine's to its end, as its user, with its output in the log. Raises `EngineFailed`."""
        with self.log.open("ab") as log:
            process = self._spawn(command, log.fileno())
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise self._failure(f"{command[0]} has not ended within {seconds} s") from None
        if code != 0:
            raise self._failure(f"{command[0]} ended with {code}")

    def give(self, path: Path) -> None:
        """Let the engine's user own ``path``."""
        if self._account is not None:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)

    def wait_until(self, holds: Callable[[], bool], what: str, seconds: float) -> None:
        """Wait until ``holds()``, which is ``what`` the engine does then. Raises `EngineFailed`."""
        deadline = time.monotonic() + seconds
        while not holds():
            if (code := self._started.poll()) is not None:
                raise self._failure(f"it ended with {code} before it {what}")
            if time.monotonic() >= deadline:
                raise self._failure(f"not yet true after {seconds} s that it {what}")
            time.sleep(_POLL_SECONDS)

    def _serves(self) -> bool:
        try:
            return self.answers()
        except OSError:
            return False

    def _spawn(self, command: Sequence[str], log: int) -> subprocess.Popen[bytes]:
        as_user = self._account
        # Has the kernel kill it when the thread ends that started it; after the change of user, which would undo that.
        bound = ("setpriv", "--pdeathsig", "KILL", "--") if shutil.which("setpriv") else ()
        starting = _STARTER.submit(
            subprocess.Popen,
            [*bound, *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=self.home,
            env={**os.environ, "HOME": str(self.home), **self.environment()},
            user=None if as_user is None else as_user.pw_uid,
            group=None if as_user is None else as_user.pw_gid,
            extra_groups=None if as_user is None else [],
            start_new_session=True,  # so that a signal to the tests is not one to it
        )
        return starting.result()

    def _family(self) -> list[psutil.Process]:
        """The process and all that it has started, it first."""
        try:
            process = psutil.Process(self._started.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _failure(self, text: str) -> EngineFailed:
        return EngineFailed(f"{self.name}: {text}:\n{self.log_text[-_LOG_CHARACTERS_MAX:]}")

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise EngineFailed(f"{self.name} was not started")
        return self._process


T = TypeVar("T")
E = TypeVar("E", bound=Engine)


def engine_or_skip(start: Callable[[], T]) -> T:
    """``start()``, or the test is skipped with the reason that its `EngineMissing` gives; with ``CI=true`` it fails."""
    try:
        return start()
    except EngineMissing as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(str(missing))
        pytest.skip(str(missing))


def serving(make: Callable[[], E]) -> Iterator[E]:
    """What a fixture yields from: an engine that serves, made by ``make``, and that is gone at the end."""
    engine = engine_or_skip(make)
    try:
        engine.start()
        yield engine
    finally:
        engine.close()


def _runs(process: psutil.Process) -> bool:
    """Whether it is there; one that is dead and waits for somebody to ask for its exit code is not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ordinary_user(*names: str) -> str | None:
    """For engines that refuse to run as root: the first of ``names`` that the machine knows, None if we are not root.

    Raises `EngineMissing` if it knows none of them.
    """
    if os.geteuid() != 0:
        return None
    known = {account.pw_name for account in pwd.getpwall()}
    for name in names:
        if name in known:
            return name
    raise EngineMissing(f"this machine has no user {' or '.join(names)} to run an engine as")


def memory_folder(bytes_min: int) -> Path | None:
    """Where files are in memory, so that their syncs cost nothing; None if there is no such place with so much room."""
    folder = Path("/dev/shm")
    if not os.access(folder, os.W_OK) or shutil.disk_usage(folder).free < bytes_min:
        return None
    return folder


def executable(name: str, *folders: Path) -> str:
    """The program called ``name`` in the first of ``folders`` that has it, or in the path. Raises `EngineMissing`."""
    for folder in folders:
        if os.access(folder / name, os.X_OK):
            return str(folder / name)
    if (found := shutil.which(name)) is None:
        raise EngineMissing(f"{name} is not installed")
    return found


def free_ports(count: int, *, beside: Sequence[int] = ()) -> list[int]:
    """``count`` ports that nobody listens on; nor on the ones that are higher by each of ``beside``."""
    found: list[int] = []
    for _ in range(_PORT_DRAWS_MAX):
        port = random.choice(_PORTS)
        if port not in found and all(_is_free(port + offset) for offset in (0, *beside)):
            found.append(port)
        if len(found) == count:
            return found
    raise EngineMissing("this machine has no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
