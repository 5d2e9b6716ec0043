"""Laws of the operators' commands: run as processes, on real stores, also beside a server that runs."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tierstore.build import check_stores
from tierstore.cli import cli
from tierstore.config_loading import ENVIRONMENT_PREFIX, Setting, load_config
from tierstore.testing.server import ServerProcess

UNKNOWN = "media/objects/film/00000000-0000-8000-8000-000000000007"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that runs while commands open its stores."""
    with ServerProcess(tmp_path_factory.mktemp("data")) as process:
        yield process


def run(data: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command on the stores below ``data``."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
    command = [sys.executable, "-m", "tierstore", *arguments, "--data", str(data)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environment)


def printed(data: Path, *arguments: str) -> str:
    """What a command prints that succeeds, and has nothing to complain of."""
    ended = run(data, *arguments)
    assert (ended.returncode, complaints(ended)) == (0, "")
    return ended.stdout


def complaints(ended: subprocess.CompletedProcess[str]) -> str:
    """What a command has written to standard error, without its lines for the audit log."""
    return "".join(line for line in ended.stderr.splitlines(keepends=True) if '"audit":' not in line)


def request(server: ServerProcess, method: str, path: str, payload: bytes | None = None) -> tuple[int, Any]:
    """Status and JSON of an answer."""
    asked = urllib.request.Request(f"{server.url}/v1/objects:multipart{path}", payload, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=10) as response:
            return response.status, json.loads(response.read() or b"null")
    except urllib.error.HTTPError as answered:
        with answered:
            return answered.code, json.loads(answered.read() or b"null")


def begin(server: ServerProcess, key: str) -> str:
    """Begin an upload of ``key`` with a part of 3 bytes; return the query that names it."""
    status, begun = request(server, "PUT", f"/media/org=1/{key}", b"")
    assert status == 200
    query = f"?upload_id={begun['upload_id']}"
    status, _ = request(server, "PUT", f":parts/media/org=1/{key}{query}&part_number=1", b"abc")
    assert status == 200
    return query


def listed(server: ServerProcess, key: str, *options: str) -> list[dict[str, Any]]:
    """The uploads of ``key`` that a list for programs shows."""
    lines = printed(server.data, "uploads", "list", "--json", *options).splitlines()
    return [upload for upload in map(json.loads, lines) if upload["key"] == key]


def metric(server: ServerProcess, name: str) -> float:
    """The value of a metric."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as response:
        (line,) = [line for line in response.read().decode().splitlines() if line.startswith(f"{name} ")]
    return float(line.rpartition(" ")[2])


def test_an_upload_is_seen_and_aborted_beside_the_server(server: ServerProcess) -> None:
    """What a client has begun is listed with its parts; once aborted, its client is told; the metrics follow."""
    query = begin(server, "aborted")
    assert metric(server, "tierstore_uploads_in_progress") == 1
    (upload,) = listed(server, "aborted")
    assert (upload["parts"], upload["bytes"], upload["scopes"]) == (1, 3, [["org", "1"]])
    revision = upload["revision"]
    assert revision in printed(server.data, "uploads", "list")
    assert "an upload in progress" in printed(server.data, "changelog", "list")
    assert "row: none" in printed(server.data, "changelog", "show", revision)
    shown = json.loads(printed(server.data, "changelog", "show", "--json", revision))
    assert (shown["row"], shown["parts"], shown["entries"][0]["state"]) == ({"content": "none"}, 1, "open")
    assert query == f"?upload_id={upload['upload_id']}"
    for _ in range(2):
        assert (
            printed(server.data, "uploads", "abort", revision) == f"{revision}: aborted; its parts have been removed\n"
        )
    assert listed(server, "aborted") == []
    assert [upload["reason"][:8] for upload in listed(server, "aborted", "--all")] == ["given up"]
    status, _ = request(server, "PUT", f":parts/media/org=1/aborted{query}&part_number=2", b"abc")
    assert status == 404
    assert metric(server, "tierstore_uploads_in_progress") == 0


def test_a_completed_upload_is_remembered_whatever_is_settled(server: ServerProcess) -> None:
    """Settling its entry, and everything that is due, leaves the outcome to a client that asks again."""
    query = begin(server, "completed")
    (upload,) = listed(server, "completed")
    _, parts = request(server, "GET", f":parts/media/org=1/completed{query}")
    named = [{"part_number": part["part_number"], "etag": part["etag"]} for part in parts["parts"]]
    document = json.dumps({"parts": named}).encode()
    path = f":complete/media/org=1/completed{query}"
    assert request(server, "POST", path, document)[0] == 200
    server.wait_until(lambda: metric(server, "tierstore_upload_outcomes") == 1, "remembers the outcome")
    assert listed(server, "completed", "--all") == []
    assert upload["revision"] not in printed(server.data, "changelog", "list")
    for options in (("--all",), ("--state", "open", "--state", "done")):
        assert upload["revision"] in printed(server.data, "changelog", "list", *options)
    assert "left as it is" in printed(server.data, "changelog", "settle", upload["revision"])
    (settled,) = map(json.loads, printed(server.data, "changelog", "settle", "--json", upload["revision"]).splitlines())
    assert (settled["revision"], settled["failed"], settled["changed"]) == (upload["revision"], False, False)
    assert settled["result"].startswith("left as it is")
    printed(server.data, "changelog", "settle", "--all-due")
    assert run(server.data, "uploads", "abort", upload["revision"]).returncode == 1
    assert request(server, "POST", path, document)[0] == 200
    assert "row: points to this revision" in printed(server.data, "changelog", "show", upload["revision"])


def test_settling_an_upload_aborts_it(server: ServerProcess) -> None:
    """As the help says: an entry that is open is settled, and its client is told that there is no such upload."""
    query = begin(server, "settled")
    (upload,) = listed(server, "settled")
    assert "deleted: no object has this blob" in printed(server.data, "changelog", "settle", upload["revision"])
    assert request(server, "GET", f":parts/media/org=1/settled{query}")[0] == 404


def test_the_limit_is_told(server: ServerProcess) -> None:
    """A list that is cut says so, beside what programs read."""
    for number in range(3):
        begin(server, f"limited{number}")
    ended = run(server.data, "uploads", "list", "--json", "--limit", "2")
    assert ended.returncode == 0
    assert len(ended.stdout.splitlines()) == 2
    assert ended.stderr == "tierstore: there are more than 2; a larger --limit shows them\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("uploads", "list"),
        ("uploads", "abort", UNKNOWN),
        ("changelog", "list"),
        ("changelog", "show", UNKNOWN),
        ("changelog", "settle", "--all-due"),
    ],
)
def test_without_stores_there_is_one_sentence(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Exit code 1, one line that says what to look for, and nothing is made."""
    ended = run(tmp_path / "data", *arguments)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("tierstore: there is no high-volume store at ")
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_what_is_not_there_fails(tmp_path: Path) -> None:
    """An upload and an entry that are not known: each is named with the reason, and the exit code is 1."""
    check_stores(load_config(None, {}, {"data.path": Setting(str(tmp_path), "test")}).config)
    for arguments, words in (
        (("uploads", "abort", UNKNOWN), "there is no such upload"),
        (("changelog", "settle", UNKNOWN), "the change log has no entry of it"),
    ):
        ended = run(tmp_path, *arguments)
        assert ended.returncode == 1
        assert ended.stdout.startswith(f"{UNKNOWN}: {words}")
        assert complaints(ended) == "tierstore: 1 of them could not be done, see above\n"
    assert "change log: no entry" in printed(tmp_path, "changelog", "show", UNKNOWN)
    for empty in (("uploads", "list"), ("changelog", "list"), ("changelog", "settle", "--all-due", "--json")):
        assert printed(tmp_path, *empty) == ""
    assert printed(tmp_path, "changelog", "settle", "--all-due") == "nothing is due\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("uploads", "abort"),
        ("uploads", "abort", "film"),
        ("uploads", "abort", UNKNOWN.replace("-8000-8", "-7000-8")),
        ("uploads", "list", "--limit", "0"),
        ("changelog", "list", "--state", "gone"),
        ("changelog", "list", "--state", "open", "--all"),
        ("changelog", "show", "film"),
        ("changelog", "settle"),
        ("changelog", "settle", "film"),
        ("changelog", "settle", UNKNOWN, "--all-due"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[str, ...]) -> None:
    """Exit code 2, before anything is opened."""
    ended = CliRunner().invoke(cli, arguments, prog_name="tierstore")
    assert ended.exit_code == 2
    assert "Error: " in ended.output
