"""Encrypted connections as a whole: flags and settings, the server's processes, the public client, reload."""

import shutil
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from objectstore_client import Client, Usecase

from tests.http.certificates import HOST, Authority, trusting
from tierstore.limits import MIB
from tierstore.testing.server import ServerFailed, ServerProcess


class Deployment:
    """Files of a server with TLS, and settings that name them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority()
        self.ca = self.authority.write(directory / "ca.crt")
        self.certificate, self.key = self.authority.issue(directory, "server")
        self.config = directory / "tierstore.yaml"
        self.write_config()

    def write_config(self, **settings: str) -> None:
        """Settings for TLS, with others added or in their place."""
        tls = {"certificate": str(self.certificate), "key": str(self.key)} | settings
        self.config.write_text("tls:\n" + "".join(f"  {name}: {value}\n" for name, value in tls.items() if value))

    def renew(self, name: str) -> None:
        """Another certificate and key in the place of those before."""
        certificate, key = self.authority.issue(self.directory, name)
        certificate.replace(self.certificate)
        key.replace(self.key)

    def server(self, workers: int = 1) -> ServerProcess:
        """A server with these settings."""
        return ServerProcess(
            self.directory / "data", workers=workers, arguments=["--config", str(self.config)], tls=trusting(self.ca)
        )

    def shown(self, server: ServerProcess) -> str:
        """The name in the certificate that a new connection is shown, by any of the workers."""
        with (
            socket.create_connection((HOST, server.port), timeout=10) as plain,
            trusting(self.ca).wrap_socket(plain, server_hostname=HOST) as connection,
        ):
            shown = x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"")
            return shown.subject.rfc4514_string().removeprefix("CN=")


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    """Files and settings of their own."""
    return Deployment(tmp_path)


def test_the_public_client(deployment: Deployment) -> None:
    """With two workers, by flags: put, get, head, delete and a multipart upload; who does not trust it gets nothing."""
    arguments = ["--tls-certificate", str(deployment.certificate), "--tls-key", str(deployment.key)]
    with ServerProcess(
        deployment.directory / "data", workers=2, arguments=arguments, tls=trusting(deployment.ca)
    ) as server:
        assert server.logs("listening")[0]["tls"] == "on"
        for path in ("/health", "/ready", "/metrics", "/keda"):
            assert server.status(path) == 200
        client = Client(server.url, connection_kwargs={"ca_certs": str(deployment.ca)})
        session = client.session(Usecase("attachments"), org=17)
        payload = bytes(3 * MIB)
        session.put(payload, key="k", compress="none")
        found = session.get("k")
        assert found is not None
        with found.payload as stream:
            assert stream.read() == payload
        upload = session.initiate_multipart_upload(key="parts", compression="none")
        upload.complete([upload.put_part(b"part", part_number=1, content_length=4)])
        session.delete("k")
        assert session.head("k") is None
        with pytest.raises(ssl.SSLCertVerificationError):
            ssl.create_default_context().wrap_socket(
                socket.create_connection((HOST, server.port), timeout=10), server_hostname=HOST
            )
        assert not [line for line in server.logs() if line["level"] in {"error", "critical"}]
        server.terminate()  # while the client keeps its connections, and does not look at them
        assert server.wait(seconds=10) == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_reload(deployment: Deployment, workers: int) -> None:
    """SIGHUP puts other files in force for new connections, in every worker; what is broken changes nothing at all."""
    with deployment.server(workers) as server:
        assert deployment.shown(server) == "server"
        _, wrong_key = deployment.authority.issue(deployment.directory, "wrong")
        good_key = deployment.key.read_bytes()
        refused = "reload refused; the settings before stay in force"
        for number, broken in enumerate((b"nonsense", wrong_key.read_bytes()), start=1):
            deployment.key.write_bytes(broken)
            server.send_signal(signal.SIGHUP)
            server.wait_until(lambda wanted=number: len(server.logs(refused)) == wanted, "refuses")  # type: ignore[misc]  # because the type of a default is not inferred
            assert {deployment.shown(server) for _ in range(4)} == {"server"}
        deployment.key.write_bytes(good_key)
        deployment.renew("renewed")
        server.send_signal(signal.SIGHUP)
        event = "settings taken over" if workers > 1 else "settings read again"
        server.wait_until(lambda: len(server.logs(event)) == workers, "takes them over")
        assert {deployment.shown(server) for _ in range(8)} == {"renewed"}
        deployment.write_config(minimum_version="TLSv1.3")
        server.send_signal(signal.SIGHUP)
        restart = "some settings that have changed need a restart"
        server.wait_until(lambda: len(server.logs(restart)) == 1, "says that this needs a restart")
        assert server.logs(restart)[0]["sections"] == ["tls"]
        assert deployment.shown(server) == "renewed"


def test_a_server_does_not_start_with_wrong_files(deployment: Deployment) -> None:
    """A file that is missing or wrong, and one without the other, keep the server from starting, with a sentence."""
    _, other = deployment.authority.issue(deployment.directory, "other")
    _, encrypted = deployment.authority.issue(deployment.directory, "encrypted", password=b"secret")
    for changed, words in (
        ({"certificate": "/nowhere/a.crt"}, "tls.certificate: the file /nowhere/a.crt cannot be read: No such file"),
        ({"key": str(deployment.certificate)}, "holds no private key in PEM"),
        ({"key": str(encrypted)}, "is encrypted"),
        ({"key": str(other)}, "is not that of the certificate"),
        ({"key": ""}, "tls.key: is missing"),
        ({"certificate": ""}, "tls.certificate: is missing"),
        ({"certificate": "", "key": "", "client_ca": "x"}, "tls.client_ca: needs tls.certificate"),
    ):
        deployment.write_config(**changed)
        with pytest.raises(ServerFailed, match=words), deployment.server():
            raise AssertionError("it started")


def test_a_key_that_others_can_read_is_a_warning(deployment: Deployment) -> None:
    """It serves, and says so once."""
    deployment.key.chmod(0o644)
    with deployment.server() as server:
        [line] = server.logs("other users of this machine can read the private key: chmod 600")
        assert (line["level"], line["file"]) == ("warning", str(deployment.key))


def test_settings_are_shown_and_read_back(deployment: Deployment) -> None:
    """``config show`` writes the files' names, leaves out those that are not set, and its output is a config file."""
    command = [sys.executable, "-m", "tierstore", "config", "show", "--config"]
    shown = subprocess.run([*command, str(deployment.config)], capture_output=True, text=True, timeout=30, check=True)
    assert f"  certificate: {deployment.certificate}  # file" in shown.stdout
    assert "  # client_ca:  # none\n" in shown.stdout
    copy = deployment.directory / "copy.yaml"
    copy.write_text(shown.stdout)
    again = subprocess.run([*command, str(copy)], capture_output=True, text=True, timeout=30, check=True)
    assert f"  key: {deployment.key}  # file {copy}\n" in again.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(deployment: Deployment) -> None:
    """A client that offers HTTP/2 and checks the certificate gets HTTP/1.1."""
    with deployment.server() as server:
        command = ["curl", "-sS", "--http2", "--cacert", str(deployment.ca), "-w", " %{http_code} %{http_version}"]
        asked = subprocess.run(
            [*command, f"{server.url}/health"], capture_output=True, text=True, timeout=30, check=True
        )
        assert asked.stdout.endswith(" 200 1.1")
