"""The server process: from a checked configuration to a clean exit.

Start, in this order, so that what can be known to fail fails before anything is served: a place for the metrics, the
port, the stores (made and migrated if need be); then serving, in this process or in several
(`tierstore.process.supervisor`).

How it stops is told in `tierstore.process.worker`; the exit code is then 0.

Guarantees: nothing but the stores outlives the process, and they need no clean end: killing it loses no acknowledged
object. (Killed with -9, several workers leave their directory of metrics behind; the next server on the machine removes
it, see `tierstore.process.metrics_directory`.)
"""

import contextlib
import errno
import functools
import ipaddress
import resource
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import structlog

import tierstore
from tierstore.clock import SystemClock
from tierstore.config import EMBEDDED_PATHS, Config, Http, kind_of
from tierstore.errors import StartupError
from tierstore.logs import StandardError, configure_logs, logs_for_people
from tierstore.process.access import with_key_files_read
from tierstore.process.metrics_directory import metrics_directory, metrics_in_memory
from tierstore.process.reload import settings_again
from tierstore.process.tls import check_tls
from tierstore.process.worker import STOP_SIGNALS, run_worker

if TYPE_CHECKING:
    from tierstore.build import OpenStores

_OPEN_FILES_MAX = 65_536
"""Open files that a process asks for: connections and blobs. Often only 1,024 are given to one that does not ask."""

log = structlog.get_logger(__name__)


def serve(
    config: Config, open_stores_of: "OpenStores | None" = None, reread: Callable[[], Config] | None = None
) -> int:
    """Serve until told to stop, and return the process's exit code.

    Raises `StartupError` if serving cannot begin. To be called once, in the main thread of a process that does nothing
    else: it owns the signals, the logging and the metrics.

    ``open_stores_of`` opens other stores than the configured ones, for tests that serve over stores which fail. It goes
    to the worker processes, so it can be pickled. ``reread`` reads the settings again, on SIGHUP; it raises
    `StartupError`.
    """
    configure_logs(config.log)
    for stop in STOP_SIGNALS:
        signal.signal(stop, _stop_while_starting)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # settings are being read anyway; later it means: read them again
    config = with_key_files_read(config)
    if config.tls.certificate:
        check_tls(config.tls, SystemClock())
    _raise_open_files_limit()
    metrics = metrics_in_memory() if config.http.workers == 1 else metrics_directory()
    with metrics, open_listener(config.http) as listener:
        from tierstore.build import check_stores  # noqa: PLC0415  # because it imports the metrics

        _check_links(config)
        check_stores(config)
        host, port = listener.getsockname()[:2]
        started = functools.partial(_announce, config, host, port)
        if config.http.workers == 1:
            run_worker(
                config,
                listener,
                started,
                open_stores_of=open_stores_of,
                reread=functools.partial(settings_again, reread),
            )
            return 0
        from tierstore.process.supervisor import Supervisor  # noqa: PLC0415  # because it is for several workers only

        return Supervisor(config, listener, started, SystemClock(), open_stores_of, reread).run()


def _check_links(config: Config) -> None:
    """Raise `StartupError` if a store would be below a symbolic link that leads nowhere.

    Nothing can be made there, and the system's own words for it, "file exists", say the contrary of what is wrong.
    """
    for store in filter(None, map(config.store_path, EMBEDDED_PATHS)):
        for path in (store, *store.parents):
            with contextlib.suppress(OSError):  # then the store says why it cannot be opened
                if path.is_symlink() and (reason := _nowhere(path)):
                    raise StartupError(f"{path} is a symbolic link to {path.readlink()}, {reason}")


def _nowhere(link: Path) -> str | None:
    """Why a symbolic link leads nowhere, and what to do about it; None if it leads somewhere."""
    try:
        link.stat()
    except FileNotFoundError:
        return "which does not exist; make it, or remove the link"
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "which leads back to it; choose a directory"
    return None


def open_listener(http: Http) -> socket.socket:
    """Take the port: a listening socket, on the first of the host's addresses that can be had.

    Connections wait in it until a worker accepts them. Raises `StartupError`.
    """
    try:
        addresses = socket.getaddrinfo(http.host, http.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise StartupError(f"the host {http.host} is not known: {error}; choose another with --host") from error
    failed: OSError | None = None
    for family, kind, protocol, _, address in addresses:
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(http.backlog)
        except OSError as error:
            listener.close()
            failed = error
        else:
            return listener
    raise StartupError(_listening_failed(http, failed)) from failed


def _listening_failed(http: Http, error: OSError | None) -> str:
    where = f"port {http.port} on {http.host}"
    code = error.errno if error is not None else None
    if code == errno.EADDRINUSE:
        return f"{where} is taken by another process; choose another with --port (0 takes a free one)"
    if code == errno.EACCES:
        return f"{where} may not be opened by this user; choose a port from 1024 up with --port"
    if code == errno.EADDRNOTAVAIL:
        return f"{http.host} is not an address of this machine; choose another with --host"
    return f"{where} cannot be opened: {error}"


def _announce(config: Config, host: str, port: int) -> None:
    """Say that the server can be reached, and what may surprise about how."""
    log.info(
        "listening",
        host=host,
        port=port,
        workers=config.http.workers,
        high_volume=kind_of(config.high_volume),
        long_term=kind_of(config.long_term),
        change_log=kind_of(config.change_log),
        data_path=config.data.path,
        auth="enforced" if config.auth.enforce else "off",
        tls="on" if config.tls.certificate else "off",
        version=tierstore.__version__,
    )
    grace, deadline = config.sweeper.grace, config.tiering.operation_deadline
    if grace < deadline:
        log.warning(
            "slow uploads may be given up early",
            reason="sweeper.grace is shorter than tiering.operation_deadline",
            sweeper_grace_seconds=grace,
            operation_deadline_seconds=deadline,
        )
    if config.auth.enforce and not config.auth.keys:
        log.warning("requests for objects are refused: auth is enforced, and auth.keys has none; see --no-auth")
    if config.auth.keys and not config.auth.enforce:
        log.warning("auth is not enforced: requests that it would refuse are let through, and logged")
    outside = not ipaddress.ip_address(host.partition("%")[0]).is_loopback
    if outside and not config.tls.certificate:
        log.info("connections are not encrypted: let a proxy in front do it, or set tls.certificate and tls.key")
    if outside and not config.auth.enforce:
        log.warning("auth is off and the address is not loopback: whoever reaches it can read and write everything")
    if logs_for_people(config.log):
        StandardError().write(_greeting(config, host, port))


def _greeting(config: Config, host: str, port: int) -> str:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # because it is compared, not bound
    scheme = "https" if config.tls.certificate else "http"
    url = f"{scheme}://[{reachable}]:{port}" if ":" in reachable else f"{scheme}://{reachable}:{port}"
    lines = [f"tierstore {tierstore.__version__} listens on {url} and keeps its data in {config.data.path}"]
    if not config.auth.enforce:
        lines += [
            "Try it:",
            f"  curl -X PUT --data-binary 'hello, world' {url}/v1/objects/demo/_/greeting",
            f"  curl {url}/v1/objects/demo/_/greeting",
        ]
    return "\n".join(["", *lines, "Stop it with Ctrl+C.", "", ""])


def _raise_open_files_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # then it stays as it is
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _stop_while_starting(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)
