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
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from tierstore.limits import MIB
from tierstore.process.metrics_directory import retire_metrics
from tierstore.testing.mounts import small_disk
from tierstore.testing.server import HOST, ServerFailed, ServerProcess

OBJECT = "/v1/objects/process/_/object"


def _request(
    server: ServerProcess, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    with contextlib.closing(http.client.HTTPConnection(HOST, server.port, timeout=10)) as connection:
        connection.request(method, path, body, headers or {})
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
    with ServerProcess(tmp_path / "killed", workers=2, environment=environment):
        (left,) = temporary.iterdir()
    with ServerProcess(tmp_path / "living", workers=2, environment=environment) as living:
        (own,) = temporary.iterdir()
        assert own != left
        with ServerProcess(tmp_path / "third", environment=environment) as third:
            assert list(temporary.iterdir()) == [own]
            third.terminate()
            assert third.wait() == 0
        assert list(temporary.iterdir()) == [own]
        assert _request(living, "GET", "/metrics")[0] == 200


@pytest.mark.parametrize("variable", ["PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"])
def test_one_process_keeps_its_metrics_in_memory(tmp_path: Path, variable: str) -> None:
    """Without other workers no file holds metrics, whatever the environment asks for, and a scrape shows ours."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with ServerProcess(tmp_path / "stores", environment={variable: str(elsewhere)}) as server:
        assert _request(server, "PUT", OBJECT, b"x")[0] == 200
        assert _metric(server, "tierstore_requests_total", 'operation="put"', 'status="200"') == 1
        assert _families(server) >= {"tierstore_requests_total", "tierstore_build_info", "tierstore_sweep_seconds"}
        assert list(elsewhere.iterdir()) == []


def test_metrics_are_the_same_for_one_process_and_for_several(tmp_path: Path) -> None:
    """How many processes serve does not change which metrics there are."""
    with ServerProcess(tmp_path / "one") as one, ServerProcess(tmp_path / "two", workers=2) as two:
        for server in (one, two):
            for method in ("PUT", "GET", "DELETE"):
                assert _request(server, method, OBJECT, b"x" if method == "PUT" else None)[0] in {200, 204}
        assert _families(one) == _families(two)


def _families(server: ServerProcess) -> set[str]:
    """Names and types of all metrics."""
    lines = _request(server, "GET", "/metrics")[1].decode().splitlines()
    return {line.split()[2] for line in lines if line.startswith("# TYPE ")}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_for_temporary_files_stops_nothing(tmp_path: Path, workers: int) -> None:
    """With everything on one disk that is full to the last byte, all requests are answered, by the same processes."""
    with small_disk(tmp_path / "disk", "32m") as disk:
        temporary = disk.path / "temporary"
        temporary.mkdir()
        environment = {"TMPDIR": str(temporary)}
        config = {"long_term": {"reserve": 0}, "high_volume": {"reserve": 0}}
        with ServerProcess(disk.path / "stores", workers=workers, environment=environment, config=config) as server:
            pids = [server.pid, *server.worker_pids]
            filled = {
                size: {_request(server, "PUT", f"{OBJECT}-{size}-{number}", b"x" * size)[0] for number in range(count)}
                for size, count in ((2 * MIB, 20), (100_000, 100), (3000, 100))
            }
            assert filled[2 * MIB] == {200, 507}
            assert all(507 in statuses for statuses in filled.values())
            (disk.path / "ballast").write_bytes(b"")
            with contextlib.suppress(OSError), (disk.path / "ballast").open("ab", buffering=0) as ballast:
                while True:
                    ballast.write(b"x" * 4096)
            for number in range(20):  # on a connection each, so that every worker gets some
                present, absent = f"{OBJECT}-{2 * MIB}-0", f"{OBJECT}-absent"
                assert _request(server, "GET", present) == (200, b"x" * (2 * MIB))
                assert _request(server, "GET", present, headers={"range": "bytes=0-1"}) == (206, b"xx")
                assert _request(server, "HEAD", present)[0] == 204
                assert _request(server, "GET", absent)[0] == 404
                assert _request(server, "HEAD", absent)[0] == 404
                assert _request(server, "GET", "/v1/unknown")[0] == 404
                assert _request(server, "PUT", absent, b"x", {"x-sn-expiration": "never"})[0] == 400
                assert _request(server, "DELETE", f"{OBJECT}-{2 * MIB}-{1 + number % 3}")[0] in {204, 507}
                assert _request(server, "GET", "/metrics")[0] == 200
            assert _metric(server, "tierstore_requests_total", 'operation="head"', 'status="204"') == 20
            assert _metric(server, "tierstore_requests_total", 'operation="head"', 'status="404"') == 20
            assert [server.pid, *server.worker_pids] == pids
            assert not server.logs("worker died")
            server.terminate()
            assert server.wait() == 0


@pytest.mark.parametrize(
    ("size", "what"), [("1m", "the metrics"), ("3m", "the use of the limits"), ("5m", "the metrics")]
)
def test_several_workers_do_not_start_without_room_for_what_they_share(tmp_path: Path, size: str, what: str) -> None:
    """On a disk too small for metrics or limits of all, the start fails with a sentence, and leaves nothing."""
    with small_disk(tmp_path / "disk", size) as disk:
        environment = {"TMPDIR": str(disk.path)}
        code, text = _refusal(
            "--port", "0", "--workers", "2", "--data", str(tmp_path / "stores"), environment=environment
        )
        assert code == 1
        assert f"no room for {what} in {disk.path}" in text
        assert "No space left on device; make room, or set TMPDIR to a directory elsewhere" in text
        assert "Traceback" not in text
        assert list(disk.path.iterdir()) == []


def test_the_files_of_metrics_have_no_holes(tmp_path: Path) -> None:
    """While a worker lives, its metrics fit into blocks that it has; once it is dead, they take what they need."""
    environment = {"TMPDIR": str(tmp_path)}
    with ServerProcess(tmp_path / "stores", workers=2, environment=environment) as server:
        (directory,) = tmp_path.glob("tierstore-metrics-*")
        dead = server.worker_pids[0]
        pids = [server.pid, *server.worker_pids]
        names = {f"{kind}_{pid}.db" for kind in ("counter", "gauge_livesum", "histogram") for pid in pids}
        assert {file.name for file in directory.iterdir()} == names | {"rate-limits"}
        for file in directory.iterdir():
            assert file.stat().st_blocks * 512 >= file.stat().st_size > 0
        os.kill(dead, signal.SIGKILL)
        server.wait_until(lambda: len(server.logs("worker serves")) == 3, "has another worker")
        left = {file.name: file.stat().st_size for file in directory.glob(f"*_{dead}.db")}
        assert left.keys() == {f"counter_{dead}.db", f"histogram_{dead}.db"}
        assert sum(left.values()) < 64 * 1024
        assert _request(server, "GET", "/metrics")[0] == 200


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


COUNT_EVERYTHING = """
import itertools, os, pathlib, re, sys
from tierstore.process.metrics_directory import allocate_metrics
directory, taken_over = pathlib.Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]), sys.argv[1:]
for file in taken_over and list(directory.iterdir()):
    file.rename(directory / re.sub(r"\\d+", str(os.getpid()), file.name))
allocate_metrics()
before = {file: file.stat().st_size for file in directory.iterdir()}
from prometheus_client.metrics import MetricWrapperBase
from tierstore import telemetry
from tierstore.http.responses import STATUS_BY_ERROR
values = {
    "operation": ["get", "head", "put", "delete", "extend", "unknown"],
    "tier": ["high_volume", "long_term", "none"],
    "status": [*map(str, {*STATUS_BY_ERROR.values(), *range(200, 210)}), "cut_off"],
    "database": ["high_volume", "change_log"],
}
for metric in [one for one in vars(telemetry).values() if isinstance(one, MetricWrapperBase)]:
    for labels in itertools.product(*(values.get(name, ["x" * 30] * 10) for name in metric._labelnames)):
        metric.labels(*labels) if labels else metric
telemetry.requests.labels("get", "none", "404").inc(21)
assert {file: file.stat().st_size for file in directory.iterdir()} == before, "a file has grown, or is new"
for file in directory.iterdir():
    used = int.from_bytes(file.read_bytes()[:4], "little")
    assert 8 < used < file.stat().st_size / 2, f"{used} bytes of {file} are used"
print(os.getpid())
"""


def test_metrics_stay_within_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All labels that there can be fill less than half of the files; a process with the id of a dead one counts on."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    for taken_over in ([], ["taken over"]):
        command = [sys.executable, "-c", COUNT_EVERYTHING, *taken_over]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert ended.stderr == ""
        retire_metrics(int(ended.stdout))
    collected = CollectorRegistry()
    MultiProcessCollector(collected)  # type: ignore[no-untyped-call]  # because the library leaves it untyped
    labels = {"operation": "get", "tier": "none", "status": "404"}
    assert collected.get_sample_value("tierstore_requests_total", labels) == 42


@pytest.mark.parametrize("below", ["", "/below"])
def test_a_link_that_leads_nowhere_is_said_plainly(tmp_path: Path, below: str) -> None:
    """A data directory that is, or is below, a dangling symbolic link: the sentence names link and target."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "unmounted")
    code, text = _refusal("--port", "0", "--data", f"{link}{below}")
    said = f"{link} is a symbolic link to {tmp_path / 'unmounted'}, which does not exist; make it, or remove the link"
    assert (code, text) == (1, f"tierstore: {said}\n")


def test_a_loop_of_links_is_said_plainly(tmp_path: Path) -> None:
    """A data directory that is a link to itself is refused with a sentence, too."""
    (tmp_path / "loop").symlink_to("loop")
    code, text = _refusal("--port", "0", "--data", str(tmp_path / "loop"))
    said = f"{tmp_path / 'loop'} is a symbolic link to loop, which leads back to it; choose a directory"
    assert (code, text) == (1, f"tierstore: {said}\n")


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


@pytest.mark.parametrize(("grace", "warnings"), [("1h", 1), ("6h", 0)])
def test_a_short_grace_of_the_sweeper_warns(tmp_path: Path, grace: str, warnings: int) -> None:
    """A grace that is less than what a write may take is said at the start; an equal one is not."""
    with ServerProcess(tmp_path, config={"sweeper": {"grace": grace}}) as server:
        logged = server.logs("slow uploads may be given up early")
        assert len(logged) == warnings
        for line in logged:
            assert line["level"] == "warning"
            assert (line["sweeper_grace_seconds"], line["operation_deadline_seconds"]) == (3600, 6 * 3600)


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
        assert sent < 40 * 1024 * 1024, "the bytes that are thrown away so that the answer is seen have a bound too"
        assert _request(server, "GET", "/health")[0] == 200


def test_a_stop_that_cuts_off_a_body_logs_no_exception(tmp_path: Path) -> None:
    """Its client is told, and waited for, so that it sees the answer; the process does not wait for longer."""
    with ServerProcess(tmp_path, config={"http": {"shutdown_grace": "1s"}}) as server:
        with socket.create_connection((HOST, server.port), timeout=10) as client:
            head = b"PUT /v1/objects/testing/_/cut HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n"
            client.sendall(head + b"expect: 100-continue\r\n\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 100 ")
            client.sendall(b"12345")
            server.terminate()
            assert client.recv(65536).startswith(b"HTTP/1.1 503 ")
            assert server.wait() == 0
        assert not [line for line in server.logs() if "exception" in line or "Exception" in line["event"]]
