"""Laws of `tierstore.logs`, most of them seen from outside a process: it sets up what a whole process shares."""

import json
import os
import pty
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore.logs import render_json

_SETUP = """
import logging, os, sys, threading, warnings
import structlog
from tierstore.config import Log
from tierstore.logs import configure_logs
configure_logs(Log(level={level!r}, format={format!r}))
log = structlog.get_logger(__name__)
"""


def _logged(code: str, level: str = "info", log_format: str = "json") -> str:
    ended = subprocess.run(
        [sys.executable, "-c", _SETUP.format(level=level, format=log_format) + code],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.stdout == ""
    return ended.stderr


def _lines(code: str, level: str = "info") -> list[dict[str, Any]]:
    return [json.loads(line) for line in _logged(code, level).splitlines()]


def test_everything_that_is_logged_is_one_stream_of_json() -> None:
    """structlog, the standard library, warnings and uncaught exceptions look alike; what is bound is in every line."""
    lines = _lines(
        "structlog.contextvars.bind_contextvars(request_id='r1')\n"
        "log.info('ours', size=3)\n"
        "logging.getLogger('some.library').warning('theirs %s\\n', 7)\n"
        "warnings.warn('careful')\n"
        "thread = threading.Thread(target=lambda: 1 / 0, name='T'); thread.start(); thread.join()\n"
        "raise RuntimeError('the end')\n"
    )
    assert [(line["level"], line["event"].splitlines()[0].rpartition("UserWarning: ")[2]) for line in lines] == [
        ("info", "ours"),
        ("warning", "theirs 7"),
        ("warning", "careful"),
        ("critical", "uncaught_exception"),
        ("critical", "uncaught_exception"),
    ]
    ours, theirs, warning, in_thread, at_end = lines
    assert list(ours)[:3] == ["timestamp", "level", "event"]
    assert ours["timestamp"].endswith("Z")
    assert ours["size"] == 3
    assert [line["request_id"] for line in (ours, theirs, warning, at_end)] == ["r1"] * 4
    assert (theirs["logger"], warning["logger"]) == ("some.library", "py.warnings")
    assert (in_thread["thread"], in_thread["exception"][0]["exc_type"]) == ("T", "ZeroDivisionError")
    assert at_end["exception"][0]["exc_value"] == "the end"


def test_a_traceback_holds_no_values() -> None:
    """Exceptions are structured, with their frames, and without what variables held: it may be a client's secret."""
    text = _logged(
        "def work(token):\n    raise ValueError('no')\n"
        "try:\n    work('s3' + 'cret')\n"
        "except ValueError:\n    log.exception('failed')\n    logging.getLogger('x').exception('failed')\n"
    )
    assert "s3cret" not in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert len(lines) == 2
    for line in lines:
        (exception,) = line["exception"]
        assert (exception["exc_type"], exception["exc_value"]) == ("ValueError", "no")
        assert [frame["name"] for frame in exception["frames"]] == ["<module>", "work"]


def test_a_traceback_for_people_holds_no_values() -> None:
    """As text, too, a traceback has the code and not what its variables held."""
    text = _logged(
        "def work(token):\n    raise ValueError('no')\n"
        "try:\n    work('s3' + 'cret')\n"
        "except ValueError:\n    log.exception('failed')\n    logging.getLogger('x').exception('failed')\n",
        log_format="console",
    )
    assert text.count("ValueError: no") == 2
    assert "s3cret" not in text


@pytest.mark.parametrize(
    ("level", "events"),
    [("debug", ["d", "i", "w", "e", "lib d", "u i", "lib w"]), ("info", ["i", "w", "e", "lib w"]), ("error", ["e"])],
)
def test_the_level_bounds_what_is_written(level: str, events: list[str]) -> None:
    """Less severe lines are not written, ours or a library's; uvicorn's chatter only when debugging."""
    code = (
        "log.debug('d'); log.info('i'); log.warning('w'); log.error('e')\n"
        "logging.getLogger('lib').debug('lib d')\n"
        "logging.getLogger('uvicorn.error').info('u i')\n"
        "logging.getLogger('lib').warning('lib w')\n"
    )
    assert [line["event"] for line in _lines(code, level)] == events


def test_a_broken_pipe_breaks_nothing() -> None:
    """When the reader of the log has gone, logging goes on without an error, also at the end of the process."""
    reading, writing = os.pipe()
    code = (
        "import time\n"
        "sys.stdin.read()\n"
        "for _ in range(3):\n"
        "    log.info('lost', filler='x' * 100_000)\n"
        "    logging.getLogger('lib').error('lost')\n"
        "print('done')\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", _SETUP.format(level="info", format="json") + code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=writing,
    ) as process:
        os.close(writing)
        os.close(reading)
        assert process.communicate(b"", timeout=30)[0] == b"done\n"
        assert process.returncode == 0


def test_a_terminal_gets_text_for_people_without_a_clients_control_sequences() -> None:
    """``auto`` writes coloured text on a terminal; what clients sent cannot steer it."""
    master, terminal = pty.openpty()
    code = _SETUP.format(level="info", format="auto") + "log.info('request', path='\\x1b[2J', n=1)\n"
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    ended = subprocess.run([sys.executable, "-c", code], stderr=terminal, timeout=30, check=False, env=environment)
    os.close(terminal)
    with os.fdopen(master, "rb", buffering=0) as screen:
        text = screen.read(65536)
    assert ended.returncode == 0
    assert b"request" in text
    assert b"\x1b[" in text
    assert b"\x1b[2J" not in text
    assert b"\\x1b[2J" in text


def test_the_console_format_is_for_people_everywhere() -> None:
    """``console`` writes text also into a pipe, without colours there, and with plain tracebacks."""
    text = _logged(
        "log.info('hello', n=1)\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n    log.exception('bad')\n",
        log_format="console",
    )
    assert "hello" in text
    assert "ZeroDivisionError" in text
    assert "\x1b" not in text


class _Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no")


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.binary()
    | st.builds(_Hostile)
    | st.just(object()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.text(st.characters()), _VALUES, max_size=4))
def test_any_event_is_rendered_as_one_line_of_json(event: dict[str, Any]) -> None:
    """Lone surrogates, huge integers, bytes, objects that cannot be shown: each gives one line, and nothing raises."""
    line = render_json(None, "info", {**event, "event": "e"})
    assert b"\n" not in line
    assert json.loads(line)["event"] == "e"


def test_a_cycle_is_rendered() -> None:
    """A value that contains itself does not hang or break a log line."""
    cycle: list[object] = []
    cycle.append(cycle)
    assert json.loads(render_json(None, "info", {"event": "e", "cycle": cycle}))["cycle"] == "[[...]]"
