"""Settings that change while a server runs: as a whole, or not at all."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog
from msgspec.structs import replace

from tests.http.credentials import ALL, Signer
from tierstore.config import Auth, AuthKey, Config, Http, Throughput
from tierstore.config_loading import load_config
from tierstore.errors import ConfigError
from tierstore.process.access import access_from, with_key_files_read
from tierstore.process.metrics_directory import VARIABLE
from tierstore.process.reload import Reloads, hand_over, handed_over, settings_again

SIGNER = Signer("kid")
GOOD = Auth(keys={"kid": AuthKey(max_permissions=("object.read",), public_keys=(SIGNER.public_pem,))})


def _reading(config: Config) -> Callable[[], Config]:
    return lambda: config


def test_what_may_change_does() -> None:
    """Sections of access and limits are taken over; others stay, and the log names them."""
    running = Config(http=Http(port=1))
    read = Config(http=Http(port=2), auth=GOOD, throughput=Throughput(rate=5))
    with structlog.testing.capture_logs() as lines:
        changed = settings_again(_reading(read), running)
    assert changed is not None
    assert (changed.auth, changed.throughput, changed.http.port) == (GOOD, read.throughput, 1)
    assert {
        "event": "some settings that have changed need a restart",
        "log_level": "warning",
        "sections": ["http"],
    } in lines


@pytest.mark.parametrize(
    "key",
    [
        AuthKey(max_permissions=("object.read",)),
        AuthKey(max_permissions=(), public_keys=(SIGNER.public_pem,)),
        AuthKey(max_permissions=("object.read",), public_keys=("nonsense",)),
        AuthKey(max_permissions=("object.read",), files=("/nonexistent/key.pem",)),
    ],
)
def test_one_thing_that_is_wrong_refuses_all(key: AuthKey) -> None:
    """One bad key among good settings: nothing changes, and the log says which key."""
    read = Config(auth=replace(GOOD, keys={**GOOD.keys, "bad": key}), throughput=Throughput(rate=5))
    with structlog.testing.capture_logs() as lines:
        assert settings_again(_reading(read), Config()) is None
    assert [line["event"] for line in lines] == ["reload refused; the settings before stay in force"]
    assert "bad" in lines[0]["reason"]


def test_settings_that_cannot_be_read_change_nothing(tmp_path: Path) -> None:
    """A file that is gone or malformed, or no way to read at all: the settings before stay."""
    file = tmp_path / "tierstore.yaml"
    for text in (None, "auth: [", "auth: {keys: 1}", "nothing: {}"):
        if text is not None:
            file.write_text(text)
        with structlog.testing.capture_logs() as lines:
            assert settings_again(lambda: load_config(file, {}, {}).config, Config()) is None
        assert lines[0]["log_level"] == "error"
    assert settings_again(None, Config()) is None


def test_every_wrong_key_is_reported(tmp_path: Path) -> None:
    """All problems of all keys at once, each with its id and file, none with the text of a key."""
    private = tmp_path / "private.pem"
    private.write_text("-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\n")
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff" * 10)
    large = tmp_path / "large"
    large.write_bytes(b"x" * 100_000)
    files = (str(private), str(binary), str(large), str(tmp_path), str(tmp_path / "none"), "~nobody-here/x")
    keys = {
        "one": AuthKey(max_permissions=("object.read",), files=files),
        "two": AuthKey(max_permissions=("object.read",)),
    }
    with pytest.raises(ConfigError) as refused:
        with_key_files_read(Config(auth=Auth(keys=keys)))
    lines = str(refused.value).splitlines()
    assert [name in line for name, line in zip(files, lines, strict=True)] == [True] * len(files)
    assert "secret" not in str(refused.value)
    with pytest.raises(ConfigError, match="two: has no public key"):
        with_key_files_read(Config(auth=Auth(keys={"two": keys["two"]})))


def test_files_are_read_in_place(tmp_path: Path) -> None:
    """The text of files takes their place, so that what is handed over needs no files."""
    file = tmp_path / "public.pem"
    file.write_text(SIGNER.public_pem)
    key = AuthKey(max_permissions=("object.read",), files=(str(file),))
    with pytest.raises(ConfigError, match="not been read"):
        access_from(Config(auth=Auth(keys={"kid": key})))
    config = with_key_files_read(Config(auth=Auth(keys={"kid": key})))
    file.unlink()
    found = access_from(config).keys.find("kid")
    assert found.verifies(SIGNER.private.sign(b"text"), b"text")
    assert found.max_permissions == {ALL[0]}


def test_workers_take_over_what_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the supervisor hands over, a worker has, beside its own other settings; damage changes nothing."""
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    running = Config(http=Http(port=7))
    assert handed_over(running) == running
    hand_over(Config(auth=GOOD, throughput=Throughput(rate=5)))
    assert handed_over(running) == Config(http=Http(port=7), auth=GOOD, throughput=Throughput(rate=5))
    for damaged in (b"", b"{}", b'{"auth": 1}', b"\xff"):
        (tmp_path / "settings").write_bytes(damaged)
        with structlog.testing.capture_logs() as lines:
            assert handed_over(running) is None
        assert lines[0]["event"] == "reload failed in this worker; the settings before stay in force"


def test_a_reload_before_anything_is_served_is_not_lost() -> None:
    """Who subscribes late gets the latest settings at once; after the end, nothing."""
    reloads, taken = Reloads(), list[Config]()
    first, second, third = (Config(http=Http(port=port)) for port in (1, 2, 3))
    reloads.publish(first)
    reloads.publish(second)
    reloads.subscribe(taken.append)
    assert taken == [second]
    reloads.publish(first)
    reloads.subscribe(None)
    reloads.publish(third)
    assert taken == [second, first]


def test_what_is_read_can_be_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key file is read that a worker would then not take: all of them get the same keys, or a reload is refused."""
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    file = tmp_path / "public.pem"
    key = AuthKey(max_permissions=("object.read",), files=(str(file),))
    for size in (0, 3000, 4096, 5000, 60_000):
        remark = "x" * max(0, size - len(SIGNER.public_pem) - 1)
        file.write_text(f"{remark}\n{SIGNER.public_pem}")
        with structlog.testing.capture_logs():
            changed = settings_again(_reading(Config(auth=Auth(keys={"kid": key}))), Config())
            assert (changed is not None) is (size <= 4096)
            if changed is not None:
                hand_over(changed)
                assert handed_over(Config()) == changed


def test_a_key_file_that_is_no_file_keeps_nobody_waiting(tmp_path: Path) -> None:
    """A pipe that nobody writes to is refused like everything that is no key, and at once."""
    pipe = tmp_path / "public.pem"
    os.mkfifo(pipe)
    key = AuthKey(max_permissions=("object.read",), files=(str(pipe), "/dev/zero"))
    with pytest.raises(ConfigError, match=r"public.pem is no regular file\n.*/dev/zero is no regular file"):
        with_key_files_read(Config(auth=Auth(keys={"kid": key})))


def test_a_text_has_one_key(tmp_path: Path) -> None:
    """Two keys in one text: the second one would be passed over without a word, so neither is taken."""
    both = SIGNER.public_pem + Signer("other").public_pem
    file = tmp_path / "public.pem"
    file.write_text(both)
    for key in (
        AuthKey(max_permissions=("object.read",), files=(str(file),)),
        AuthKey(max_permissions=("object.read",), public_keys=(both,)),
    ):
        with pytest.raises(ConfigError, match="more than one key"):
            with_key_files_read(Config(auth=Auth(keys={"kid": key})))


def test_a_fault_of_ours_changes_nothing() -> None:
    """Whatever fails while settings are read, the server goes on with those before, and the log has all of it."""

    def fail() -> Config:
        raise RecursionError

    with structlog.testing.capture_logs() as lines:
        assert settings_again(fail, Config()) is None
    assert lines[0]["event"] == "reload failed; the settings before stay in force"
    assert lines[0]["log_level"] == "error"
    assert lines[0]["exc_info"]
