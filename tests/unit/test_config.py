"""Laws of `tierstore.config` and of the sizes it reads."""

import json
import os
import pickle
import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tierstore.admission.conditions import Condition
from tierstore.admission.rate_limits import Bandwidth, Rate
from tierstore.admission.rules import Rules
from tierstore.admission.usecases import UsecasePolicy
from tierstore.config import (
    BigtableChangeLog,
    Config,
    Http,
    PostgresChangeLog,
    SqliteChangeLog,
    Sweeper,
    Tiering,
    Uploads,
    limits_from,
    rules_from,
)
from tierstore.config_loading import Setting, config_schema, load_config
from tierstore.errors import ConfigError, InvalidRequest
from tierstore.limits import KIB, MIB, TIB, Limits
from tierstore.types.ids import Scope
from tierstore.types.sizes import format_size, parse_size


def _load(text: str = "", tmp_path: Path | None = None, **environment: str) -> Config:
    file = None
    if tmp_path is not None:
        file = tmp_path / "tierstore.yaml"
        file.write_text(text)
    return load_config(file, environment, {}).config


def _problem(text: str, tmp_path: Path) -> str:
    with pytest.raises(ConfigError) as raised:
        _load(text, tmp_path)
    return str(raised.value).replace(str(tmp_path), "DIR")


def _refused(environment: dict[str, str], flags: dict[str, Setting]) -> str | None:
    try:
        load_config(None, environment, flags)
    except ConfigError as error:
        return str(error)
    return None


def test_defaults() -> None:
    """With nothing given, the server is for this machine alone, refuses strangers, and keeps its data in one place."""
    config = load_config(None, {}, {}).config
    assert (config.http.host, config.http.port, config.http.workers) == ("127.0.0.1", 8888, 1)
    assert config.auth.enforce
    assert config.data.path == "./data"
    assert config.high_volume_path == Path("data/high-volume.sqlite3")
    assert config.change_log_path == Path("data/change-log.sqlite3")
    assert config.long_term_path == Path("data/long-term")
    assert (config.tiering.inline_max, config.tiering.object_max) == (MIB, 5 * TIB)
    assert (config.sweeper.period, config.sweeper.grace, config.sweeper.second_visit) == (60, 6 * 3600, 300)
    assert config == Config()


def test_later_origins_are_stronger(tmp_path: Path) -> None:
    """File, then environment, then flags; each key remembers where its value came from."""
    file = tmp_path / "tierstore.yaml"
    file.write_text("http: {host: file, port: 1, workers: 2}\ndata: {path: /from/file}\n")
    environment = {"TIERSTORE__HTTP__PORT": "3", "TIERSTORE__HTTP__WORKERS": "4", "UNRELATED__HTTP__PORT": "x"}
    flags = {"http.workers": Setting(5, "flag --workers")}
    loaded = load_config(file, environment, flags)
    assert (loaded.config.http.host, loaded.config.http.port, loaded.config.http.workers) == ("file", 3, 5)
    assert loaded.config.long_term_path == Path("/from/file/long-term")
    assert loaded.origins == {
        "http.host": f"file {file}",
        "http.port": "environment TIERSTORE__HTTP__PORT",
        "http.workers": "flag --workers",
        "data.path": f"file {file}",
    }


def test_the_environment_is_read_as_yaml_but_text_as_it_is() -> None:
    """Numbers, truth, sizes and durations are parsed; a text setting is not, whatever it looks like."""
    config = _load(
        TIERSTORE__AUTH__ENFORCE="false",
        TIERSTORE__SWEEPER__PERIOD="1.5",
        TIERSTORE__SWEEPER__GRACE="1d 2h",
        TIERSTORE__TIERING__INLINE_MAX="64 KiB",
        TIERSTORE__DATA__PATH="2024",
        TIERSTORE__HIGH_VOLUME__PATH="yes",
    )
    assert not config.auth.enforce
    assert (config.sweeper.period, config.sweeper.grace) == (1.5, 26 * 3600)
    assert config.tiering.inline_max == 64 * KIB
    assert config.data.path == "2024"
    assert config.high_volume_path == Path("yes")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("http: {port: 99999}", "http.port (file DIR/tierstore.yaml): 99999 is not a whole number from 0 to 65535"),
        ("http: {port: '1'}", "http.port (file DIR/tierstore.yaml): 1 is not a whole number from 0 to 65535"),
        ("http: {port: true}", "http.port (file DIR/tierstore.yaml): True is not a whole number from 0 to 65535"),
        (
            "http: {prot: 1}",
            "http.prot (file DIR/tierstore.yaml): there is no such setting; did you mean http.port?",
        ),
        ("htpp: {port: 1}", "htpp (file DIR/tierstore.yaml): there is no such section; did you mean http?"),
        ("http: 8888", "http (file DIR/tierstore.yaml): a section is a mapping of keys to values"),
        (
            "log: {level: inof}",
            (
                "log.level (file DIR/tierstore.yaml): inof is not one of debug, info, warning, error, critical; "
                "did you mean info?"
            ),
        ),
        ("auth: {enforce: 1}", "auth.enforce (file DIR/tierstore.yaml): 1 is not true or false"),
        (
            "tiering: {inline_max: 32 MiB}",
            (
                "tiering.inline_max (file DIR/tierstore.yaml): 32 MiB is not a size from 1 KiB to 16 MiB, "
                "such as 65536 or 64 KiB"
            ),
        ),
        (
            "sweeper: {period: soon}",
            (
                "sweeper.period (file DIR/tierstore.yaml): soon is not a duration from 1s to 1d, "
                "in seconds or such as 90s or 5m"
            ),
        ),
        (
            "sweeper: {period: .nan}",
            (
                "sweeper.period (file DIR/tierstore.yaml): nan is not a duration from 1s to 1d, "
                "in seconds or such as 90s or 5m"
            ),
        ),
        (
            'data: {path: "a\\n"}',
            (
                "data.path (file DIR/tierstore.yaml): 'a\\n' is not text of 1 to 4096 characters "
                "without control characters"
            ),
        ),
        (
            "high_volume: {type: oracle}",
            "high_volume.type (file DIR/tierstore.yaml): oracle is not one of sqlite, postgres, bigtable",
        ),
        (
            "tiering: {object_max: 2 KiB}",
            "tiering.inline_max: 1 MiB is more than tiering.object_max, 2 KiB",
        ),
        (
            "tiering: {object_max: 4 MiB}\nuploads: {part_min: 5 MiB}",
            "uploads.part_min: 5 MiB is more than tiering.object_max, 4 MiB",
        ),
        (
            "uploads: {retention: 0s}",
            (
                "uploads.retention (file DIR/tierstore.yaml): 0s is not a duration from 1s to 365d, "
                "in seconds or such as 90s or 5m"
            ),
        ),
        (
            "high_volume: {path: /one/place}\nchange_log: {path: /one/other/../place}",
            "change_log.path: /one/place is already high_volume.path; each store needs a place of its own",
        ),
        (
            "http: {port: }",
            "http.port (file DIR/tierstore.yaml): is empty; give it a value, or take it out",
        ),
        (
            "data: {path: ''}",
            "data.path (file DIR/tierstore.yaml): is empty; give it a value, or take it out",
        ),
        (
            "data: {path: ~nobodyx/foo}",
            (
                "data.path (file DIR/tierstore.yaml): there is no user nobodyx whose home directory ~nobodyx could be; "
                "for a directory of that name, write ./~nobodyx/foo"
            ),
        ),
        ("- 1", "the config file DIR/tierstore.yaml: the top level is not a mapping of sections"),
        (
            "http: {port: 1, port: 2}",
            "the config file DIR/tierstore.yaml: line 1, column 17: the key port is there twice",
        ),
        ("1: {}", "the config file DIR/tierstore.yaml: line 1, column 1: the key 1 is not text"),
        (
            "http: &h {}\nauth: *h",
            "the config file DIR/tierstore.yaml: line 2, column 7: aliases are not supported here",
        ),
        (
            "http: !!python/object/apply:os.getcwd []",
            (
                "the config file DIR/tierstore.yaml: line 1, column 7: could not determine a constructor for the tag "
                "'tag:yaml.org,2002:python/object/apply:os.getcwd'"
            ),
        ),
        (f"http: {'{a: ' * 5000}", "the config file DIR/tierstore.yaml: is nested too deeply"),
    ],
)
def test_a_problem_names_the_key_the_origin_and_the_reason(tmp_path: Path, text: str, said: str) -> None:
    """Each kind of mistake in a file is one plain sentence."""
    assert _problem(text, tmp_path) == said


def test_all_problems_are_reported_at_once() -> None:
    """Whoever mends a config sees everything that is wrong with it, from every origin."""
    environment = {"TIERSTORE__HTTP__PORT": "[1]", "TIERSTORE__HTTP__HOSTS": "x", "TIERSTORE__LOG__LEVEL": ""}
    flags = {"http.workers": Setting(0, "flag --workers")}
    with pytest.raises(ConfigError) as raised:
        load_config(None, environment, flags)
    first, *problems = str(raised.value).splitlines()
    assert first == "4 settings are wrong:"
    assert [problem.split(":")[0] for problem in problems] == [
        "  http.hosts (environment TIERSTORE__HTTP__HOSTS)",
        "  http.port (environment TIERSTORE__HTTP__PORT)",
        "  log.level (environment TIERSTORE__LOG__LEVEL)",
        "  http.workers (flag --workers)",
    ]


def test_a_file_that_is_no_config_is_refused(tmp_path: Path) -> None:
    """Too large, not text, absent, a directory: a sentence each, and no more is read than the bound."""
    file = tmp_path / "tierstore.yaml"
    file.write_bytes(b"#" * (Limits().config_bytes_max + 1))
    with pytest.raises(ConfigError, match="is larger than 1 MiB"):
        load_config(file, {}, {})
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="the config file"):
        load_config(file, {}, {})
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError, match="cannot be read"):
            load_config(path, {}, {})


@pytest.mark.timeout(10)
def test_a_file_that_is_not_regular_is_refused(tmp_path: Path) -> None:
    """A pipe, a device, a directory: refused without waiting for what may never come."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero"), tmp_path):
        with pytest.raises(ConfigError) as raised:
            load_config(path, {}, {})
        assert str(raised.value) == f"the config file {path} cannot be read: it is not a regular file"


@pytest.mark.parametrize("variable", ["HTTP__PORT", "DATA__PATH", "LOG__LEVEL", "AUTH__ENFORCE", "SWEEPER__PERIOD"])
def test_an_empty_variable_is_said_to_be_empty(variable: str) -> None:
    """A variable that is set to nothing is not taken for one that is not set, nor for a strange value."""
    name = f"TIERSTORE__{variable}"
    key = variable.lower().replace("__", ".")
    said = f"{key} (environment {name}): is empty; give it a value, or take it out"
    assert _refused({name: ""}, {}) == said


def test_empty_sections_and_files_change_nothing(tmp_path: Path) -> None:
    """An empty file, and a section without keys, leave the defaults."""
    assert _load("", tmp_path) == Config()
    assert _load("http:\nlog: {}\n", tmp_path) == Config()


@given(st.text(max_size=60))
def test_any_environment_value_is_read_or_explained(value: str) -> None:
    """Whatever a variable holds, the outcome is a config or a `ConfigError`."""
    for key in ("HTTP__PORT", "TIERING__INLINE_MAX", "SWEEPER__PERIOD", "DATA__PATH", "LOG__LEVEL", "AUTH__ENFORCE"):
        refused = _refused({f"TIERSTORE__{key}": value}, {})
        assert refused is None or key.lower().replace("__", ".") in refused


@given(
    st.integers() | st.floats() | st.booleans() | st.none() | st.text() | st.lists(st.integers()) | st.just(16**9000)
)
def test_any_value_is_accepted_or_explained(value: object) -> None:
    """Whatever a file holds for a key, the outcome is a config or a `ConfigError` that names it."""
    for key in ("http.port", "tiering.inline_max", "sweeper.period", "data.path", "log.level", "auth.enforce"):
        refused = _refused({}, {key: Setting(value, "file x")})
        assert refused is None or refused.startswith(f"{key} (file x): ")


@given(
    port=st.integers(0, 65535),
    grace=st.integers(0, 86_400) | st.floats(0, 86_400),
    inline_max=st.integers(KIB, 16 * MIB),
    path=st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1).filter(lambda text: text[0] != "~"),
)
def test_what_is_shown_can_be_read_again(
    tmp_path_factory: pytest.TempPathFactory, port: int, grace: float, inline_max: int, path: str
) -> None:
    """The rendered settings, with their comments, load as the same config."""
    flags = {
        "http.port": port,
        "http.shutdown_grace": grace,
        "tiering.inline_max": inline_max,
        "data.path": path,
        "auth.enforce": False,
    }
    loaded = load_config(None, {}, {key: Setting(value, "a flag") for key, value in flags.items()})
    file = tmp_path_factory.getbasetemp() / "shown.yaml"
    file.write_text(loaded.render())
    assert load_config(file, {}, {}).config == loaded.config


def test_a_home_directory_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    """``~`` in a path means what it means in a shell, which does not expand it in a file."""
    monkeypatch.setenv("HOME", "/somewhere")
    assert _load(TIERSTORE__DATA__PATH="~/objects").long_term_path == Path("/somewhere/objects/long-term")
    assert _load(TIERSTORE__DATA__PATH="./~nobodyx").data.path == "./~nobodyx"


def test_limits_follow_the_config() -> None:
    """What the config bounds is what the service enforces; the rest stays."""
    assert limits_from(Config()) == Limits()
    config = Config(
        tiering=Tiering(inline_max=2 * KIB, object_max=3 * MIB),
        sweeper=Sweeper(grace=7.0, second_visit=8.0),
        uploads=Uploads(retention=9.0, outcome_retention=10.0, part_min=KIB),
    )
    assert limits_from(config) == Limits(
        inline_bytes_max=2 * KIB,
        object_bytes_max=3 * MIB,
        entry_grace_seconds=7.0,
        sweep_second_visit_seconds=8.0,
        upload_retention_seconds=9.0,
        outcome_retention_seconds=10.0,
        part_bytes_min=KIB,
    )


def test_stores_of_any_kind_go_together(tmp_path: Path) -> None:
    """Three lines say which stores there are; a change log on the engine of the rows takes over where that is."""
    for high_volume in ("{type: postgres, url: postgresql://db.example/objects}", "{type: sqlite}"):
        for long_term in ("{type: s3, bucket: blobs}", "{type: gcs, bucket: blobs}", "{type: filesystem}"):
            text = f"high_volume: {high_volume}\nlong_term: {long_term}\n"
            assert _load(text, tmp_path).change_log_settings == SqliteChangeLog()
    config = _load("high_volume: {type: postgres, url: postgresql://db/x}\nchange_log: {type: postgres}\n", tmp_path)
    assert config.change_log_settings == PostgresChangeLog(url="postgresql://db/x")
    assert config.store_path("high_volume") is None
    config = _load(
        "high_volume: {type: bigtable, project: p, instance: i}\nchange_log: {type: bigtable, instance: j}\n", tmp_path
    )
    assert config.change_log_settings == BigtableChangeLog(project="p", instance="j")


def test_settings_of_stores_belong_to_their_kind(tmp_path: Path) -> None:
    """A setting of another kind of store is refused, and one that the kind needs is asked for."""
    problem = _problem("high_volume: {type: postgres, path: /x}\nlong_term: {bucket: b, threads: 4}\n", tmp_path)
    assert problem == (
        "3 settings are wrong:\n"
        "  high_volume.path (file DIR/tierstore.yaml): is for high_volume.type sqlite, and that is postgres\n"
        "  high_volume.url: is missing; high_volume.type postgres needs it\n"
        "  long_term.bucket (file DIR/tierstore.yaml): is for long_term.type s3 or gcs, and that is filesystem"
    )
    assert "change_log.url: is missing" in _problem("change_log: {type: postgres}\n", tmp_path)
    bigtable = _problem("change_log: {type: bigtable, instance: i}\n", tmp_path)
    assert bigtable == "change_log.project: is missing; it is that of high_volume only if both are of one type"
    assert "long_term.prefix" in _problem("long_term: {type: s3, bucket: b, prefix: /a}\n", tmp_path)


def test_passwords_of_stores_are_not_shown(tmp_path: Path) -> None:
    """Settings are shown without the passwords in them, also in addresses that are badly written, and so are problems
    with them.
    """
    for url in (
        "postgresql://u:hidden@h/d",
        "postgresql://u@h/d?password=hidden&sslmode=require",
        "postgresql://u@h/d?sslpassword=hidden",
        "postgresql://u:a/hidden@h/d",
        "postgresql://u:a@hidden@h/d",
        "postgresql://u:a hidden@h/d",
        "postgresql://u@d:hidden@h/d",
    ):
        loaded = load_config(None, {"TIERSTORE__HIGH_VOLUME__TYPE": "postgres", "TIERSTORE__HIGH_VOLUME__URL": url}, {})
        assert "hidden" not in loaded.render()
        assert "***" in loaded.render()
        assert "hidden" not in _problem(f'high_volume: {{type: postgres, url: "{url}\\n"}}', tmp_path)
    for url in ("postgres//u:hidden@h/d", "u:hidden@h/d", "mysql://u:hidden@h/d", "host=h password=hidden"):
        assert _problem(f"high_volume: {{type: postgres, url: '{url}'}}", tmp_path) == (
            "high_volume.url (file DIR/tierstore.yaml): is not an address such as postgresql://user@host:5432/name"
        )


def test_a_setting_that_several_kinds_have_is_one() -> None:
    """What kinds of one store share in name is the same setting: one type, one range, one meaning of its text."""
    for section in msgspec.structs.fields(Config):
        seen: dict[str, object] = {}
        for kind in get_args(section.type):
            for field in msgspec.structs.fields(kind):
                plain = get_args(field.type)[0]
                extra = next((part.extra for part in get_args(field.type) if isinstance(part, msgspec.Meta)), None)
                assert seen.setdefault(field.name, (plain, extra)) == (plain, extra), f"{section.name}.{field.name}"


def test_a_config_survives_pickling() -> None:
    """Worker processes get the config they are started with."""
    config = Config(http=Http(port=1))
    assert pickle.loads(pickle.dumps(config)) == config


def test_the_schema_describes_every_setting() -> None:
    """The JSON Schema knows the keys that are shown, closes its objects, and allows sizes and durations as text."""
    schema = json.loads(json.dumps(config_schema()))
    rendered = load_config(None, {}, {}).render().replace("# path: ", "path: ")
    shown = yaml.safe_load(re.sub(r"# (\w+):  # none", r"\1: none", rendered))
    sections = schema["$defs"]["Config"]["properties"]
    assert list(sections) == list(shown)
    for name, reference in sections.items():
        kinds = [schema["$defs"][kind["$ref"].rpartition("/")[2]] for kind in reference.get("anyOf", [reference])]
        assert list(kinds[0]["properties"]) == list(shown[name])
        assert kinds[0]["required"] == []
        assert all(kind["additionalProperties"] is False for kind in kinds)
        assert all("type" in kind["required"] for kind in kinds[1:])
    inline_max = schema["$defs"]["Tiering"]["properties"]["inline_max"]
    assert {choice["type"] for choice in inline_max["anyOf"]} == {"integer", "string"}


def test_shown_settings_leave_the_stores_below_the_data(tmp_path: Path) -> None:
    """A file made of what ``config show`` prints does not pin the stores: another ``data.path`` moves them."""
    file = tmp_path / "tierstore.yaml"
    file.write_text(load_config(None, {}, {}).render())
    moved = load_config(file, {}, {"data.path": Setting("/elsewhere", "flag --data")}).config
    assert moved.long_term_path == Path("/elsewhere/long-term")
    assert moved.high_volume_path == Path("/elsewhere/high-volume.sqlite3")


@given(st.integers(0, 10**18))
def test_a_written_size_is_read_back(size: int) -> None:
    """`parse_size` of `format_size` is the same number of bytes."""
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1 KiB", 1024),
        ("1.5mib", 3 * MIB // 2),
        ("10 MB", 10**7),
        ("7B", 7),
        (" 2 TiB ", 2 * TIB),
    ],
)
def test_sizes_are_read_with_their_units(text: str, size: int) -> None:
    """Powers of 1024 with an i, of 1000 without, in any case, fractions where they make whole bytes."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "K", "1 K", "1 XiB", "-1", "1e3", "0.5", "1.0001 KiB", "1 KiB 2", "٣"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """Unknown units, signs, parts of a byte."""
    with pytest.raises(InvalidRequest):
        parse_size(text)


# Rules on requests


_RULES = """
admission:
  killswitches: [{usecase: attachments, scopes: {org: 17}}, {service: "relay*"}]
usecases:
  policies: {attachments: {expirations: [ttl, tti], ttl_max: 30d, tti_max: 60}, "*": {expirations: [manual]}}
throughput:
  rate: 1000
  burst: 50
  usecase_percent: 50
  scope_percent: 1
  rules: [{usecase: replays, rate: 0.5}, {service: batch, percent: 10}, {service: other, percent: 10, burst: 7}]
bandwidth: {rate: 10 MiB, scope_rate: 1 MiB, report_only: true}
backpressure: {operations: 3, queue: 4, queue_wait: 1m, bulk_percent: 25}
"""


def test_rules_on_requests_are_read(tmp_path: Path) -> None:
    """Killswitches, policies and limits arrive as they were written; a share is of the rate and of the burst."""
    config = _load(_RULES, tmp_path)
    rules = rules_from(config)
    assert rules.killswitches.conditions == (
        Condition(usecase="attachments", scopes=(Scope("org", "17"),)),
        Condition(service="relay*"),
    )
    assert rules.policies.by_usecase == {
        "attachments": UsecasePolicy(expirations=("ttl", "tti"), ttl_seconds_max=30 * 86_400, tti_seconds_max=60)
    }
    assert rules.policies.of_others == UsecasePolicy(expirations=("manual",))
    throughput = rules.throughput
    assert throughput.all_requests == Rate(per_second=1000, burst=50)
    assert throughput.each_usecase == Rate(per_second=500, burst=25)
    assert throughput.each_scope == Rate(per_second=10, burst=1)
    assert [rule.rate for rule in throughput.rules] == [
        Rate(per_second=0.5, burst=1),
        Rate(per_second=100, burst=5),
        Rate(per_second=100, burst=7),
    ]
    assert not throughput.report_only
    assert rules.bandwidth == Bandwidth(all_bytes=10 * MIB, each_scope=MIB, report_only=True)
    limits = limits_from(config)
    assert (limits.operations_max, limits.operations_queue_max) == (3, 4)
    assert (limits.operation_wait_seconds_max, limits.operations_bulk_percent) == (60, 25)


def test_by_default_no_request_is_stopped_or_limited() -> None:
    """An operator who sets nothing has no rules."""
    assert rules_from(Config()) == Rules()


def test_rules_are_read_again_as_they_were(tmp_path: Path) -> None:
    """What is shown of lists and mappings is read back as the same, from a file and from the environment."""
    (tmp_path / "one.yaml").write_text(_RULES)
    loaded = load_config(tmp_path / "one.yaml", {}, {})
    (tmp_path / "again.yaml").write_text(loaded.render())
    assert load_config(tmp_path / "again.yaml", {}, {}).config == loaded.config
    assert pickle.loads(pickle.dumps(loaded.config)) == loaded.config
    sections = yaml.safe_load(_RULES)
    environment = {
        f"TIERSTORE__{section}__{name}".upper(): json.dumps(value)
        for section, settings in sections.items()
        for name, value in settings.items()
        if not isinstance(value, str)
    }
    config = load_config(None, environment, {}).config
    assert rules_from(config).killswitches == rules_from(loaded.config).killswitches
    assert rules_from(config).throughput == rules_from(loaded.config).throughput
    assert rules_from(config).policies == rules_from(loaded.config).policies


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("admission: {killswitches: [{}]}", "admission.killswitches: number 1: a condition has a usecase, scopes or"),
        ("admission: {killswitches: [{usecase: a}]}", "admission.killswitches: number 1: a usecase has 3 to 64"),
        ("admission: {killswitches: [{usecases: abc}]}", "unknown field `usecases` - at `$[0]`"),
        ("admission: {killswitches: {usecase: abc}}", "is not a list of {usecase: …, scopes: {…}, service: …}"),
        ("admission: {killswitches: [{scopes: {org: ''}}]}", "admission.killswitches"),
        ("admission: {killswitches: [{scopes: {org: a b}}]}", "admission.killswitches: number 1: scope names"),
        (
            f"admission: {{killswitches: [{'{usecase: abc}, ' * 257}]}}",
            "admission.killswitches: there are more than 256",
        ),
        ("throughput: {scope_percent: 10}", "throughput.scope_percent: needs throughput.rate, which is not set"),
        ("throughput: {burst: 10}", "throughput.burst: needs throughput.rate, which is not set"),
        ("throughput: {rules: [{usecase: abc}]}", "throughput.rules: number 1: a rule has either a rate or a percent"),
        ("throughput: {rules: [{usecase: abc, rate: 1, percent: 1}]}", "number 1: a rule has either a rate or"),
        ("throughput: {rules: [{usecase: abc, percent: 1}]}", "a share of throughput.rate, which is not set"),
        ("throughput: {rules: [{usecase: abc, rate: 0}]}", "throughput.rules"),
        ("throughput: {rules: [{usecase: abc, rate: .nan}]}", "throughput.rules"),
        ("throughput: {rate: 1, rules: [{usecase: abc, percent: .nan}]}", "throughput.rules"),
        ("throughput: {rate: 1, rules: [{usecase: abc, percent: 1.0e-9}]}", "throughput.rules"),
        ("throughput: {rules: [{usecase: abc, rate: .inf}]}", "throughput.rules"),
        ("throughput: {rules: [{usecase: abc, rate: 1.0e-9}]}", "throughput.rules"),
        ("admission: {killswitches: [{scopes: {org: 017}}]}", "column 43: 017 is a number to YAML, but not in the"),
        ("admission: {killswitches: [{scopes: {org: 0x1f}}]}", "0x1f is a number to YAML"),
        ("admission: {killswitches: [{scopes: {org: 1_7}}]}", "1_7 is a number to YAML"),
        ("admission: {killswitches: [{scopes: {org: 1:30}}]}", "1:30 is a number to YAML"),
        ("admission: {killswitches: [{scopes: {org: true}}]}", "admission.killswitches"),
        ("admission: {killswitches: [{scopes: {org: 1.5}}]}", "admission.killswitches"),
        ("throughput: {rules: [{rate: 1}]}", "throughput.rules: number 1: a condition has a usecase, scopes or a"),
        (f"throughput: {{rules: [{'{usecase: abc, rate: 1}, ' * 65}]}}", "throughput.rules: there are more than 64"),
        ("usecases: {policies: {a b: {}}}", "usecases.policies: a b: a usecase has 3 to 64 characters"),
        ("usecases: {policies: {abc: {ttl_max: soon}}}", "usecases.policies: abc: a duration is one or more numbers"),
        ("usecases: {policies: {abc: {ttl_max: -1}}}", "usecases.policies"),
        ("usecases: {policies: {abc: {expirations: []}}}", "usecases.policies"),
        ("usecases: {policies: {abc: {expirations: [never]}}}", "usecases.policies"),
    ],
)
def test_rules_that_cannot_hold_are_refused(text: str, said: str, tmp_path: Path) -> None:
    """A rule with a mistake in it is never taken for a wider or a narrower one: nothing is served with it."""
    assert said in _problem(text, tmp_path)
