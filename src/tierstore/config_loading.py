"""Settings as they are given: where each comes from, and what is wrong with them.

The value of a setting (`tierstore.config`) comes from, the later the stronger: its default, the YAML file, the
environment (``TIERSTORE__SECTION__NAME``, the value read as a YAML scalar), a command line flag.

Guarantees: everything is checked once, by `load_config`, before anything is opened, and every problem is reported, each
with its key, its origin and the reason. An unknown or repeated key is an error, never ignored. Reading a hostile file
is bounded: its size is limited, aliases are refused, only plain YAML types are built.
"""

import difflib
import errno
import functools
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
import yaml
from msgspec import Meta

from tierstore.admission.rate_limits import rate_of
from tierstore.config import (
    ALL_OTHERS,
    EMBEDDED_PATHS,
    BigtableChangeLog,
    Config,
    PostgresChangeLog,
    Section,
    Tls,
    rule_rate,
    without_password,
)
from tierstore.errors import ConfigError, InvalidRequest
from tierstore.limits import KILLSWITCHES_MAX, LIMIT_RULES_MAX, Limits
from tierstore.types.durations import format_duration, parse_duration
from tierstore.types.ids import parse_usecase
from tierstore.types.sizes import format_size, parse_size

ENVIRONMENT_PREFIX = "TIERSTORE__"


@dataclass(frozen=True, slots=True)
class Setting:
    """A value as it was given, and the words that say where: ``flag --port``."""

    value: object
    origin: str


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A checked configuration, and where each key that was given came from."""

    config: Config
    origins: Mapping[str, str]

    def render(self) -> str:
        """The effective settings as YAML that `load_config` reads back, each with its origin as a comment."""
        lines: list[str] = []
        for section in msgspec.structs.fields(Config):
            lines.append(f"{section.name}:")
            values = msgspec.to_builtins(getattr(self.config, section.name))
            for name, value in values.items():
                key = f"{section.name}.{name}"
                if name == "path" and not value:  # written out, it would no longer follow data.path
                    lines.append(f"  # path: {_printable(self.config.store_path(section.name))}  # below data.path")
                    continue
                if value == "":  # which is how it is left out, and nothing that can be given
                    lines.append(f"  # {name}:  # none")
                    continue
                written = _without_secrets(_one_line(name, _KEYS[key].written(value)))
                lines.append(f"  {written}  # {self.origins.get(key, 'default')}")
        return "\n".join(lines) + "\n"


def load_config(file: Path | None, environment: Mapping[str, str], flags: Mapping[str, Setting]) -> LoadedConfig:
    """Read, merge and check all settings. ``flags`` are by dotted key.

    Raises `ConfigError`, whose text has one line for each problem: the key, where it came from, and the reason.
    """
    problems: list[str] = []
    given: dict[str, Setting] = {}
    if file is not None:
        given |= _known(_read_file(file, problems), problems)
    given |= _known(_read_environment(environment, problems), problems)
    given |= _known(flags.items(), problems)
    values = {key: _KEYS[key].value(setting, problems) for key, setting in given.items()}
    problems.extend(_of_other_kinds(given, values))
    if not problems:
        config = _build(values)
        problems.extend(_contradictions(config))
        if not problems:
            return LoadedConfig(config, {key: setting.origin for key, setting in given.items()})
    if len(problems) == 1:
        raise ConfigError(problems[0])
    raise ConfigError(f"{len(problems)} settings are wrong:\n" + "\n".join(f"  {problem}" for problem in problems))


def config_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the configuration file."""
    schema = msgspec.json.schema(Config)
    by_default = {type(field.default).__name__ for field in msgspec.structs.fields(Config)}
    for title, definition in schema["$defs"].items():
        if title in by_default:  # then its type need not be given
            definition["required"] = []
        for name, described in definition["properties"].items():
            written = described.pop("written", None)
            if written is not None:
                number = {bound: described.pop(bound) for bound in ("type", "minimum", "maximum")}
                definition["properties"][name] = described | {"anyOf": [number, written]}
            elif described.get("default") == "":
                del described["default"]
    sections = schema["$defs"]["Config"]["properties"]
    for name in sections:
        sections[name].pop("default", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "tierstore", **schema}


@dataclass(frozen=True, slots=True)
class _Key:
    """One setting: how its values are read, checked, described and written."""

    name: str
    type: Any

    @property
    def _extra(self) -> dict[str, Any]:
        return next((part.extra or {} for part in get_args(self.type) if isinstance(part, Meta)), {})

    @property
    def _kind(self) -> str | None:
        return self._extra.get("kind")

    @property
    def _plain(self) -> Any:
        return get_args(self.type)[0] if get_origin(self.type) is Annotated else self.type

    @property
    def textual(self) -> bool:
        """Whether a value is text, which the environment gives as it is."""
        return self._plain is str or get_origin(self._plain) is Literal

    def value(self, setting: Setting, problems: list[str]) -> object:
        """The checked value, or None after adding to ``problems``."""
        if setting.value is None or setting.value == "":
            problems.append(f"{self.name} ({setting.origin}): is empty; give it a value, or take it out")
            return None
        try:
            value: object = msgspec.convert(self._number(setting.value), self.type)
        except (msgspec.ValidationError, InvalidRequest, ValueError) as error:
            if self._kind == "structure":  # whose value may be long, or a secret that has no business here
                problems.append(f"{self.name} ({setting.origin}): is not {self._extra['wanted']}: {error}")
                return None
            if self._kind == "url":  # which may hold a password anywhere
                problems.append(f"{self.name} ({setting.origin}): is not {self._extra['wanted']}")
                return None
            wanted = self._wanted(setting.value)
            problems.append(f"{self.name} ({setting.origin}): {_shown(setting.value)} is not {wanted}")
            return None
        if self.name.endswith(".path") or self._kind == "path":
            return self._expanded(str(value), setting.origin, problems)
        return value

    def _expanded(self, path: str, origin: str, problems: list[str]) -> str | None:
        expanded = os.path.expanduser(path)  # noqa: PTH111  # because Path would drop the ./ that people wrote
        home, _, _ = expanded.partition("/")
        if not home.startswith("~"):
            return expanded
        whose = f"user {home[1:]} whose home directory {home} could be" if home != "~" else "home directory"
        problems.append(f"{self.name} ({origin}): there is no {whose}; for a directory of that name, write ./{path}")
        return None

    def written(self, value: object) -> object:
        """``value`` as a person would write it."""
        if self._kind == "size" and isinstance(value, int):
            return format_size(value)
        if self._kind == "duration" and isinstance(value, float) and value.is_integer():
            return format_duration(int(value))
        return value

    def _number(self, value: object) -> object:
        if isinstance(value, str) and self._kind == "size":
            return parse_size(value)
        if isinstance(value, str) and self._kind == "duration":
            return parse_duration(value, Limits())
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(value)
        return value

    def _wanted(self, value: object) -> str:
        if get_origin(self._plain) is Literal:
            names = get_args(self._plain)
            return f"one of {', '.join(names)}" + _suggestion(_shown(value), names)
        if self._plain is bool:
            return "true or false"
        if self._plain is str:
            return "text of 1 to 4096 characters without control characters"
        lowest, highest = self._extra["range"]
        if self._kind == "size":
            return f"a size from {format_size(lowest)} to {format_size(highest)}, such as 65536 or 64 KiB"
        if self._kind == "duration":
            bounds = f"{format_duration(lowest)} to {format_duration(highest)}"
            return f"a duration from {bounds}, in seconds or such as 90s or 5m"
        return f"a whole number from {lowest} to {highest}"


def _kinds_of(section: Any) -> Mapping[str, type[Section]]:
    """What a section of `Config` may be, by its type; one kind without a type for most."""
    kinds = get_args(section.type) or (section.type,)
    return {str(kind.__struct_config__.tag or ""): kind for kind in kinds}


_KINDS = {section.name: _kinds_of(section) for section in msgspec.structs.fields(Config)}


def _keys() -> Iterator[_Key]:
    for section, kinds in _KINDS.items():
        if "" not in kinds:
            yield _Key(f"{section}.type", Literal[tuple(kinds)])
        for kind in kinds.values():
            for field in msgspec.structs.fields(kind):
                yield _Key(f"{section}.{field.name}", field.type)


_KEYS = {key.name: key for key in _keys()}
"""All settings. One that several kinds of a store have is the same to all of them."""


def _kind(section: str, values: Mapping[str, object]) -> str:
    """The type of a section, as given or by default."""
    return str(values.get(f"{section}.type") or next(iter(_KINDS[section])))


def _of_other_kinds(given: Mapping[str, Setting], values: Mapping[str, object]) -> Iterator[str]:
    """What is given of stores that are not of the given types, and what is missing of those that are."""
    for section, kinds in _KINDS.items():
        if f"{section}.type" in given and values[f"{section}.type"] is None:
            continue  # nobody knows which settings are meant
        kind = _kind(section, values)
        fields = {field.name: field for field in msgspec.structs.fields(kinds[kind])}
        for key, setting in given.items():
            of, _, name = key.partition(".")
            if of == section and name not in fields and name != "type":
                types = " or ".join(tag for tag, other in kinds.items() if name in other.__struct_fields__)
                yield f"{key} ({setting.origin}): is for {section}.type {types}, and that is {kind}"
        for name, field in fields.items():
            if field.required and f"{section}.{name}" not in given:
                yield f"{section}.{name}: is missing; {section}.type {kind} needs it"


def _one_line(name: str, value: object) -> str:
    """A setting as one line of YAML, so that a comment can follow it."""
    if isinstance(value, dict | list | tuple):
        written = json.dumps(value, ensure_ascii=False)  # which is YAML, but for what breaks lines there alone
        return f"{name}: {written}".translate({ord(mark): f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029\ufeff"})
    return yaml.safe_dump({name: value}, allow_unicode=True, width=math.inf).rstrip("\n")


_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)", re.DOTALL)
"""What has no business in settings, and is not shown if somebody has put it there."""


def _without_secrets(text: str) -> str:
    return without_password(_PRIVATE_KEY.sub("(a private key)", text))


def _shown(value: object) -> str:
    if isinstance(value, str):
        value = _without_secrets(value)
    try:
        return str(value)[:80] if isinstance(value, str) and value.isprintable() else repr(value)[:80]
    except ValueError:
        return "this number"  # it has more digits than Python prints


def _printable(path: Path | None) -> str:
    """``path`` on one line, for a comment or a message: YAML breaks lines at more characters than one."""
    return str(path) if str(path).isprintable() else ascii(str(path))


def _suggestion(given: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(given, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _known(settings: Iterable[tuple[str, Setting]], problems: list[str]) -> dict[str, Setting]:
    """The ``settings`` whose keys exist; the others are problems."""
    known: dict[str, Setting] = {}
    for key, setting in settings:
        if key in _KEYS:
            known[key] = setting
        else:
            problems.append(f"{key} ({setting.origin}): there is no such setting{_suggestion(key, _KEYS)}")
    return known


def _build(values: Mapping[str, object]) -> Config:
    sections: dict[str, dict[str, object]] = {}
    for key, value in values.items():
        section, name = key.split(".")
        sections.setdefault(section, {})[name] = value
    made: dict[str, Any] = {}
    for name, kinds in _KINDS.items():
        fields = sections.get(name, {})
        fields.pop("type", None)
        made[name] = kinds[_kind(name, values)](**fields)
    return Config(**made)


def _contradictions(config: Config) -> Iterator[str]:
    if config.tiering.inline_max > config.tiering.object_max:
        inline, largest = format_size(config.tiering.inline_max), format_size(config.tiering.object_max)
        yield f"tiering.inline_max: {inline} is more than tiering.object_max, {largest}"
    if config.uploads.part_min > config.tiering.object_max:
        part, largest = format_size(config.uploads.part_min), format_size(config.tiering.object_max)
        yield f"uploads.part_min: {part} is more than tiering.object_max, {largest}"
    yield from _contradictory_rules(config)
    yield from _contradictory_tls(config.tls)
    yield from _contradictory_stores(config)


def _contradictory_stores(config: Config) -> Iterator[str]:
    paths: dict[str, str] = {}
    for section in EMBEDDED_PATHS:
        local = config.store_path(section)
        if local is None:
            continue
        path = os.path.realpath(local)
        if path in paths:
            yield f"{section}.path: {path} is already {paths[path]}.path; each store needs a place of its own"
        paths[path] = section
    log = config.change_log_settings
    needed: tuple[str, ...] = ()
    if isinstance(log, PostgresChangeLog):
        needed = ("url",)
    elif isinstance(log, BigtableChangeLog):
        needed = ("project", "instance")
    for name in needed:
        if not getattr(log, name):
            yield f"change_log.{name}: is missing; it is that of high_volume only if both are of one type"


def _contradictory_tls(tls: Tls) -> Iterator[str]:
    if tls.certificate and not tls.key:
        yield "tls.key: is missing; a certificate needs its private key"
    if tls.key and not tls.certificate:
        yield "tls.certificate: is missing; a private key is of no use without it"
    if tls.client_ca and not (tls.certificate or tls.key):
        yield "tls.client_ca: needs tls.certificate and tls.key, which are not set"


def _contradictory_rules(config: Config) -> Iterator[str]:
    killswitches, throughput = config.admission.killswitches, config.throughput
    if len(killswitches) > KILLSWITCHES_MAX:
        yield f"admission.killswitches: there are more than {KILLSWITCHES_MAX}"
    if len(throughput.rules) > LIMIT_RULES_MAX:
        yield f"throughput.rules: there are more than {LIMIT_RULES_MAX}"
    for name, percent in (
        ("usecase_percent", throughput.usecase_percent),
        ("scope_percent", throughput.scope_percent),
        ("burst", throughput.burst),
    ):
        if percent and not throughput.rate:
            yield f"throughput.{name}: needs throughput.rate, which is not set"
    whole = rate_of(throughput.rate, None) if throughput.rate else None
    for number, meant in enumerate(killswitches, start=1):
        yield from _refused(f"admission.killswitches: number {number}", meant.condition)
    for number, rule in enumerate(throughput.rules, start=1):
        where = f"throughput.rules: number {number}"
        yield from _refused(where, rule.condition)
        yield from _refused(where, functools.partial(rule_rate, rule, whole))
    for usecase, policy in config.usecases.policies.items():
        where = f"usecases.policies: {_shown(usecase)}"
        if usecase != ALL_OTHERS:
            yield from _refused(where, functools.partial(parse_usecase, usecase))
        yield from _refused(where, policy.policy)


def _refused(where: str, make: Callable[[], object]) -> Iterator[str]:
    """What is wrong with something that cannot be made."""
    try:
        make()
    except InvalidRequest as error:
        yield f"{where}: {error}"


class _StrictLoader(yaml.SafeLoader):
    """Plain YAML types only; aliases and repeated keys are errors."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # because types-pyyaml leaves it so
            raise yaml.MarkedYAMLError(None, None, "aliases are not supported here", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(None, None, f"the key {key!r} is not text", key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(None, None, f"the key {key} is there twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _plain_number(_loader: _StrictLoader, node: yaml.ScalarNode) -> int:
    """A whole number, written as people read it: ``017`` is 15 to YAML 1.1, and the wrong tenant in a killswitch."""
    if _PLAIN_NUMBER.fullmatch(node.value) is None:
        where = f"{node.value[:80]} is a number to YAML, but not in the way people write one"
        raise yaml.MarkedYAMLError(None, None, f"{where}; if it is a text, put it in quotes", node.start_mark)
    return int(node.value)


_PLAIN_NUMBER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_StrictLoader.add_constructor("tag:yaml.org,2002:int", _plain_number)


def _parse_yaml(text: str) -> object:
    """Raises `ValueError` with a reason for people."""
    try:
        return yaml.load(text, _StrictLoader)  # noqa: S506  # because it is a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{place}{error.problem or 'is not YAML'}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"is not YAML: {error}") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    except (LookupError, AttributeError, TypeError, ArithmeticError) as error:
        # What the library raises for a scalar that its tag does not fit, such as `!!int ''` or `!!timestamp x`.
        raise ValueError("a value is none of the type that its tag says") from error


def _read_file(file: Path, problems: list[str]) -> Iterator[tuple[str, Setting]]:
    origin = f"file {_printable(file)}"
    try:
        sections = _parse_yaml(_file_text(file))
    except OSError as error:
        raise ConfigError(f"the config file {file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"the config file {file}: {error}") from error
    if sections is None:
        return
    if not isinstance(sections, dict):
        raise ConfigError(f"the config file {file}: the top level is not a mapping of sections")
    names = [field.name for field in msgspec.structs.fields(Config)]
    for name, section in sections.items():
        if name not in names:
            problems.append(f"{name} ({origin}): there is no such section{_suggestion(name, names)}")
        elif isinstance(section, dict):
            yield from ((f"{name}.{key}", Setting(value, origin)) for key, value in section.items())
        elif section is not None:
            problems.append(f"{name} ({origin}): a section is a mapping of keys to values")


def _file_text(file: Path) -> str:
    bytes_max = Limits().config_bytes_max
    if not stat.S_ISREG(file.stat().st_mode):  # a pipe may keep its reader waiting for ever
        raise OSError(errno.EINVAL, "it is not a regular file")
    with file.open("rb") as opened:
        content = opened.read(bytes_max + 1)
    if len(content) > bytes_max:
        raise ValueError(f"is larger than {format_size(bytes_max)}")
    return content.decode()


def _read_environment(environment: Mapping[str, str], problems: list[str]) -> Iterator[tuple[str, Setting]]:
    for variable in sorted(environment):
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        origin = f"environment {variable}"
        key = variable.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
        text = environment[variable]
        if key in _KEYS and _KEYS[key].textual:
            yield key, Setting(text, origin)
            continue
        try:
            yield key, Setting(_parse_yaml(text), origin)
        except ValueError as error:
            problems.append(f"{key} ({origin}): {error}")
