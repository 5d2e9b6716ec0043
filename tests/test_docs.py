"""The documentation, held against the real program: commands, settings, metrics, log lines, errors, limits, recipes."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from tierstore import errors, telemetry
from tierstore.cli.serving import serve
from tierstore.config import Http
from tierstore.config_loading import ENVIRONMENT_PREFIX, load_config
from tierstore.http.responses import STATUS_BY_ERROR, STATUS_DISCONNECTED, error_response
from tierstore.idsource import SystemIds
from tierstore.limits import KIB, MIB, Limits
from tierstore.testing.server import ServerProcess
from tierstore.types.durations import format_duration
from tierstore.types.ids import ObjectId, Revision
from tierstore.types.multipart import UploadId
from tierstore.types.sizes import SIZE_PATTERN, format_size

ROOT: Final = Path(__file__).parent.parent
README: Final = ROOT / "README.md"
HTTP_API: Final = ROOT / "docs" / "http-api.md"
CONFIGURATION: Final = ROOT / "docs" / "configuration.md"
OPERATIONS: Final = ROOT / "docs" / "operations.md"
ACCESS: Final = ROOT / "docs" / "access.md"
LIMITS: Final = ROOT / "docs" / "limits.md"

DOCUMENTED_SERVER: Final = "http://localhost:8888"

Row = tuple[str, ...]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server without auth, like that of ``make serve``, with every log line."""
    with ServerProcess(tmp_path_factory.mktemp("data"), arguments=["--log-level", "debug"]) as process:
        yield process


# What the pages hold


def code_blocks(page: Path, language: str) -> list[str]:
    """The contents of the fenced blocks of ``language``."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def tables(page: Path, *header: str) -> list[Row]:
    """The rows, cell by cell, of all tables whose header line begins with the cells ``header``."""
    rows: list[Row] = []
    wanted = False
    before: Row = ()
    for line in page.read_text().splitlines():
        cells = tuple(cell.strip() for cell in line[1:-1].split("|")) if line.startswith("|") else ()
        if cells and all(set(cell) <= set("-|: ") for cell in cells):
            wanted = before[: len(header)] == header
        elif wanted and cells:
            rows.append(cells)
        before, wanted = cells, wanted and bool(cells)
    assert rows, f"{page.name} has no table that begins with {header}"
    return rows


def quoted(cell: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`\n]+)`", cell)


# Commands

CURL = """
curl() {
    calls=$((calls + 1))
    command curl --silent --show-error --include --max-time 10 --write-out '%{http_code}' "$@" \\
        --output "$ANSWERS/$calls.body" > "$ANSWERS/$calls.status"
}
"""


def expected_answers(commands: str) -> list[tuple[str, str | None, list[str]]]:
    """For each line with a curl: the line, the status and the text that its comment announces."""
    announced = []
    for line in commands.splitlines():
        if re.search(r"(?:^|\| *)curl ", line):
            _, _, comment = line.rpartition("  # ") if "  # " in line else line.rpartition(" # ")
            comment = comment if comment != line else ""
            status = re.search(r"\b[1-5]\d\d\b", comment)
            announced.append((line, status and status[0], re.findall(r'"([^"]+)"', comment)))
    return announced


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("page", [README, HTTP_API], ids=lambda page: str(page.name))
def test_commands_answer_what_the_page_says(page: Path, server: ServerProcess, tmp_path: Path) -> None:
    """Every curl command of the page, run in order, answers the status and the text of its comment (else a 2xx)."""
    blocks = [block for block in code_blocks(page, "sh") if "curl " in block]
    commands = "\n".join(blocks)
    announced = expected_answers(commands)
    assert len(announced) >= 5
    answers = tmp_path / "answers"
    answers.mkdir()
    script = CURL + commands.replace(DOCUMENTED_SERVER, server.url).replace("| curl", ">piped; <piped curl")
    ended = subprocess.run(
        ["sh", "-c", script],
        cwd=tmp_path,
        env=os.environ | {"ANSWERS": str(answers)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.stderr == ""
    assert len(list(answers.glob("*.status"))) == len(announced)
    for number, (line, status, texts) in enumerate(announced, start=1):
        answered = (answers / f"{number}.status").read_text()
        assert answered == status if status else answered.startswith("2"), f"{line}\nanswered {answered}"
        whole = (answers / f"{number}.body").read_bytes().decode(errors="replace")
        for text in texts:
            assert text in whole, f"{line}\nanswered\n{whole}"


# Settings


def tierstore(*arguments: str, folder: Path = ROOT) -> str:
    """What the command prints in ``folder`` when no setting is given in the environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
    command = [sys.executable, "-m", "tierstore", *arguments]
    ended = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    return ended.stdout + ended.stderr


def bounds(described: dict[str, Any]) -> str:
    """The values that a key's schema allows, as the page writes them."""
    if "enum" in described:
        return ", ".join(f"`{value}`" for value in sorted(described["enum"]))
    number, text = described.get("anyOf", (described, {}))
    words = {"array": "list", "object": "mapping", "boolean": "`true`, `false`"}
    if number["type"] in words:
        return words[number["type"]]
    if number["type"] == "string":
        meaning = described["description"]
        return "path" if meaning.startswith(("Directory", "The d")) or "in PEM" in meaning else "text"
    lowest, highest = number["minimum"], number["maximum"]
    if not text:
        return f"{lowest} to {highest}"
    if text["pattern"] == f"^{SIZE_PATTERN}$":
        return f"size, {format_size(lowest)} to {format_size(highest)}"
    return f"duration, {format_duration(lowest)} to {format_duration(highest)}"


def flags_by_key() -> dict[str, str]:
    """The flag of ``serve`` that sets each key, by the keys that its help names."""
    flags = {}
    for option in serve.params:
        if found := re.search(r"\[([a-z_]+\.[a-z_]+)", getattr(option, "help", None) or ""):
            flags[found[1]] = option.opts[0]
    return flags


def written_default(described: dict[str, Any], required: bool) -> str:
    """The default of a setting that ``config show`` does not show, from the schema, as the page writes it."""
    default = described.get("default")
    if default is None:
        return "needed" if required else "`none`"
    is_duration = "anyOf" in described and described["anyOf"][1]["pattern"] != f"^{SIZE_PATTERN}$"
    return f"`{format_duration(int(default))}`" if is_duration else f"`{json.dumps(default)}`".replace('"', "")


def settings_of_the_program() -> list[Row]:
    """The rows that docs/configuration.md must have, from the program's own schema, defaults and help.

    Those of stores of other types than the defaults come last.
    """
    schema = json.loads(tierstore("config", "schema"))
    shown = tierstore("config", "show").replace("  # path: ", "  path: ")
    defaults = yaml.safe_load(re.sub(r"  # (\w+):  # none", r"  \1: none", shown))
    flags = flags_by_key()
    rows: list[Row] = []
    of_other_types: list[Row] = []

    def row(key: str, values: str, default: str, meaning: str) -> Row:
        variable = ENVIRONMENT_PREFIX + key.replace(".", "__").upper()
        return (f"`{key}`", values, default, meaning, f"`{variable}`", f"`{flags[key]}`" if key in flags else "")

    for section, reference in schema["$defs"]["Config"]["properties"].items():
        kinds = [schema["$defs"][kind["$ref"].rpartition("/")[2]] for kind in reference.get("anyOf", [reference])]
        for name, described in kinds[0]["properties"].items():
            default = f"`{json.dumps(defaults[section][name])}`".replace('`"', "`").replace('"`', "`")
            if name == "type":
                types = ", ".join(f"`{kind['properties']['type']['enum'][0]}`" for kind in kinds)
                rows.append(row(f"{section}.type", types, default, "Which kind of store."))
            else:
                rows.append(row(f"{section}.{name}", bounds(described), default, described["description"]))
        of_other_types += [
            row(
                f"{section}.{name}",
                bounds(described),
                written_default(described, name in kind["required"]),
                described["description"],
            )
            for kind in kinds[1:]
            for name, described in kind["properties"].items()
            if name != "type"
        ]
    return rows + of_other_types


def test_every_setting_is_described() -> None:
    """The tables of the configuration page are the program's settings: keys, bounds, defaults, meaning, names."""
    expected = settings_of_the_program()
    assert len(flags_by_key()) == 9
    written = tables(CONFIGURATION, "key", "values", "default")
    assert written == expected, "\n" + "\n".join(f"| {' | '.join(row)} |" for row in expected)


def test_examples_of_settings_are_valid(tmp_path: Path) -> None:
    """Every YAML example of the pages on settings, operations, access and limits is accepted.

    Not by ``config check``, which wants to see the files of the keys, too.
    """
    file = tmp_path / "tierstore.yaml"
    for page in (CONFIGURATION, OPERATIONS, ACCESS, LIMITS):
        for block in code_blocks(page, "yaml"):
            file.write_text(block)
            assert load_config(file, {}, {}).origins, block


def test_refusals_of_settings_are_as_shown(tmp_path: Path) -> None:
    """The wrong example, and only it, is refused word for word as the page shows."""
    (wrong,) = re.findall(r"^```yaml wrong\n(.*?)^```$", CONFIGURATION.read_text(), re.MULTILINE | re.DOTALL)
    (shown,) = code_blocks(CONFIGURATION, "text")
    (tmp_path / "tierstore.yaml").write_text(wrong)
    assert tierstore("config", "check", "--config", "tierstore.yaml", folder=tmp_path) == shown


# Metrics and logs


def metrics_of_the_program(server: ServerProcess) -> dict[str, set[str]]:
    """The labels of every metric, by the name that it is scraped with."""
    found = {}
    for metric in vars(telemetry).values():
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            suffix = "_total" if family.type == "counter" else ""
            found[family.name + suffix] = set(metric._labelnames)
    for family in scrape(server):
        for sample in family.samples:
            name = (
                re.sub(r"_(bucket|sum|count|created)$", "", sample.name) if family.type == "histogram" else sample.name
            )
            found.setdefault(name, set()).update(set(sample.labels) - {"le"})
    return found


def scrape(server: ServerProcess) -> list[Any]:
    """The metric families that the server shows."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as response:
        return list(text_string_to_metric_families(response.read().decode()))


def test_every_metric_is_described(server: ServerProcess) -> None:
    """The table of metrics has each metric of the program and of a live scrape, with its labels, and no other."""
    documented = {quoted(row[0])[0]: set(quoted(row[1])) for row in tables(OPERATIONS, "metric", "labels")}
    assert documented == metrics_of_the_program(server)


def test_values_of_labels_are_described(server: ServerProcess) -> None:
    """Every value of a label that a live scrape shows, numbers and versions apart, is named by the page."""
    request(f"{server.url}/v1/objects/labels/_/large", "PUT", bytes(MIB + 1))
    named = set(quoted(OPERATIONS.read_text()))
    for family in scrape(server):
        for sample in family.samples:
            for label, value in sample.labels.items():
                if label not in {"le", "status", "version", "python"}:
                    assert value in named, f"{sample.name}: {label} {value}"


def request(url: str, method: str, payload: bytes | None = None) -> int:
    """The status that a request is answered with."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, payload, method=method), timeout=10) as response:
            response.read()
            return int(response.status)
    except urllib.error.HTTPError as answered:
        with answered:
            return answered.code


def test_the_fields_of_the_request_log_are_described(server: ServerProcess) -> None:
    """The table of fields has what the lines of requests have, and nothing else."""
    url = f"{server.url}/v1/objects/logs/_/object"
    assert [request(url, "PUT", b"x"), request(url, "GET"), request(f"{url}s", "GET")] == [200, 200, 404]
    unknown = UploadId(Revision(ObjectId("logs", (), "object"), SystemIds().upload_uuid()), "").encode()
    complete = f"{server.url}/v1/objects:multipart:complete/logs/_/object?upload_id={unknown}"
    assert request(complete, "POST", b'{"parts": [{"part_number": 1, "etag": "none"}]}') == 200
    logged = {field for line in server.logs("request") for field in line}
    logged |= {"kid", "passed_over"}  # of callers with credentials, whom this server does not ask for any
    assert {name for row in tables(OPERATIONS, "field", "meaning") for name in quoted(row[0])} == logged


def test_described_events_exist() -> None:
    """Every event that the page explains is logged somewhere in the program."""
    source = "\n".join(file.read_text() for file in (ROOT / "src").rglob("*.py"))
    for event, *_ in tables(OPERATIONS, "event", "level"):
        assert f'"{quoted(event)[0]}"' in source, event


# Errors and limits


def test_every_status_is_described() -> None:
    """The table of errors has every status of the program, with the pause that it asks for."""
    described = {int(row[0]): row[-1] for row in tables(HTTP_API, "status", "when", "retry?")}
    assert set(described) == set(STATUS_BY_ERROR.values()) - {STATUS_DISCONNECTED}
    for kind in (errors.Busy, errors.Unavailable, errors.StorageFull, errors.InvalidRequest, errors.Forbidden):
        status, headers, _ = error_response(kind("why"), "id")
        assert described[status].encode() == dict(headers).get(b"retry-after", b""), status


def test_limits_are_as_shown() -> None:
    """The table of limits shows those of the program."""
    limits = Limits()
    shown = {row[0]: row[1] for row in tables(HTTP_API, "what", "at most", "beyond")}
    expected = {
        "object": format_size(limits.object_bytes_max),
        "key": format_size(limits.key_bytes_max),
        "scopes": f"{limits.scopes_max}",
        "a scope's name, or value": f"{limits.scope_bytes_max} ",
        "metadata of an object": format_size(limits.metadata_bytes_max),
        "custom metadata of an object": f"{limits.custom_metadata_max} ",
        "all headers": f"{format_size(limits.header_bytes_max)}, and {limits.headers_max} of them",
        "address, query included": format_size(limits.target_bytes_max),
        "time for one write": "6h",
        "silence while a body is sent or read": f"{limits.client_stall_seconds_max:g} ",
        "slowness of a body after that, on average": f"{format_size(limits.body_bytes_per_second_min)} ",
        "requests waiting on a connection for the answer to an earlier one": f"{limits.pipelined_requests_max}",
        "operations of a batch": f"{limits.batch_operations_max:,}",
        "object of a batch": format_size(limits.batch_part_bytes_max),
        "body of a batch": format_size(limits.batch_bytes_max),
        "headers of a part of a batch": format_size(limits.header_bytes_max),
        "batches under way in a worker": f"{limits.batches_max}, ",
        "requests at work in a worker, those that wait for their clients not counted": f"{Http().max_requests}, ",
        "connections of a worker": f"{limits.connections_max:,}, ",
        "what a worker keeps for clients: of bodies that have not all come, of answers not taken": format_size(
            limits.client_bytes_max
        ),
    }
    assert shown.keys() == expected.keys()
    for what, limit in expected.items():
        assert shown[what].startswith(limit), what


# Recipes


def test_a_backup_of_a_running_server_is_whole(tmp_path: Path) -> None:
    """The live backup, taken while objects are replaced and deleted, has every blob that its rows point to."""
    backup, check = code_blocks(OPERATIONS, "python")
    stop = threading.Event()
    with ServerProcess(tmp_path / "data") as server:
        objects = f"{server.url}/v1/objects/backup/_"
        assert request(f"{objects}/steady", "PUT", b"s" * (2 * MIB)) == 200

        def churn(writer: int) -> None:
            number = 0
            while not stop.is_set():
                number += 1
                large = bytes([number % 256]) * (MIB + KIB)
                assert request(f"{objects}/{writer}-{number % 3}", "PUT", large) == 200
                if number % 5 == 0:
                    assert request(f"{objects}/{writer}-{number % 3}", "DELETE") == 204

        writers = [threading.Thread(target=churn, args=(writer,)) for writer in range(3)]
        for writer in writers:
            writer.start()
        try:
            for number in range(4):
                ran = run_python(backup, str(tmp_path / "data"), str(tmp_path / f"backup-{number}"))
                assert ran == ""
        finally:
            stop.set()
            for writer in writers:
                writer.join()
    for number in range(4):
        found = run_python(check, str(tmp_path / f"backup-{number}"))
        assert "missing blobs: 0\n" in found, found
        assert "missing parts: 0\n" in found, found
        assert "blobs that nothing names: 0\n" in found, found
    with ServerProcess(tmp_path / "backup-3") as restored:
        assert request(f"{restored.url}/v1/objects/backup/_/steady", "GET") == 200


def test_a_check_of_a_backup_finds_what_is_missing(tmp_path: Path) -> None:
    """Of an object that was made by a multipart upload the blob and each part are missed, and a part cut short."""
    _, check = code_blocks(OPERATIONS, "python")
    with ServerProcess(tmp_path) as server:
        assert request(f"{server.url}/v1/objects/backup/_/whole", "PUT", bytes(2 * MIB)) == 200
        multipart, place = f"{server.url}/v1/objects:multipart", "backup/_/in-parts"
        query = f"?upload_id={answer(f'{multipart}/{place}', 'PUT')['upload_id']}"
        parts = []
        for number in (2, 7):
            part = answer(f"{multipart}:parts/{place}{query}&part_number={number}", "PUT", b"x" * number)
            parts.append({"part_number": number, "etag": part["etag"]})
        answer(f"{multipart}:complete/{place}{query}", "POST", json.dumps({"parts": parts}).encode())
    whole = run_python(check, str(tmp_path))
    assert "missing blobs: 0\nmissing parts: 0\nblobs that nothing names: 0\n" in whole
    (first, second) = sorted((tmp_path / "long-term" / "blobs").glob("*/*.parts/*.part"))
    second.write_bytes(second.read_bytes()[:-1])
    assert "missing parts: 1\n" in run_python(check, str(tmp_path))
    first.unlink()
    assert "missing blobs: 0\nmissing parts: 2\n" in run_python(check, str(tmp_path))
    (blob,) = first.parent.parent.glob(f"{first.parent.stem}.blob")
    blob.unlink()
    assert "missing blobs: 1\nmissing parts: 0\n" in run_python(check, str(tmp_path))


def test_the_uuid_of_an_upload_id_is_found() -> None:
    """The command of the operations page prints the UUID of any upload id that a client may hold."""
    (command,) = re.findall(r"^ +(python3 -c .*)$", OPERATIONS.read_text(), re.MULTILINE)
    for store_id in ("", "a", "ab", "abc"):
        revision = Revision(ObjectId("logs", (), "object"), SystemIds().upload_uuid())
        ran = subprocess.run(
            [
                "sh",
                "-c",
                command.replace("python3", sys.executable).replace("UPLOAD_ID", UploadId(revision, store_id).encode()),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (ran.stdout, ran.stderr) == (f"{revision.uuid}\n", "")


def answer(url: str, method: str, payload: bytes = b"") -> Any:
    """The JSON that a request is answered with."""
    with urllib.request.urlopen(urllib.request.Request(url, payload, method=method), timeout=10) as response:
        return json.loads(response.read())


def run_python(code: str, *arguments: str) -> str:
    """What a script prints, errors included."""
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    return ended.stdout + ended.stderr
