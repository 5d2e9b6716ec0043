"""Several worker processes on one port, and the process that keeps them.

The supervisor takes no requests. It starts the workers with the listening socket, starts another for each that dies,
passes on the request to stop, and waits for them. uvicorn has a supervisor too; this one exists because that one can
neither pass a pause before closing to its workers, nor be forced while it waits, nor stop workers that outlive it.

Guarantees:

- Workers see one request to stop, SIGTERM; a Ctrl+C, which a terminal sends to all, is the supervisor's alone.
- SIGHUP makes it read the settings again, and its workers take over what it read (`tierstore.process.reload`).
- A worker that does not end in time is killed; the exit code is then 1. A second SIGINT kills all at once.
- A worker ends by itself when the supervisor has gone, however it went: no server is ever left without its keeper.
- A worker that fails before all have served once ends everything (exit code 1); later, a death costs only that worker's
  own requests, and one that fails to start is tried again with growing pauses.
"""

import contextlib
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import TYPE_CHECKING

import structlog

from tierstore.clock import Clock
from tierstore.config import Config, limits_from
from tierstore.errors import StartupError
from tierstore.logs import configure_logs
from tierstore.process.metrics_directory import allocate_metrics, retire_metrics
from tierstore.process.reload import hand_over, settings_again
from tierstore.process.worker import EXIT_FORCED, HANDLED_SIGNALS, has_terminal, run_worker

if TYPE_CHECKING:
    from tierstore.build import OpenStores

_RESTART_SECONDS_MIN = 0.1
"""The pause after a worker could not start; it doubles with each further failure."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Worker:
    """One worker process. ``started`` becomes readable when it serves, or when it ends."""

    process: BaseProcess
    started: Connection
    serving: bool = False


def work(
    config: Config, listener: socket.socket, started: Connection, open_stores_of: "OpenStores | None" = None
) -> None:
    """What a worker process runs. Writes to ``started`` once it serves."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    configure_logs(config.log)
    parent = multiprocessing.parent_process()

    def report_started() -> None:
        with started, contextlib.suppress(OSError):  # nobody reads it when the supervisor has gone
            started.send_bytes(b"serving")

    try:
        allocate_metrics()
        run_worker(config, listener, report_started, parent.sentinel if parent else None, open_stores_of)
    except StartupError as error:
        log.error("this worker could not start", reason=str(error))  # noqa: TRY400  # because the sentence says it all
        sys.exit(1)
    except Exception:
        log.exception("this worker failed")
        sys.exit(1)


class Supervisor:
    """Keeps ``http.workers`` processes serving ``listener``. Calls ``started`` when all of them do.

    ``open_stores_of`` as for `tierstore.build.create_application`; it goes to other processes, so it can be pickled.
    ``reread`` reads the settings again, on SIGHUP.
    """

    def __init__(
        self,
        config: Config,
        listener: socket.socket,
        started: Callable[[], None],
        clock: Clock,
        open_stores_of: "OpenStores | None" = None,
        reread: Callable[[], Config] | None = None,
    ) -> None:
        self._config = config
        self._listener = listener
        self._report_started = started
        self._clock = clock
        self._open_stores_of = open_stores_of
        self._reread = reread
        self._in_terminal = has_terminal()
        self._limits = limits_from(config)
        self._spawning = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._announced = False
        self._exit_code = 0
        self._failed_starts = 0
        self._start_after = clock.monotonic()
        self._kill_after: float | None = None
        self._signals: list[int] = []

    def run(self) -> int:
        """Supervise until told to stop, and return the exit code. Raises `StartupError`."""
        try:
            with self._signals_wake() as wakeup:
                while not self._stopping or self._workers:
                    self._start_missing()
                    self._wait(wakeup)
                    self._obey_signals()
                    self._note_started()
                    self._note_ended()
                    self._kill_late()
        finally:
            self._kill_all()
        if not self._announced and self._exit_code == 1:
            raise StartupError("a worker process could not start; the log lines above say why")
        log.info("all workers have stopped")
        return self._exit_code

    @property
    def _stopping(self) -> bool:
        return self._kill_after is not None

    @contextlib.contextmanager
    def _signals_wake(self) -> Iterator[socket.socket]:
        """Note the signals that are obeyed, and make the socket readable when one has come."""
        readable, written = socket.socketpair()
        with readable, written:
            readable.setblocking(False)
            written.setblocking(False)
            wakeup_before = signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
            previous = {stop: signal.signal(stop, self._note_signal) for stop in HANDLED_SIGNALS}
            try:
                yield readable
            finally:
                for stop, handler in previous.items():
                    signal.signal(stop, handler)
                signal.set_wakeup_fd(wakeup_before)

    def _note_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(number)

    def _wait(self, wakeup: socket.socket) -> None:
        """Wait for a signal, for a worker that serves or ends, or until something is due."""
        awaited: list[Connection | socket.socket | int] = [wakeup]
        awaited += [worker.process.sentinel for worker in self._workers]
        awaited += [worker.started for worker in self._workers if not worker.started.closed]
        due = self._kill_after
        if not self._stopping and len(self._workers) < self._config.http.workers:
            due = self._start_after
        seconds = None if due is None or math.isinf(due) else max(0.0, due - self._clock.monotonic())
        multiprocessing.connection.wait(awaited, seconds)
        with contextlib.suppress(BlockingIOError):
            wakeup.recv(4096)

    def _start_missing(self) -> None:
        while not self._stopping and len(self._workers) < self._config.http.workers:
            if self._clock.monotonic() < self._start_after:
                return
            self._start_worker()

    def _start_worker(self) -> None:
        reading, writing = self._spawning.Pipe(duplex=False)
        args = (self._config, self._listener, writing, self._open_stores_of)
        process = self._spawning.Process(target=work, args=args, daemon=True)
        # Starting the tracker, which the first child needs, would unblock what is blocked here.
        resource_tracker.ensure_running()
        # Inherited by the child, which unblocks them when it can obey: until then they wait.
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)
        try:
            with writing:
                process.start()
        except OSError as error:
            reading.close()
            log.error("no worker process can be made", reason=str(error))  # noqa: TRY400  # because the reason is all
            self._note_failed_start()
            return
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED_SIGNALS)
        self._workers.append(_Worker(process, reading))
        log.info("worker started", worker_pid=process.pid)

    def _note_started(self) -> None:
        for worker in self._workers:
            if not worker.started.closed and worker.started.poll():
                with worker.started, contextlib.suppress(EOFError):
                    worker.started.recv_bytes()
                    worker.serving = True
                    self._failed_starts = 0
                    log.info("worker serves", worker_pid=worker.process.pid)
        serving = sum(worker.serving for worker in self._workers)
        if not self._announced and serving == self._config.http.workers:
            self._announced = True
            self._report_started()

    def _note_ended(self) -> None:
        for worker in [worker for worker in self._workers if worker.process.exitcode is not None]:
            exit_code, pid = worker.process.exitcode, worker.process.pid
            self._workers.remove(worker)
            worker.started.close()
            worker.process.close()
            if pid is not None:
                retire_metrics(pid)
            if self._stopping:
                log.info("worker ended", worker_pid=pid, exit_code=exit_code)
                self._exit_code = self._exit_code or int(exit_code != 0)
                continue
            log.error("worker died", worker_pid=pid, exit_code=exit_code, served=worker.serving)
            if not worker.serving:
                self._note_failed_start()

    def _note_failed_start(self) -> None:
        if not self._announced:
            self._exit_code = 1
            self._stop()
            return
        pause = min(_RESTART_SECONDS_MIN * 2**self._failed_starts, self._limits.worker_restart_seconds_max)
        self._failed_starts = min(self._failed_starts + 1, 16)
        self._start_after = self._clock.monotonic() + pause

    def _obey_signals(self) -> None:
        while self._signals:
            number = self._signals.pop(0)
            if number == signal.SIGHUP and not (self._in_terminal and not has_terminal()):
                if not self._stopping:
                    self._reload()
            elif not self._stopping:
                log.info("stopping", signal=signal.Signals(number).name)
                self._stop()
            elif number == signal.SIGINT:
                log.warning("stopping at once")
                self._exit_code = EXIT_FORCED
                self._kill_all()

    def _reload(self) -> None:
        """Read the settings again, and have the workers take them over, those that start from now on too."""
        changed = settings_again(self._reread, self._config)
        if changed is None:
            return
        try:
            hand_over(changed)
        except OSError as error:
            log.error("reload failed; the settings before stay in force", reason=str(error))  # noqa: TRY400  # because the reason is all
            return
        self._config = changed
        for worker in self._workers:
            if worker.process.pid is not None and worker.process.exitcode is None:
                os.kill(worker.process.pid, signal.SIGHUP)

    def _stop(self) -> None:
        if self._stopping:
            return
        http = self._config.http
        # Requests, then mutations, then cleanup may take the grace; then the stores are closed.
        seconds = http.shutdown_delay + 3 * http.shutdown_grace + self._limits.worker_stop_seconds_max
        self._kill_after = self._clock.monotonic() + seconds
        self._listener.close()  # the workers have their own; when they have closed it, nobody may connect
        for worker in self._workers:
            worker.process.terminate()

    def _kill_late(self) -> None:
        if self._kill_after is not None and self._clock.monotonic() >= self._kill_after:
            log.error("workers have not stopped in time and are killed", workers=len(self._workers))
            self._exit_code = self._exit_code or 1
            self._kill_after = math.inf
            self._kill_all()

    def _kill_all(self) -> None:
        for worker in self._workers:
            worker.process.kill()
