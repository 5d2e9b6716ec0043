"""The benchmark's commands, with little to do: they run, check what they measure, and judge it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process's CPU time and memory so finely"
)


def _bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *arguments, "--folder", str(folder)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize(("ratio", "exit_code", "verdict"), [("0", 0, "yes"), ("1e9", 1, "NO")])
def test_completing(tmp_path: Path, ratio: str, exit_code: int, verdict: str) -> None:
    """Uploads, completes, looks at what came of it, copies, compares, and leaves nothing behind."""
    ended = _bench(tmp_path, "complete", "--mib", "7", "--parts", "3", "--many", "20", "--ratio-min", ratio)
    assert (ended.returncode, ended.stderr) == (exit_code, "")
    judged = re.escape(f"{float(ratio):g} or more: {verdict}")
    assert re.search(rf"^copying / completing +\d+ +\d+ +{judged}$", ended.stdout, re.MULTILINE)
    assert re.search(r"^completing +\d+\.\d+ +0\.\d+ +less than 1 s of CPU: yes$", ended.stdout, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("percent", "exit_code", "verdict"), [("1e9", 0, "yes"), ("-1e9", 1, "NO")])
def test_access(tmp_path: Path, percent: str, exit_code: int, verdict: str) -> None:
    """Measures with and without authentication, and judges the difference."""
    ended = _bench(tmp_path, "access", "--rounds", "1", "--count", "50", f"--percent-max={percent}")
    assert (ended.returncode, ended.stderr) == (exit_code, "")
    assert re.search(rf"^GET with a token  .*%   at most .*: {verdict}$", ended.stdout, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


def test_memory(tmp_path: Path) -> None:
    """Sends, reads back what it sent, and finds the server's memory within its bounds."""
    ended = _bench(tmp_path, "memory", "--mib", "32")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(re.findall(r"^(?:a part|an object|16 parts)", ended.stdout, re.MULTILINE)) == 3
    assert "NO" not in ended.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("postgres")
def test_engines() -> None:
    """Measures a store beside its bare driver on a real engine of its own, where this machine has one."""
    command = [sys.executable, "-m", "bench", "engines", "--engines", "postgresql", "--rounds", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    for operation in ("put 1 KiB", "get it", "compare and write it", "record an entry and forget it"):
        assert re.search(rf"^PostgreSQL: {operation} +\d+ +\d+ +\d+\.\d\d$", ended.stdout, re.MULTILINE)


def test_slow_connections(tmp_path: Path) -> None:
    """A client is served by two workers whose few places hundreds of slow clients would take if they could."""
    arguments = ("--connections", "300", "--seconds", "0.7", "--max-requests", "8")
    ended = _bench(tmp_path, "slow-connections", *arguments)
    assert (ended.returncode, ended.stderr) == (0, "")
    for kind in ("idle", "head", "body", "unread"):
        assert re.search(rf"^{kind} +75 +75 +\d+$", ended.stdout, re.MULTILINE), ended.stdout
    assert re.search(r"^all 300 open, and every request .* answered: yes$", ended.stdout, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


def test_slow_connections_are_judged(tmp_path: Path) -> None:
    """When there are fewer places than the client has requests at once, it says what went wrong, and ends with 1."""
    ended = _bench(tmp_path, "slow-connections", "--connections", "8", "--seconds", "0.4", "--max-requests", "1")
    assert ended.returncode == 1
    assert re.search(r"^(PUT|GET).*: 503, .*: \d+ times$", ended.stdout, re.MULTILINE)
    assert re.search(r"answered: NO$", ended.stdout, re.MULTILINE)


@pytest.mark.parametrize("arguments", [("complete", "--mib", "2", "--parts", "3"), ("memory", "--mib", "6000")])
def test_what_cannot_be_measured(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """It says so in a sentence, before anything is started."""
    ended = _bench(tmp_path, *arguments)
    assert ended.returncode == 1
    assert re.fullmatch(r"an? (?:upload|part) has .*\n", ended.stderr)
    assert ended.stdout == ""


@pytest.mark.parametrize(
    ("command", "judged"), [("complete", ("50 times", "10000 parts", "1 s of CPU")), ("memory", ("8 MiB", "a stream"))]
)
def test_help_of_what_judges(command: str, judged: tuple[str, ...]) -> None:
    """It says what is judged, by which bounds, and how the exit code tells."""
    ended = subprocess.run(
        [sys.executable, "-m", "bench", command, "--help"], capture_output=True, text=True, check=True
    )
    shown = " ".join(ended.stdout.split())
    for words in (*judged, "exit code 1 "):
        assert words in shown, shown


def test_help() -> None:
    """Every command is described, and so is how make runs it."""
    ended = subprocess.run([sys.executable, "-m", "bench", "--help"], capture_output=True, text=True, check=True)
    for words in ("operations", "complete", "memory", "slow-connections", "make bench ARGS=complete"):
        assert words in ended.stdout
