"""Engines for tests start, stop, die and come back, and leave nothing behind."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from tests.engines.engine import (
    HOST,
    Engine,
    EngineFailed,
    EngineMissing,
    engine_or_skip,
    executable,
    free_ports,
    serving,
)

_SERVER = """
import socket, subprocess, sys
child = subprocess.Popen(["sleep", "60"])
print("child", child.pid, flush=True)
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    connection, _ = server.accept()
    connection.sendall(b"hello")
    connection.close()
"""
_KILLED = """
import os, signal, sys
from pathlib import Path
from tests.engines.test_engine import Greeter
engine = Greeter()
engine.start()
Path(sys.argv[1]).write_text(f"{engine.pid} {engine.home}")
os.kill(os.getpid(), signal.SIGKILL)
"""


class Greeter(Engine):
    """A server that greets, and that has a child."""

    name = "greeter"

    def __init__(self, script: str = _SERVER) -> None:
        self.script = script
        super().__init__()

    def command(self) -> Sequence[str]:
        return [sys.executable, "-c", self.script, str(self.port)]

    def answers(self) -> bool:
        return self.greeting() == b"hello"

    def greeting(self) -> bytes:
        """What it says."""
        with closing(socket.create_connection((HOST, self.port), timeout=0.5)) as connection:
            return connection.recv(5)

    @property
    def children(self) -> list[int]:
        """The processes that it has told of."""
        return [int(line.split()[1]) for line in self.log_text.splitlines() if line.startswith("child")]


@pytest.fixture
def greeter() -> Iterator[Greeter]:
    """One that serves."""
    yield from serving(Greeter)


def test_an_engine_serves_until_it_is_closed() -> None:
    """At the end nothing is left: not the process, not what it started, not its files."""
    with Greeter() as engine:
        assert engine.answers()
        pids = [engine.pid, *engine.children]
    assert len(pids) == 2
    assert [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"] == []
    assert not engine.home.exists()
    engine.close()


@pytest.mark.parametrize("end", ["stop", "kill", "restart"])
def test_an_engine_comes_back_where_it_was(greeter: Greeter, end: str) -> None:
    """After it was stopped, killed or restarted it has the address and the files that it had."""
    before, address = greeter.pid, greeter.address
    (greeter.home / "kept").touch()
    getattr(greeter, end)()
    if end != "restart":
        with pytest.raises(OSError, match="refused"):
            greeter.greeting()
        greeter.start()
    assert greeter.answers()
    assert (greeter.pid != before, greeter.address) == (True, address)
    assert (greeter.home / "kept").exists()
    assert not psutil.pid_exists(before)


def test_an_engine_can_stand_still(greeter: Greeter) -> None:
    """Meanwhile connections are taken by the kernel, and nothing is said; afterwards it goes on."""
    with greeter.paused(), pytest.raises(TimeoutError):
        greeter.greeting()
    assert greeter.answers()


def test_an_engine_that_does_not_start_says_why() -> None:
    """Its failure holds what it wrote, and nothing of it is left."""
    engine = Greeter("raise SystemExit('no room for me')")
    with pytest.raises(EngineFailed, match="no room for me"), engine:
        raise AssertionError("it started")
    engine.close()
    assert not engine.home.exists()


def test_an_engine_dies_with_the_tests(tmp_path: Path) -> None:
    """Also when the process of the tests is killed and can clean nothing up."""
    executable("setpriv")
    told = tmp_path / "told"
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(told)], cwd=Path(__file__).parents[2], check=False)
    assert killed.returncode == -signal.SIGKILL
    pid, home = told.read_text().split()
    deadline = time.monotonic() + 10
    while psutil.pid_exists(int(pid)) and psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    Path(home, "log").unlink()
    Path(home).rmdir()


def test_what_the_machine_does_not_have_skips_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason; and with CI=true it fails, so that nobody takes a skipped proof for a proof."""

    def start() -> None:
        executable("no-such-engine")

    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no-such-engine is not installed"):
        engine_or_skip(start)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no-such-engine is not installed"):
        engine_or_skip(start)
    with pytest.raises(EngineMissing):
        start()


def test_free_ports_are_free_and_apart() -> None:
    """All are different, nobody listens on them, and one that is taken is not among them."""
    ports = free_ports(20, beside=(10_000,))
    assert len(set(ports)) == 20
    with socket.create_server((HOST, ports[0] + 10_000)):
        assert ports[0] not in free_ports(20, beside=(10_000,))
