"""The server as a process: how it starts, refuses to start, drains, stops, and keeps its workers."""

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from tierstore.testing.server import HOST, ServerFailed, ServerProcess

OBJECT = "/v1/objects/process/_/object"


def _request(server: ServerProcess, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    with contextlib.closing(http.client.HTTPConnection(HOST, server.port, timeout=10)) as connection:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()


def _metric(server: ServerProcess, name: str, *labels: str) -> float:
    """The sum of the samples of ``name`` that have all ``labels``."""
    text = _request(server, "GET", "/metrics")[1].decode()
    samples = re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", text, re.MULTILINE)
    return sum(float(value) for found, value in samples if set(labels) <= set(found.split(",")))


def _gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _refusal(*arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """The exit code and standard error of a server that is expected not to start."""
    ended = subprocess.run(
        [sys.executable, "-m", "tierstore", "serve", "--log-format", "json", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=os.environ | (environment or {}),
    )
    assert ended.stdout == ""
    return ended.returncode, ended.stderr


class _HalfSentPut:
    """A PUT of 10 bytes of which 5 were sent, after the server has begun to read them."""

    def __init__(self, server: ServerProcess) -> None:
        self._connection = socket.create_connection((HOST, server.port), timeout=10)
        head = f"PUT {OBJECT} HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\nexpect: 100-continue\r\n\r\n"
        self._connection.sendall(head.encode())
        assert self._connection.recv(65536).startswith(b"HTTP/1.1 100")
        self._connection.sendall(b"12345")

    def finish(self) -> bytes:
        """Send the rest; the answer's status line."""
        with self._connection:
            self._connection.sendall(b"67890")
            return self._connection.recv(65536).partition(b"\r\n")[0]

    def close(self) -> None:
        self._connection.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_it_serves_and_stops_cleanly(tmp_path: Path, workers: int) -> None:
    """It serves what it announced, finishes the request under way after SIGTERM, and exits with 0."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {"TMPDIR": str(temporary)}
    with ServerProcess(tmp_path / "not" / "there" / "yet", workers=workers, environment=environment) as server:
        assert _request(server, "GET", "/health")[0] == 200
        announced = server.logs("listening")[0]
        assert (announced["host"], announced["port"], announced["workers"]) == (HOST, server.port, workers)
        assert announced["auth"] == "off"
        put = _HalfSentPut(server)
        server.terminate()
        server.wait_until(lambda: server.status("/health") is None, "has closed the port")
        assert put.finish() == b"HTTP/1.1 200 OK"
        assert server.wait() == 0
        assert not [line for line in server.logs() if line["level"] in {"warning", "error", "critical"}]
        assert len(server.logs("stopped")) == workers
        assert list(temporary.iterdir()) == []
    with ServerProcess(tmp_path / "not" / "there" / "yet") as server:
        assert _request(server, "GET", OBJECT) == (200, b"1234567890")


def test_readiness_ends_before_the_port_closes(tmp_path: Path) -> None:
    """Within the delay after SIGTERM, /ready answers 503 and everything else is served as before."""
    with ServerProcess(tmp_path, config={"http": {"shutdown_delay": 1.0}}) as server:
        server.terminate()
        server.wait_until(lambda: server.status("/ready") == 503, "is not ready")
        assert _request(server, "PUT", OBJECT, b"late")[0] == 200
        server.terminate()
        assert _request(server, "GET", OBJECT) == (200, b"late")
        assert server.wait() == 0


def test_the_grace_is_bounded(tmp_path: Path) -> None:
    """A request that does not end within the grace is cut off; the exit code is still 0."""
    with ServerProcess(tmp_path, config={"http": {"shutdown_grace": "0s"}}) as server:
        put = _HalfSentPut(server)
        server.terminate()
        assert server.wait() == 0
        put.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_second_interrupt_ends_it_at_once(tmp_path: Path, workers: int) -> None:
    """SIGINT waits for the request under way; SIGINT again does not, and the exit code says so."""
    with ServerProcess(tmp_path, workers=workers) as server:
        put = _HalfSentPut(server)
        pids = server.worker_pids
        server.send_signal(signal.SIGINT)
        server.wait_until(lambda: server.status("/health") is None, "has closed the port")
        server.send_signal(signal.SIGINT)
        assert server.wait() == 130
        assert all(_gone(pid) for pid in pids)
        put.close()


def test_metrics_add_up_over_workers_and_deaths(tmp_path: Path) -> None:
    """Counts of all workers are summed, a killed one's included; it is replaced; its gauges go with it."""
    with ServerProcess(tmp_path, workers=2) as server:
        first = server.worker_pids
        assert len(first) == 2
        for number in range(20):
            assert _request(server, "PUT", f"{OBJECT}{number}", b"x")[0] == 200
        assert _metric(server, "tierstore_requests_total", 'operation="put"', 'status="200"') == 20
        os.kill(first[0], signal.SIGKILL)
        server.wait_until(lambda: len(server.logs("worker serves")) == 3, "has another worker")
        assert first[1] in server.worker_pids
        assert first[0] not in server.worker_pids
        assert _metric(server, "tierstore_requests_total", 'operation="put"', 'status="200"') >= 20
        server.terminate()
        assert server.wait() == 0


def test_workers_do_not_outlive_their_supervisor(tmp_path: Path) -> None:
    """After a kill -9 of the supervisor its workers stop by themselves, and the port is free."""
    with ServerProcess(tmp_path, workers=2) as server:
        pids = server.worker_pids
        os.kill(server.pid, signal.SIGKILL)
        assert server.wait() == -signal.SIGKILL
        gone, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if not _gone(pid)], timeout=10)
        assert not alive, f"{alive} still run, {gone} have ended"
        with socket.create_server((HOST, server.port)):
            assert len(server.logs("the supervising process has ended; this worker stops")) == 2


def test_metrics_that_a_killed_server_left_are_removed(tmp_path: Path) -> None:
    """The next server removes the metrics of a killed one, and leaves those of a living one alone."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {"TMPDIR": str(temporary)}
    with ServerProcess(tmp_path / "killed", environment=environment):
        (left,) = temporary.iterdir()
    with ServerProcess(tmp_path / "living", environment=environment) as living:
        (own,) = temporary.iterdir()
        assert own != left
        with ServerProcess(tmp_path / "third", environment=environment) as third:
            assert len(list(temporary.iterdir())) == 2
            third.terminate()
            assert third.wait() == 0
        assert list(temporary.iterdir()) == [own]
        assert _request(living, "GET", "/metrics")[0] == 200


def test_a_closed_log_does_not_stop_it(tmp_path: Path) -> None:
    """When nobody reads the log any more, or there never was one, requests are served as before."""
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "tierstore", "serve", "--no-auth", "--log-format", "json", "--port", "0"]
    with subprocess.Popen([*command, "--data", str(tmp_path)], stderr=writing) as process:
        os.close(writing)
        with os.fdopen(reading, "rb") as log:
            port = next(int(found[1]) for line in log if (found := re.search(rb'"port":(\d+)', line)))
        for _ in range(3):
            with contextlib.closing(http.client.HTTPConnection(HOST, port, timeout=10)) as connection:
                connection.request("PUT", OBJECT, b"unlogged")
                assert connection.getresponse().status == 200
        process.terminate()
        assert process.wait(20) == 0


def test_a_taken_port_is_said_plainly(tmp_path: Path) -> None:
    """One sentence that names the port and the way out, exit code 1, and no store is touched."""
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        code, text = _refusal("--port", str(port), "--data", str(tmp_path / "data"))
    said = f"port {port} on {HOST} is taken by another process; choose another with --port (0 takes a free one)"
    assert (code, text) == (1, f"tierstore: {said}\n")
    assert not (tmp_path / "data").exists()


def test_an_unusable_data_directory_is_said_plainly(tmp_path: Path) -> None:
    """A data directory below a file: one sentence that names the path, exit code 1, no traceback."""
    (tmp_path / "file").write_text("not a directory")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    code, text = _refusal(
        "--port", "0", "--data", str(tmp_path / "file" / "data"), environment={"TMPDIR": str(temporary)}
    )
    assert code == 1
    assert text.startswith("tierstore: ")
    assert str(tmp_path / "file") in text
    assert text.count("\n") == 1
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "203.0.113.1"], "203.0.113.1 is not an address of this machine; choose another with --host"),
        (["--port", "65536"], "http.port (flag --port): 65536 is not a whole number from 0 to 65535"),
        (["--config", "/nowhere.yaml"], "the config file /nowhere.yaml cannot be read: No such file or directory"),
    ],
)
def test_a_wrong_setting_is_said_plainly(tmp_path: Path, arguments: list[str], said: str) -> None:
    """A setting that cannot be: one sentence that names it, exit code 1."""
    assert _refusal("--data", str(tmp_path), *arguments) == (1, f"tierstore: {said}\n")


def test_the_helper_tells_why_a_server_did_not_start(tmp_path: Path) -> None:
    """`ServerProcess` fails with the server's own words."""
    server = ServerProcess(tmp_path, config={"http": {"workers": 0}})
    with pytest.raises(ServerFailed, match=r"http\.workers \(environment TIERSTORE__HTTP__WORKERS\)"), server:
        pytest.fail("it started")


def test_refusing_everybody_is_said(tmp_path: Path) -> None:
    """With auth enforced and no key, the start says that requests will be refused, and how to change it."""
    with ServerProcess(tmp_path, auth=True) as server:
        (warning,) = [line["event"] for line in server.logs() if line["level"] == "warning"]
        assert "--no-auth" in warning
        assert _request(server, "GET", OBJECT)[0] in {400, 401, 403}


def test_an_open_server_warns(tmp_path: Path) -> None:
    """Without auth on an address that others can reach, the start says so."""
    with ServerProcess(tmp_path, arguments=["--host", "0.0.0.0"]) as server:
        assert [line for line in server.logs() if line["level"] == "warning" and "auth is off" in line["event"]]


def test_an_endless_head_is_refused(tmp_path: Path) -> None:
    """A client that never ends its headers is cut off; the server holds no more than a bound of it."""
    with ServerProcess(tmp_path) as server, socket.create_connection((HOST, server.port), timeout=10) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n")
        answer = bytearray()
        reading = threading.Thread(target=lambda: answer.extend(connection.recv(65536)))
        reading.start()
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 64 * 1024 * 1024:
                sent += connection.send(b"x" * 65536)
        reading.join()
        assert sent < 16 * 1024 * 1024
        assert _request(server, "GET", "/health")[0] == 200
