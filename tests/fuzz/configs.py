"""Fuzzers of the configuration: files, and the environment.

Whatever is in them, the answer is a configuration, or a `ConfigError` that says what is wrong; and what a configuration
renders to is read as the same one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.fuzz.fuzzers import Fuzzer, parsed
from tests.fuzz.mutations import any_text, damaged, long_winded
from tierstore.config_loading import ENVIRONMENT_PREFIX, load_config
from tierstore.errors import ConfigError

_SECONDS_MAX = 5.0
"""The YAML library is slow on flow sequences in each other, up to the depth at which it gives up."""
_VALUES: Mapping[str, Sequence[object]] = {
    "data.path": ["./data", "~/x", "~nobody-such/x", "a: b", "'", "# no comment", "größe", "-", "null", "1", "true"],
    "high_volume.path": ["a", "./data/high-volume.sqlite3"],
    "high_volume.readers": [1, 64, 0, 65, 1.0, "2", True],
    "high_volume.type": ["sqlite", "postgres"],
    "long_term.path": ["a", "b"],
    "long_term.reserve": [0, "64 MiB", "1.5 KiB", "1 TiB", "-1", "1e3", 1e3],
    "http.host": ["0.0.0.0", "::", "localhost"],
    "http.port": [0, 8888, 65535, 65536, "80", 10**30],
    "http.keep_alive": ["75s", 75, 75.5, "1h 1s", "0s", "inf", ".inf", ".nan"],
    "auth.enforce": [True, False, "yes", "no", 1, None],
    "tiering.inline_max": [65536, "1 MiB", "16 MiB", "17 MiB", "1KiB", "1024"],
    "tiering.object_max": ["1 KiB", "5 TiB", 5 * 2**40],
    "sweeper.period": ["60s", 1, 86400, "1d", "1week"],
    "uploads.part_min": [0, "5 MiB", "5 GiB"],
    "admission.killswitches": ["[{usecase: abc}]", "[{scopes: {org: 17}, service: 'a*'}]", "[{}]", "{}", "[{a: 1}]"],
    "usecases.policies": ["{abc: {ttl_max: 1d}}", "{'*': {expirations: [ttl]}}", "{abc: {ttl_max: x}}", "{1: {}}"],
    "throughput.rate": [0, 1, 10**9, -1, 0.5],
    "throughput.rules": ["[{usecase: abc, rate: 1}]", "[{service: x, percent: 5}]", "[{rate: .inf}]", "[[]]"],
    "bandwidth.rate": [0, "1 MB", "-1"],
    "backpressure.queue_wait": [0, "5s", "2h"],
    "log.level": ["info", "debug", "INFO", "trace"],
    "log.format": ["json", "console", "auto", ""],
    "nothing.such": [1],
    "http.prot": [1],
}  # fmt: skip
_SETTINGS = st.sampled_from([(key, value) for key, among in _VALUES.items() for value in among])


def _written(settings: list[tuple[str, object]]) -> bytes:
    lines = []
    for key, value in settings:
        section, name = key.split(".")
        lines.append(f"{section}: {{{name}: {'null' if value is None else value}}}")
    return "\n".join(lines).encode()


def _law(case: tuple[bytes | None, dict[str, str]]) -> None:
    content, environment = case
    with TemporaryDirectory(prefix="tierstore-fuzz-") as directory:
        file = None
        if content is not None:
            file = Path(directory, "config.yaml")
            file.write_bytes(content)
        loaded = parsed(lambda: load_config(file, environment, {}), ConfigError, _SECONDS_MAX)
        if loaded is not None:
            again = Path(directory, "again.yaml")
            again.write_text(loaded.render(), encoding="utf-8")
            assert load_config(again, {}, {}).config == loaded.config


def _environments() -> SearchStrategy[dict[str, str]]:
    names = st.sampled_from([f"{ENVIRONMENT_PREFIX}{key.upper().replace('.', '__')}" for key in _VALUES]) | any_text(20)
    texts = st.sampled_from(
        ["1", "a", "60s", "1 MiB", "true", "[", "{", "&a", "*a", "!!python/object:os.system x", "\x00", ""]
    )
    return st.dictionaries(names, texts | any_text(10), max_size=3)


_FILES = st.lists(_SETTINGS, max_size=5, unique_by=lambda setting: setting[0].split(".")[0]).map(_written)
_YAML = st.sampled_from([
    b"http: &a {port: 1}\nlog: *a\n", b"a: &a [*a]\n", b"!!python/object/apply:os.system [x]\n", b"? [a]\n: b\n",
    b"--- 1\n--- 2\n",
    b"http: {port: 0x1F, port: 1}\n", b"http:\n\tport: 1\n", b"%YAML 9.9\n---\n", b"<<: {http: {port: 1}}\n",
    b"2001-01-01: 1\n",
    b"http: {port: !!binary x}\n", b"http: {port: 1:30}\n", b"\xff\xfeh\x00", b"'", b"a: |\n", b"http: !!set {a}\n",
    b"[]: 1\n",
    b"http: {host: !!timestamp 2001-99-99}\n", b"http: {port: !!int x}\n", b"http: {port: !!float x}\n",
    b"http: !!omap [a]\n",
    b"http: {keep_alive: 190:20:30.15}\n", b"http: {port: " + b"9" * 5000 + b"}\n", b"http: {port: 0b}\n",
    b"http: {port: !!int ''}\n",
])  # fmt: skip
_LONG = long_winded("[", "{a: ", "- ", "a", ": ", "\n", " ", "'", "? ", "&a ", "!", "1", length=600).map(
    lambda long: long.text.encode()
)

FUZZERS = (
    Fuzzer("config files", st.tuples(_FILES | damaged(_FILES | _YAML) | st.binary(max_size=40), st.just({})), _law),
    Fuzzer("config, strange YAML", st.tuples(_YAML | _LONG, st.just({})), _law, 0.5),
    Fuzzer("config, environment", st.tuples(st.none() | _FILES, _environments()), _law),
)
