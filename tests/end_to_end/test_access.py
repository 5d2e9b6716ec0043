"""Authenticated traffic as a whole: the commands, the server's processes, the public client."""

import contextlib
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import urllib3
import zstandard
from objectstore_client import Client, Permission, RequestError, SecretKey, Session, Usecase

from tests.http.credentials import Signer
from tierstore.limits import KIB, MIB
from tierstore.testing.server import ServerFailed, ServerProcess

TENANT = {"org": 17, "project": 42}
KID = "media-1"


def _tierstore(*arguments: str, stdin: str = "", status: int = 0) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "tierstore", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == status, ended.stderr
    return ended.stdout


class Deployment:
    """A directory with keys and settings, made by the commands that the documentation names."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "tierstore.yaml"
        self.config.write_text(self.generate(KID))

    def generate(self, kid: str) -> str:
        """Make a key, and return the settings for it."""
        return _tierstore("keys", "generate", "--kid", kid, "--directory", str(self.directory / "keys"))

    def private(self, kid: str = KID) -> Path:
        """The file of a private key."""
        return self.directory / "keys" / f"{kid}.private.pem"

    def server(self, workers: int = 1) -> ServerProcess:
        """A server with these settings."""
        arguments = ["--config", str(self.config)]
        return ServerProcess(self.directory / "data", workers=workers, auth=True, arguments=arguments)

    def secret(self, kid: str = KID, permissions: list[Permission] | None = None) -> SecretKey:
        """A key as the public client has it."""
        return SecretKey(kid, self.private(kid).read_text(), permissions=permissions)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """Keys and settings for the tests of this file."""
    return Deployment(tmp_path_factory.mktemp("deployment"))


@pytest.fixture(scope="module")
def server(deployment: Deployment) -> Iterator[ServerProcess]:
    """A server that enforces authentication, with two workers."""
    with deployment.server(workers=2) as process:
        yield process


def _session(server: ServerProcess, token: SecretKey | str | None, **scopes: str | int) -> Session:
    timeout = urllib3.Timeout(connect=10, read=60)
    client = Client(server.url, token=token, connection_kwargs={"timeout": timeout}, retries=0)
    return client.session(Usecase("attachments", compression="none"), **(scopes or TENANT))


def _get(url: str, method: str = "GET", headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    answer = urllib3.request(method, url, headers=headers, timeout=20, retries=False)
    return answer.status, answer.data


def _read(session: Session, key: str) -> bytes:
    found = session.get(key)
    assert found is not None
    with found.payload as payload:
        return bytes(payload.read())


def test_the_public_client_with_a_secret_key(deployment: Deployment, server: ServerProcess) -> None:
    """Put, get, head, delete and a multipart upload, each with a token that the client signs."""
    session = _session(server, deployment.secret())
    for size in (0, 3 * KIB, 2 * MIB):
        payload = bytes(range(256)) * (size // 256)
        assert session.put(payload, key=f"signed/{size}") == f"signed/{size}"
        assert _read(session, f"signed/{size}") == payload
    assert session.head("signed/0") is not None
    session.delete("signed/0")
    assert session.get("signed/0") is None
    upload = session.initiate_multipart_upload(key="parts", compression="none")
    part = upload.put_part(b"part", part_number=1, content_length=4)
    upload.complete([part])
    assert _read(session, "parts") == b"part"


def test_the_public_client_with_a_static_token(deployment: Deployment, server: ServerProcess) -> None:
    """A token that the command made is good for its scopes and permissions, and for no others."""
    arguments = ["--key", str(deployment.private()), "--kid", KID, "--usecase", "attachments", "--scope", "org=17"]
    wide = _tierstore(
        "token", "mint", *arguments, "--scope", "project=*", "--permission", "read", "--permission", "write"
    ).strip()
    session = _session(server, wide)
    session.put(b"static", key="static")
    assert _read(session, "static") == b"static"
    _session(server, wide, org=17, project=7).put(b"elsewhere", key="static")
    for refused in (
        lambda: session.delete("static"),
        lambda: _session(server, wide, org=18, project=42).put(b"x", key="static"),
    ):
        with pytest.raises(RequestError) as error:
            refused()
        assert error.value.status == 403
    verdict = _tierstore("token", "inspect", "--config", str(deployment.config), stdin=wide)
    assert "valid: grants object.read, object.write in attachments, org=17;project=*" in verdict


def test_the_public_client_without_a_good_key(server: ServerProcess) -> None:
    """No token is 400, one of an unknown key 401; the client is told."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat  # noqa: PLC0415  # because only this test writes a key itself

    stranger = Signer(KID).private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    for token, status in (
        (None, 400),
        ("nonsense", 400),
        (SecretKey(KID, stranger), 401),
        (SecretKey("other", stranger), 401),
    ):
        with pytest.raises(RequestError) as error:
            _session(server, token).put(b"x", key="refused")
        assert error.value.status == status


def test_object_urls(deployment: Deployment, server: ServerProcess) -> None:
    """``object_url`` with a validity is readable as it is; without one it needs a token."""
    session = _session(server, deployment.secret())
    for key in ("plain", "a/b c", "ü%2F🍕?x=1&y#z", "a+b"):
        session.put(key.encode(), key=key)
        assert _get(session.object_url(key, timedelta(minutes=1))) == (200, key.encode())
        assert _get(session.object_url(key))[0] == 400
        assert _get(session.object_url(key, timedelta(minutes=1)), "DELETE")[0] == 403


def test_presigned_object_urls(deployment: Deployment, server: ServerProcess) -> None:
    """``presigned_object_url`` of either method is readable with both, of any key, and nothing else can be done."""
    session = _session(server, deployment.secret())
    for key in ("plain", "a/b c", "ü%2F🍕?x=1&y#z", "a+b"):
        session.put(key.encode(), key=key)
        for method in ("GET", "HEAD"):
            url = session.presigned_object_url(method, key, timedelta(minutes=5))
            assert _get(url) == (200, key.encode())
            assert _get(url, "HEAD")[0] == 204
            assert _get(url, "DELETE")[0] == 403
            assert _get(url.replace("/attachments/", "/attachments2/"))[0] == 401
    assert _read(session, "plain") == b"plain"


def test_the_presign_command(deployment: Deployment, server: ServerProcess) -> None:
    """What the command signs is readable until its time is up."""
    _session(server, deployment.secret()).put(b"signed", key="a b/c")
    url = f"{server.url}/v1/objects/attachments/org=17;project=42/a b/c"
    arguments = ("--key", str(deployment.private()), "--kid", KID)
    assert _get(_tierstore("presign", *arguments, url).strip()) == (200, b"signed")
    assert _get(_tierstore("presign", *arguments, "--valid", "0s", url).strip())[0] == 401
    _tierstore("presign", *arguments, "--valid", "8d", url, status=1)
    _tierstore("presign", "--key", str(deployment.directory / "nothing"), "--kid", KID, url, status=1)


def test_keys_are_not_overwritten(deployment: Deployment) -> None:
    """A second key of the same id is refused; the private file is its owner's alone."""
    before = deployment.private().read_bytes()
    _tierstore("keys", "generate", "--kid", KID, "--directory", str(deployment.directory / "keys"), status=1)
    assert deployment.private().read_bytes() == before
    assert deployment.private().stat().st_mode & 0o777 == 0o600
    for kid in ("../x", "", ".x", "a/b", "k" * 129):
        _tierstore("keys", "generate", "--kid", kid, "--directory", str(deployment.directory / "keys"), status=1)


@pytest.mark.parametrize("workers", [1, 2])
def test_reload(tmp_path: Path, workers: int) -> None:
    """SIGHUP puts other keys in force in every worker, at once; settings that are wrong change nothing."""
    deployment = Deployment(tmp_path)
    old_settings = deployment.config.read_text()
    new_settings = deployment.generate("media-2")
    with deployment.server(workers) as server:
        old, new = deployment.secret(), deployment.secret("media-2")
        _session(server, old).put(b"x", key="k")
        assert _status(server, new) == 401
        wrong = (
            old_settings.replace("object.read", "object.reads"),
            old_settings.replace("media-1.public", "media-1.private"),
            old_settings.replace("media-1.public", "nothing"),
            f"{new_settings}admission:\n  killswitches: [{{}}]\n",
            "auth: [",
        )
        for number, text in enumerate(wrong, start=1):
            deployment.config.write_text(text)
            server.send_signal(signal.SIGHUP)
            _wait_for(server, "reload refused; the settings before stay in force", number)
            assert (_status(server, old), _status(server, new)) == (200, 401)
        deployment.config.write_text(new_settings)
        server.send_signal(signal.SIGHUP)
        taken_over = "settings taken over" if workers > 1 else "settings read again"
        _wait_for(server, taken_over, workers)
        for _ in range(8):  # connections are new, and go to any worker
            assert (_status(server, old), _status(server, new)) == (401, 200)
        assert (tmp_path / "keys" / "media-1.private.pem").read_text() not in server.log_text


def test_requests_while_settings_change(tmp_path: Path) -> None:
    """While keys come and go, and wrong settings with them, each request is answered by the keys before or after."""
    deployment = Deployment(tmp_path)
    settings = [deployment.config.read_text(), deployment.generate("media-2"), "auth: ["]
    with deployment.server(2) as server:
        _session(server, deployment.secret()).put(b"x", key="k")
        ended = threading.Event()
        with ThreadPoolExecutor(4) as threads:
            asking = [
                threads.submit(_statuses_until, ended, server, deployment.secret(kid))
                for kid in (KID, "media-2", KID, "media-2")
            ]
            try:
                for number in range(1, 7):
                    deployment.config.write_text(settings[number % 3])
                    server.send_signal(signal.SIGHUP)
                    if settings[number % 3] == "auth: [":
                        _wait_for(server, "reload refused; the settings before stay in force", (number + 1) // 3)
                    else:
                        _wait_for(server, "settings read again", number - number // 3)
            finally:
                ended.set()
            statuses = [status for future in asking for status in future.result(30)]
        assert set(statuses) == {200, 401}
        old, new = deployment.secret(), deployment.secret("media-2")
        server.wait_until(
            lambda: all((_status(server, old), _status(server, new)) == (200, 401) for _ in range(8)),
            "has the last settings in both workers",
        )


def _statuses_until(ended: threading.Event, server: ServerProcess, secret: SecretKey) -> list[int]:
    statuses = []
    while not ended.is_set():
        statuses.append(_status(server, secret))
    return statuses


def _wait_for(server: ServerProcess, event: str, times: int) -> None:
    server.wait_until(lambda: len(server.logs(event)) == times, f"has logged {event}")


def _status(server: ServerProcess, secret: SecretKey) -> int:
    """What a read on a new connection, which any of the workers may take, is answered with."""
    try:
        found = _session(server, secret).get("k")
    except RequestError as error:
        return error.status or 0
    assert found is not None
    found.payload.close()
    return 200


def test_a_worker_that_starts_later_has_the_latest_settings(tmp_path: Path) -> None:
    """After a reload, a worker in the place of a dead one knows the new keys and not the old ones."""
    deployment = Deployment(tmp_path)
    new_settings = deployment.generate("media-2")
    with deployment.server(2) as server:
        deployment.config.write_text(new_settings)
        server.send_signal(signal.SIGHUP)
        _wait_for(server, "settings taken over", 2)
        for pid in server.worker_pids:
            subprocess.run(["kill", "-9", str(pid)], check=True)
        _wait_for(server, "worker serves", 4)
        old, new = deployment.secret(), deployment.secret("media-2")
        _session(server, new).put(b"x", key="k")
        for _ in range(8):
            assert (_status(server, old), _status(server, new)) == (401, 200)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_terminal_that_hangs_up_stops_the_server(tmp_path: Path, workers: str) -> None:
    """SIGHUP because the terminal has gone is no reload: a server that was started by hand does not outlive it."""
    outer, inner = pty.openpty()
    command = [sys.executable, "-m", "tierstore", "serve", "--no-auth", "--port", "0", "--data", str(tmp_path / "data")]
    with subprocess.Popen(
        [*command, "--workers", workers], stdin=inner, stdout=inner, stderr=inner, start_new_session=True
    ) as server:
        try:
            os.close(inner)
            shown = b""
            while b"Stop it with" not in shown:
                shown += os.read(outer, 65536)
            os.kill(server.pid, signal.SIGHUP)
            while b"settings read again" not in shown:
                shown += os.read(outer, 65536)
            assert server.poll() is None
            os.close(outer)
            os.kill(server.pid, signal.SIGHUP)
            assert server.wait(20) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)


def test_a_server_does_not_start_with_wrong_keys(tmp_path: Path) -> None:
    """A key file that is missing, private or nonsense keeps the server from starting, with a sentence that names it."""
    deployment = Deployment(tmp_path)
    good = deployment.config.read_text()
    for name, reason in (
        ("media-1.private.pem", "is a private key"),
        ("nothing.pem", "cannot be read"),
        ("../tierstore.yaml", "no public key"),
    ):
        deployment.config.write_text(good.replace("media-1.public.pem", name))
        with pytest.raises(ServerFailed, match=reason), deployment.server():
            raise AssertionError("it started")


def test_no_secret_is_in_the_log(deployment: Deployment, tmp_path: Path) -> None:
    """After authenticated traffic of every kind, no token, signature or key is in the server's log, at any level."""
    arguments = ["--config", str(deployment.config), "--log-level", "debug"]
    with ServerProcess(tmp_path / "data", auth=True, arguments=arguments) as server:
        session = _session(server, deployment.secret())
        session.put(b"x", key="k")
        token = session.mint_token()
        url = session.presigned_object_url("GET", "k", timedelta(minutes=5))
        address = session.object_url("k")
        assert _get(f"{address}?os_auth={token}")[0] == 200
        assert _get(url)[0] == 200
        assert _get(f"{url}x")[0] == 400
        for header in ("x-os-auth", "Authorization"):
            assert _get(address, headers={header: f"Bearer {token}"})[0] == 200
            assert _get(address, headers={header: f"Bearer {token[:-8]}AAAAAAAA"})[0] in {400, 401}
        secrets = [*token.split("."), url.rpartition("os_sig=")[2], deployment.private().read_text().splitlines()[1]]
        log = server.log_text
        assert len(server.logs("request")) >= 8
        assert [secret for secret in secrets if secret in log or secret[:20] in log.replace(KID, "")] == []
        assert {line.get("kid") for line in server.logs("request") if line.get("status") == 200} >= {KID}


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_page_leads_to_authenticated_traffic(tmp_path: Path) -> None:
    """The commands of docs/access.md, run in order in an empty directory, do what their comments say."""
    page = (Path(__file__).parents[2] / "docs" / "access.md").read_text()
    before, serve, *after = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert serve == "tierstore serve --config tierstore.yaml\n"
    _shell(tmp_path, before)
    arguments = ["--config", str(tmp_path / "tierstore.yaml")]
    with ServerProcess(tmp_path / "data", auth=True, arguments=arguments) as server:
        commands = "".join(after).replace("http://localhost:8888", server.url)
        shown = _shell(tmp_path, "curl() { command curl -sw ' %{http_code}\\n' \"$@\"; }\n" + commands).splitlines()
        announced = re.findall(r"^curl .*  # (\d\d\d)", "".join(after), re.MULTILINE)
        assert [line[-3:] for line in shown[: len(announced)]] == announced
        assert len(announced) >= 9
        assert shown[1] == shown[2] == shown[6] == "hello, world 200"
        assert "valid: grants object.read, object.write in attachments, org=17" in shown[-1]
        example = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[0]
        script = example.replace("http://localhost:8888", server.url)
        printed = subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
        ).stdout
        status, stored = _get(printed.strip())
        assert status == 200
        # The public client compresses, unless it is told not to.
        assert zstandard.ZstdDecompressor().decompressobj().decompress(stored) == b"hello, world"


def _shell(directory: Path, commands: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        ["sh", "-ec", commands],
        cwd=directory,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_an_expired_token_is_inspected(deployment: Deployment) -> None:
    """The command tells of a token that it has expired, by the leeway of the settings."""
    arguments = ["--key", str(deployment.private()), "--kid", KID, "--usecase", "attachments", "--valid", "0s"]
    token = _tierstore("token", "mint", *arguments).strip()
    strict = deployment.directory / "strict.yaml"
    strict.write_text(f"{deployment.config.read_text()}  leeway: 0\n")
    verdict = _tierstore("token", "inspect", "--config", str(strict), stdin=token, status=1)
    assert "refused: the token has expired" in verdict
    assert "not verified" in _tierstore("token", "inspect", stdin=token, status=1)
    _tierstore("token", "inspect", stdin="nonsense", status=1)
