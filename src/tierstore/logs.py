"""Where log lines go and what they look like.

Guarantees: after `configure_logs`, everything that is logged, by structlog or by the standard library (uvicorn,
asyncio, warnings, exceptions nobody caught), leaves as one stream on standard error: JSON, one object a line, with
``timestamp`` (UTC), ``level`` and ``event``; or coloured text for people on a terminal. Whatever is bound with
`structlog.contextvars` (the request id) is in every line. Tracebacks are structured and hold no values of variables.
Logging never raises: a line that cannot be written is lost, and one that cannot be rendered is rendered plainly.

Does not: rotate, buffer or send anything. A reader of the pipe that stops reading without closing it stops the server.
"""

import json
import logging
import os
import sys
import threading
from types import TracebackType
from typing import Any, Final

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from tierstore.config import Log

_STDERR: Final = 2
_FRAMES_MAX: Final = 40
"""Stack frames of one exception that a line shows."""


def configure_logs(log: Log) -> None:
    """Send all logging of this process to standard error, from ``log.level`` up. May be called again."""
    render: Processor
    if logs_for_people(log):
        colors = os.isatty(_STDERR) and "NO_COLOR" not in os.environ  # https://no-color.org
        # repr_native_str: a client's text must not reach a terminal as control sequences.
        render = structlog.dev.ConsoleRenderer(
            colors=colors, repr_native_str=True, exception_formatter=structlog.dev.plain_traceback
        )
        describe: list[Processor] = []
    else:
        render = render_json
        traceback = structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=_FRAMES_MAX)
        describe = [_add_process, structlog.processors.ExceptionRenderer(traceback)]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        *describe,
    ]
    level = getattr(logging, log.level.upper())
    structlog.configure(
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_names: StandardError(),
        cache_logger_on_first_use=True,
    )
    _configure_standard_library(level, [_without_trailing_newline, structlog.stdlib.add_logger_name, *shared], render)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


def logs_for_people(log: Log) -> bool:
    """Whether lines are written for a terminal rather than as JSON."""
    return log.format == "console" or (log.format == "auto" and os.isatty(_STDERR))


def render_json(_logger: WrappedLogger, _method: str, event: EventDict) -> bytes:
    """One line of JSON. Values that JSON does not know are written as their ``repr``. Never raises."""
    first = {name: event.pop(name, None) for name in ("timestamp", "level", "event")}
    line = {**first, **event}
    try:
        return orjson.dumps(line, default=repr, option=orjson.OPT_NON_STR_KEYS)
    except (TypeError, ValueError, RecursionError):
        pass  # a lone surrogate, an integer of more than 64 bits, a failing repr, a cycle
    plain = {str(key): _ascii(value) for key, value in line.items()}
    return json.dumps(plain).encode()


def _ascii(value: object) -> str | None:
    """``value`` in ASCII, whatever it is."""
    if value is None or (isinstance(value, str) and value.isascii()):
        return value
    try:
        return ascii(value)
    except Exception as error:  # noqa: BLE001  # because a value's own repr may raise anything, and logging must not
        return f"<{type(value).__name__}: {type(error).__name__} in its repr>"


def _add_process(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event["pid"] = os.getpid()
    return event


def _without_trailing_newline(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event["event"] = str(event["event"]).rstrip()
    return event


class StandardError:
    """A stream and a structlog logger in one: writes to standard error, unbuffered; drops what cannot be written."""

    def write(self, text: str | bytes) -> None:
        rest = memoryview(text.encode(errors="backslashreplace") if isinstance(text, str) else text)
        try:
            while rest:
                rest = rest[os.write(_STDERR, rest) :]
        except OSError:
            return  # the pipe is broken or the disk is full: serving goes on

    def flush(self) -> None:
        """Nothing is buffered."""

    def msg(self, line: str | bytes) -> None:
        """Write ``line`` and its end in one call, so that lines of several processes do not mix."""
        self.write(line + b"\n" if isinstance(line, bytes) else line + "\n")

    debug = info = warn = warning = error = critical = fatal = exception = log = msg


def _configure_standard_library(level: int, prepare: list[Processor], render: Processor) -> None:
    handler = logging.StreamHandler(StandardError())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=prepare,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render, _as_text],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # uvicorn tells of each step of its life at level info; the server's own events say the same in the project's words.
    logging.getLogger("uvicorn.error").setLevel(level if level < logging.INFO else max(level, logging.WARNING))
    logging.captureWarnings(True)


def _as_text(_logger: WrappedLogger, _method: str, line: Any) -> str:
    return line.decode() if isinstance(line, bytes) else str(line)


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
        return
    structlog.get_logger().critical("uncaught_exception", exc_info=(kind, error, traceback))


def _log_uncaught_in_thread(uncaught: threading.ExceptHookArgs) -> None:
    error = uncaught.exc_value
    if error is not None:
        thread = uncaught.thread.name if uncaught.thread is not None else None
        structlog.get_logger().critical("uncaught_exception", thread=thread, exc_info=error)
