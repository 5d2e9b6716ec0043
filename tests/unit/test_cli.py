"""Laws of the command line: what it prints, what it exits with, and how long it thinks about it."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

import tierstore
from tierstore.cli import cli
from tierstore.errors import ConfigError


def _run(*arguments: str, environment: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(cli, arguments, env=environment, prog_name="tierstore")


def _process(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=30, check=False, env=os.environ
    )


def test_the_version_is_the_packages() -> None:
    """``--version`` names the program and the version of the package."""
    assert _run("--version").output == f"tierstore {tierstore.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ["serve", "config", "Exit codes"]),
        (("serve",), ["--no-auth", "TIERSTORE__HTTP__PORT", "tierstore serve --config", "SIGTERM", "Exit codes"]),
        (("config",), ["show", "check", "schema"]),
        (("config", "show"), ["--config", "tierstore config show"]),
        (("config", "check"), ["tierstore config check --config"]),
        (("config", "schema"), ["tierstore config schema"]),
        (("uploads",), ["abort", "list", "Exit codes"]),
        (("uploads", "list"), ["--json", "--limit", "tierstore uploads list", "Exit codes"]),
        (("uploads", "abort"), ["tierstore uploads abort", "Safe to repeat", "Exit codes"]),
        (("changelog",), ["list", "settle", "show", "Exit codes"]),
        (("changelog", "list"), ["--json", "--limit", "tierstore changelog list", "Exit codes"]),
        (("changelog", "show"), ["tierstore changelog show", "same", "Exit codes"]),
        (("changelog", "settle"), ["--all-due", "fails cleanly", "tierstore changelog settle", "Exit codes"]),
    ],
)
def test_help_helps(arguments: tuple[str, ...], words: list[str]) -> None:
    """Every command's help has examples, and where they matter the environment and the exit codes."""
    shown = _run(*arguments, "--help")
    assert shown.exit_code == 0
    assert [word for word in words if word not in shown.output] == []
    assert all(len(line) <= 100 for line in shown.output.splitlines())


def test_flags_set_what_their_help_says(tmp_path: Path) -> None:
    """Every flag of ``serve`` reaches its setting, and ``config show`` tells so."""
    flags = {
        "--host": ("http.host", "::1"),
        "--port": ("http.port", "9"),
        "--data": ("data.path", str(tmp_path)),
        "--workers": ("http.workers", "3"),
        "--log-level": ("log.level", "error"),
        "--log-format": ("log.format", "json"),
    }
    given = [word for flag, (_, value) in flags.items() for word in (flag, value)]
    shown = _run("config", "show", *given, "--no-auth")
    assert shown.exit_code == 0
    settings = yaml.safe_load(shown.output)
    for flag, (key, value) in flags.items():
        section, name = key.split(".")
        assert str(settings[section][name]) == value
        assert f"# flag {flag}" in shown.output
    assert settings["auth"]["enforce"] is False
    assert "enforce: false  # flag --no-auth" in shown.output
    assert f"# path: {tmp_path}/high-volume.sqlite3  # below data.path" in shown.output


def test_check_says_ok_or_what_is_wrong(tmp_path: Path) -> None:
    """``config check`` reads every origin, as ``serve`` would."""
    file = tmp_path / "tierstore.yaml"
    file.write_text("http: {port: 1}")
    assert _run("config", "check", "--config", str(file)).output == "ok\n"
    wrong = _run("config", "check", "--config", str(file), environment={"TIERSTORE__HTTP__WORKERS": "none"})
    assert isinstance(wrong.exception, ConfigError)
    assert str(wrong.exception).startswith("http.workers (environment TIERSTORE__HTTP__WORKERS): none is not a whole")


def test_check_reads_the_files_of_keys(tmp_path: Path) -> None:
    """What would keep a server from starting, or a reload from being taken, is found before it is tried."""
    file = tmp_path / "tierstore.yaml"
    file.write_text('auth: {keys: {kid: {max_permissions: [object.read], files: ["nowhere.pem"]}}}')
    wrong = _run("config", "check", "--config", str(file))
    assert isinstance(wrong.exception, ConfigError)
    assert str(wrong.exception).startswith("auth.keys: kid: the file nowhere.pem cannot be read: No such file")


def test_the_schema_is_printed() -> None:
    """``config schema`` prints a JSON Schema."""
    assert yaml.safe_load(_run("config", "schema").output)["title"] == "tierstore"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["config", "check"], 0),
        (["config", "check", "--port", "70000"], 1),
        (["config", "check", "--port", "many"], 2),
        (["serve", "--nothing"], 2),
        (["nothing"], 2),
    ],
)
def test_exit_codes(arguments: list[str], code: int) -> None:
    """0 for success, 1 and one plain line for what is wrong with a setting, 2 for a wrong command line."""
    ended = _process(["-m", "tierstore", *arguments])
    assert ended.returncode == code
    assert "Traceback" not in ended.stderr
    if code == 1:
        assert ended.stderr == "tierstore: http.port (flag --port): 70000 is not a whole number from 0 to 65535\n"


def test_help_imports_nothing_heavy() -> None:
    """What commands need is imported when they run; the metrics library in particular must wait for its directory."""
    code = (
        "import sys, tierstore.cli\n"
        "heavy = {'prometheus_client', 'msgspec', 'yaml', 'structlog', 'uvicorn', 'starlette', 'apsw', 'asyncio'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "import tierstore.process.server\n"
        "print('prometheus_client' in sys.modules)\n"
    )
    assert _process(["-c", code]).stdout == "[]\nFalse\n"


def test_closed_standard_streams_are_never_reused() -> None:
    """Started without standard streams, no file that is opened later gets their numbers."""
    code = "import os, tierstore.cli as c; c._reserve_standard_streams(); os._exit(os.open('/dev/null', 0))"
    ended = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, code], timeout=30, check=False
    )
    assert ended.returncode > 2
