"""The real server, as a process of its own, for tests from the outside.

Guarantees: what is started is ``python -m tierstore serve`` with this interpreter, on a free port, with settings from
nowhere but the arguments; when the context ends, it and its workers are gone, however the test went. Its standard error
goes to a file, so that a server that logs much never waits for the test. A server with ``faults`` is the same one over
stores that fail, and kill it, as they are told (`tierstore.testing.process_faults`).

Does not: wait without blocking. In an asynchronous test, only wait for the server where nothing else has to go on.
"""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tierstore.config_loading import ENVIRONMENT_PREFIX
from tierstore.testing.process_faults import (
    CONTROL_VARIABLE,
    FAULTS_VARIABLE,
    ProcessFault,
    Report,
    control_socket,
    order,
    report_of,
)

HOST: Final = "127.0.0.1"
_POLL_SECONDS = 0.02
_CONTROL_SECONDS = 10


class ServerFailed(Exception):
    """The server ended, or did not do in time what was expected. The text holds its log."""


class ServerProcess:
    """A server with its stores in ``data``; start another one on the same directory to restart it.

    A context manager, plain or asynchronous: ready at its beginning, dead at its end. ``arguments`` are added to those
    of ``serve``; ``config`` has sections by name, and is handed over in the environment. With ``faults``, be they none,
    its processes start with these and take others from `arm`; there are no ``arguments`` then. With ``tls`` it is asked
    with that client's context; that it serves so is in its settings.
    """

    def __init__(
        self,
        data: Path,
        *,
        workers: int = 1,
        auth: bool = False,
        faults: Sequence[ProcessFault] | None = None,
        config: Mapping[str, Mapping[str, object]] | None = None,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.data = data
        self.port = 0
        self._tls = tls
        self._environment = {name: value for name, value in os.environ.items() if not _is_private(name)}
        self._environment |= _variables(config or {})
        if faults is not None:
            self._command = [sys.executable, "-m", "tierstore.testing.faulty_server"]
            self._environment[FAULTS_VARIABLE] = order(faults)
            http: dict[str, object] = {"port": 0, "workers": workers}
            self._environment |= _variables(
                {"data": {"path": str(data)}, "log": {"format": "json"}, "auth": {"enforce": auth}, "http": http}
            )
        else:
            self._command = [sys.executable, "-m", "tierstore", "serve", "--port", "0", "--data", str(data)]
            self._command += ["--log-format", "json", *([] if auth else ["--no-auth"])]
            self._command += [*(["--workers", str(workers)] if workers != 1 else []), *arguments]
        self._environment |= environment or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._log = b""
        self._log_descriptor = -1

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """``http://host:port``, or ``https``, without a slash at the end."""
        return f"{'https' if self._tls else 'http'}://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """Of the process that was started; with several workers, their supervisor's."""
        return self._started.pid

    @property
    def worker_pids(self) -> list[int]:
        """Of the processes that serve, as the log tells it: without those that were reported dead."""
        return living_workers(self._finished_lines) or [self.pid]

    @property
    def log_text(self) -> str:
        """What the server has written so far, to standard output and standard error."""
        return (self._log if self._log_descriptor < 0 else self._read_log()).decode(errors="replace")

    def logs(self, event: str | None = None) -> list[dict[str, Any]]:
        """The finished log lines, all of which must be JSON; only those of ``event`` if it is given."""
        lines = [json.loads(line) for line in self._finished_lines]
        return [line for line in lines if event is None or line["event"] == event]

    @property
    def _finished_lines(self) -> list[str]:
        return [line for line in self.log_text.splitlines(keepends=True) if line.endswith("\n")]

    def arm(self, *faults: ProcessFault) -> list[Report]:
        """Give these faults to each process that serves, in place of its last ones; return what each tells of those.

        For a server with ``faults`` that is ready. Blocks, though not for long. Raises `ServerFailed`.
        """
        return [self._order(pid, faults) for pid in self.worker_pids]

    def start(self) -> None:
        """Start the process and return without waiting for it. To be followed by `close`."""
        self._temporary = tempfile.TemporaryDirectory(prefix="tierstore-test-", ignore_cleanup_errors=True)
        self._log_descriptor = os.open(Path(self._temporary.name) / "log", os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=self._log_descriptor,
            stderr=self._log_descriptor,
            env={"TMPDIR": self._temporary.name, CONTROL_VARIABLE: self._temporary.name} | self._environment,
            start_new_session=True,  # so that what is left of it can be killed as a group
        )

    def close(self) -> None:
        """Kill what still runs of it. Its log can still be read."""
        if self._process is not None:
            self.kill()
        if self._log_descriptor >= 0:
            self._log = self._read_log()
            os.close(self._log_descriptor)
            self._log_descriptor = -1
        if self._temporary is not None:
            self._temporary.cleanup()

    def wait_ready(self, seconds: float = 20) -> None:
        """Wait until ``/ready`` answers 200. Raises `ServerFailed`."""
        # Looked for as text: a server that refuses to start says so in a plain sentence, which is not a log line.
        self.wait_until(lambda: re.search(r'"event":"listening".*\n', self.log_text) is not None, "listens", seconds)
        self.port = self.logs("listening")[0]["port"]
        self.wait_until(lambda: self.status("/ready") == 200, "is ready", seconds)

    def wait_until(self, holds: Callable[[], bool], what: str, seconds: float = 20) -> None:
        """Wait until ``holds()``, which is ``what`` the server does then. Raises `ServerFailed`."""
        deadline = time.monotonic() + seconds
        while not holds():
            if (exit_code := self._started.poll()) is not None:
                raise ServerFailed(f"the server ended with {exit_code} before it {what}:\n{self.log_text}")
            if time.monotonic() >= deadline:
                raise ServerFailed(f"the server is late: not yet true that it {what}:\n{self.log_text}")
            time.sleep(_POLL_SECONDS)

    def status(self, path: str) -> int | None:
        """The status that a GET of ``path``, on a connection of its own, is answered with; None without an answer."""
        if self._tls is None:
            connecting = http.client.HTTPConnection(HOST, self.port, timeout=5)
        else:
            connecting = http.client.HTTPSConnection(HOST, self.port, timeout=5, context=self._tls)
        with contextlib.closing(connecting) as connection:
            try:
                connection.request("GET", path)
                return connection.getresponse().status
            except (OSError, http.client.HTTPException):
                return None

    def terminate(self) -> None:
        """Ask it to stop (SIGTERM). `wait` for its end."""
        self._started.terminate()

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process that was started, and to it only."""
        self._started.send_signal(number)

    def kill(self) -> None:
        """Kill the process and its workers, as a crash would (SIGKILL), and wait until they are gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self, seconds: float = 20) -> int:
        """Wait for its end and return the exit code. Raises `ServerFailed`."""
        try:
            return self._started.wait(seconds)
        except subprocess.TimeoutExpired:
            raise ServerFailed(f"the server has not ended within {seconds} s:\n{self.log_text}") from None

    def _order(self, pid: int, faults: Sequence[ProcessFault]) -> Report:
        if self._temporary is None:
            raise ServerFailed("the server was not started")
        with socket.socket(socket.AF_UNIX) as connection, connection.makefile("rb") as answer:
            connection.settimeout(_CONTROL_SECONDS)
            try:
                connection.connect(str(control_socket(Path(self._temporary.name), pid)))
                connection.sendall(order(faults).encode() + b"\n")
                return report_of(answer.readline())
            except (OSError, ValueError) as error:
                raise ServerFailed(f"the process {pid} took no order ({error!r}):\n{self.log_text}") from error

    def _read_log(self) -> bytes:
        return os.pread(self._log_descriptor, os.fstat(self._log_descriptor).st_size, 0)

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServerFailed("the server was not started")
        return self._process


def _variables(config: Mapping[str, Mapping[str, object]]) -> dict[str, str]:
    """The environment variables that hand settings over."""
    return {
        f"{ENVIRONMENT_PREFIX}{section}__{name}".upper(): value if isinstance(value, str) else json.dumps(value)
        for section, settings in config.items()
        for name, value in settings.items()
    }


def living_workers(log_lines: Sequence[str]) -> list[int]:
    """The workers whose start a log tells of, and no death."""
    events = [_behind_half_a_line(line) for line in log_lines if '"worker_pid":' in line]
    dead = {event["worker_pid"] for event in events if event["event"] == "worker died"}
    started = [event["worker_pid"] for event in events if event["event"] == "worker started"]
    return [pid for pid in started if pid not in dead]


def _behind_half_a_line(line: str) -> dict[str, Any]:
    """A log line that another process has written, maybe behind half a line of one that was killed as it wrote."""
    begins = -1
    while True:
        begins = line.index('{"', begins + 1)
        with contextlib.suppress(json.JSONDecodeError):
            event: dict[str, Any] = json.loads(line[begins:])
            return event


def _is_private(name: str) -> bool:
    """Whether a variable is this process's own business."""
    return name.startswith(ENVIRONMENT_PREFIX) or name == "TMPDIR"
