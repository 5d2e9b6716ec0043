"""What is logged meanwhile, whoever logs it and however logging was configured before.

Guarantees: every event of structlog and of the standard library that is at least a warning, or that tells of a request,
is seen; afterwards logging is as it was. Does not: look into other processes.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog
from structlog.typing import EventDict

_GRAVE = frozenset({"error", "critical", "exception"})


@dataclass
class CapturedLogs:
    """What has been logged so far."""

    events: list[EventDict] = field(default_factory=list)
    """Of structlog: the project's own."""
    records: list[logging.LogRecord] = field(default_factory=list)
    """Of the standard library, warnings and above: those of uvicorn and asyncio."""

    @property
    def grave(self) -> list[str]:
        """What tells of a fault of ours, in one line each."""
        events = [repr(event) for event in self.events if event["log_level"] in _GRAVE]
        return events + [_described(record) for record in self.records if record.levelno >= logging.ERROR]

    @property
    def text(self) -> str:
        """Everything, to be searched for what must not be in it."""
        return "\n".join([*map(repr, self.events), *map(_described, self.records)])

    def clear(self) -> None:
        """Forget what has been logged so far."""
        self.events.clear()
        self.records.clear()


@contextmanager
def captured_logs() -> Iterator[CapturedLogs]:
    """Capture what is logged until the end of the block."""
    captured = CapturedLogs()
    handler = _Collector(captured.records)
    before, root = structlog.get_config(), logging.getLogger()
    _forget_bound_loggers()
    structlog.reset_defaults()
    root.addHandler(handler)
    try:
        with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as events:
            captured.events = events
            yield captured
    finally:
        root.removeHandler(handler)
        structlog.configure(**before)


class _Collector(logging.Handler):
    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__(logging.WARNING)
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)


def _described(record: logging.LogRecord) -> str:
    return logging.Formatter("%(name)s %(levelname)s %(message)s").format(record)


def _forget_bound_loggers() -> None:
    """A logger that was used under another configuration may have kept it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("tierstore."):
            for logger in (getattr(module, "_log", None), getattr(module, "log", None)):
                if isinstance(logger, structlog._config.BoundLoggerLazyProxy):
                    vars(logger).pop("bind", None)
