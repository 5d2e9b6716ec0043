"""The settings of a server: what they are, where they come from, and what is wrong with them.

Each setting is a dotted key, ``section.name``. Its value comes from, the later the stronger: the default, the YAML
file, the environment (``TIERSTORE__SECTION__NAME``, the value read as a YAML scalar), a command line flag.

Guarantees: everything is checked once, by `load_config`, before anything is opened, and every problem is reported, each
with its key, its origin and the reason. An unknown or repeated key is an error, never ignored. Reading a hostile file
is bounded: its size is limited, aliases are refused, only plain YAML types are built. A `Config` is immutable and can
be pickled.

Does not: touch the paths it names (`tierstore.build.check_stores` does), or change while a server runs.
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
from msgspec import Meta, Struct

from tierstore.admission.conditions import Condition, condition
from tierstore.admission.killswitches import Killswitches
from tierstore.admission.rate_limits import Bandwidth as BandwidthLimits
from tierstore.admission.rate_limits import Rate, ThroughputRule, rate_of
from tierstore.admission.rate_limits import Throughput as ThroughputLimits
from tierstore.admission.rules import Rules
from tierstore.admission.usecases import ALL_KINDS, ExpirationKind, UsecasePolicies, UsecasePolicy
from tierstore.errors import ConfigError, InvalidRequest
from tierstore.limits import GIB, KIB, KILLSWITCHES_MAX, LIMIT_RULES_MAX, MIB, TIB, Limits
from tierstore.types.durations import format_duration, parse_duration
from tierstore.types.ids import parse_usecase
from tierstore.types.sizes import SIZE_PATTERN, format_size, parse_size

ENVIRONMENT_PREFIX = "TIERSTORE__"

_NO_CONTROLS = r"^(?![\s\S]*[\x00-\x1f\x7f-\x9f\ud800-\udfff])"
"""Neither control characters nor bytes that are not UTF-8. A lookahead: ``$`` would let a last newline pass."""


def _whole(lowest: int, highest: int, description: str) -> Meta:
    return Meta(ge=lowest, le=highest, description=description, extra={"kind": "whole", "range": (lowest, highest)})


def _size(lowest: int, highest: int, description: str) -> Meta:
    return Meta(
        ge=lowest,
        le=highest,
        description=description,
        extra={"kind": "size", "range": (lowest, highest)},
        extra_json_schema={"written": {"type": "string", "pattern": f"^{SIZE_PATTERN}$"}},
    )


def _duration(lowest: int, highest: int, description: str) -> Meta:
    return Meta(
        ge=lowest,
        le=highest,
        description=description,
        extra={"kind": "duration", "range": (lowest, highest)},
        extra_json_schema={"written": {"type": "string", "pattern": "[0-9]"}},
    )


def _text(description: str) -> Meta:
    return Meta(min_length=1, max_length=4096, pattern=_NO_CONTROLS, description=description)


def _path(description: str) -> Meta:
    """A file that need not be given: then it is empty text, which nobody can give (`_Key.value`)."""
    return Meta(max_length=4096, pattern=_NO_CONTROLS, description=description, extra={"kind": "path"})


def _structure(wanted: str, description: str) -> Meta:
    """A setting that is no single value: a list, or a mapping. ``wanted`` says how it is written."""
    return Meta(description=description, extra={"kind": "structure", "wanted": wanted})


class Section(Struct, frozen=True, forbid_unknown_fields=True):
    """A group of settings."""


class Entry(Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a setting that is a structure."""


class Data(Section, frozen=True):
    """Where the embedded stores are."""

    path: Annotated[str, _text("Directory of the embedded stores; made when it is missing.")] = "./data"


class SqliteHighVolume(Section, frozen=True, tag_field="type", tag="sqlite"):
    """The high-volume store: rows and small objects, in one SQLite file."""

    path: Annotated[str, _text("The database file; below data.path unless set.")] = ""
    readers: Annotated[int, _whole(1, 64, "Threads, each with its own connection, that read.")] = 4
    reserve: Annotated[int, _size(0, TIB, "Free bytes of its disk that small objects leave to deletes.")] = 16 * MIB


class FilesystemLongTerm(Section, frozen=True, tag_field="type", tag="filesystem"):
    """The long-term store: large objects, as files."""

    path: Annotated[str, _text("The directory of the blobs; below data.path unless set.")] = ""
    threads: Annotated[int, _whole(1, 256, "Threads that read and write files.")] = 8
    reserve: Annotated[
        int, _size(0, TIB, "Free bytes of its disk that large objects leave to small ones and to deletes.")
    ] = 64 * MIB


class SqliteChangeLog(Section, frozen=True, tag_field="type", tag="sqlite"):
    """The change log: which blobs may be unreferenced, in one SQLite file."""

    path: Annotated[str, _text("The database file; below data.path unless set.")] = ""


class Http(Section, frozen=True):
    """The server: its address, its processes and how it stops. Durations are in seconds."""

    host: Annotated[str, _text("Address to listen on; 0.0.0.0 or :: for all.")] = "127.0.0.1"
    port: Annotated[int, _whole(0, 65535, "Port to listen on; 0 takes a free one.")] = 8888
    workers: Annotated[int, _whole(1, 256, "Server processes that share the port.")] = 1
    max_requests: Annotated[int, _whole(1, 100_000, "Requests at work in one worker; more get 503.")] = 512
    connections_max: Annotated[
        int, _whole(1, 1_000_000, "Connections of one worker; beyond it those give way whose clients are waited for.")
    ] = 16_384
    shutdown_delay: Annotated[
        float, _duration(0, 3600, "How long /ready answers 503 before the port closes; for load balancers.")
    ] = 0.0
    shutdown_grace: Annotated[
        float, _duration(0, 86_400, "How long requests in flight may take to end once the port is closed.")
    ] = 30.0
    keep_alive: Annotated[float, _duration(1, 3600, "How long an idle connection stays open.")] = 75.0
    backlog: Annotated[int, _whole(1, 65535, "Connections that wait to be accepted.")] = 2048


class Tls(Section, frozen=True):
    """Encrypted connections. Each worker reads the files, and again on SIGHUP."""

    certificate: Annotated[
        str, _path("The server's certificate in PEM, and those between it and the root; without one, no TLS.")
    ] = ""
    key: Annotated[str, _path("Its private key in PEM, without a password.")] = ""
    client_ca: Annotated[
        str, _path("Whose certificates in PEM clients must have, and TLS 1.3; without it, they need none.")
    ] = ""
    minimum_version: Annotated[
        Literal["TLSv1.2", "TLSv1.3"], Meta(description="The oldest version that clients may use.")
    ] = "TLSv1.2"


_ShortText = Annotated[str, Meta(min_length=1, max_length=256, pattern=_NO_CONTROLS)]


class AuthKey(Entry, frozen=True):
    """One key of the directory: its public halves, of which several may be valid while it is rotated."""

    max_permissions: tuple[Literal["object.read", "object.write", "object.delete"], ...]
    files: tuple[Annotated[str, Meta(min_length=1, max_length=4096, pattern=_NO_CONTROLS)], ...] = ()
    public_keys: tuple[Annotated[str, Meta(min_length=1, max_length=4096)], ...] = ()


class Auth(Section, frozen=True):
    """Who may do what. Durations are in seconds."""

    enforce: Annotated[
        bool,
        Meta(description="Whether requests need a valid token or signature; if not, the log tells what would fail."),
    ] = True
    keys: Annotated[
        dict[Annotated[str, Meta(min_length=1, max_length=128, pattern=_NO_CONTROLS)], AuthKey],
        _structure(
            "a mapping of key ids to {max_permissions: […], files: […], public_keys: […]}",
            "The public keys that sign tokens and URLs, by key id: PEM in files or inline, and what each may grant.",
        ),
    ] = {}
    audiences: Annotated[
        tuple[_ShortText, ...], _structure("a list of texts", "What a token's aud may be, if it has one.")
    ] = ("objectstore",)
    issuers: Annotated[
        tuple[_ShortText, ...], _structure("a list of texts", "What a token's iss may be, if it has one.")
    ] = ("sentry", "relay")
    leeway: Annotated[
        float, _duration(0, 300, "How far the clocks of those who sign tokens may differ from the server's.")
    ] = 10.0


class Meant(Entry, frozen=True):
    """Which requests something means: all that is given must hold."""

    usecase: _ShortText | None = None
    scopes: dict[_ShortText, _ShortText | int] = {}
    service: _ShortText | None = None

    def condition(self) -> Condition:
        """As admission has it. Raises `InvalidRequest`."""
        return condition(self.usecase, self.scopes, self.service)


class LimitRule(Meant, frozen=True):
    """An extra limit on requests: a rate of its own, or a share of the server's."""

    rate: Annotated[float, Meta(ge=1e-6, le=1e9)] | None = None
    percent: Annotated[float, Meta(ge=1e-6, le=100)] | None = None
    burst: Annotated[int, Meta(ge=1, le=10**9)] | None = None


class Policy(Entry, frozen=True):
    """What the objects of a usecase may ask for. Durations as in other settings."""

    expirations: Annotated[tuple[ExpirationKind, ...], Meta(min_length=1)] = ALL_KINDS
    ttl_max: str | Annotated[int, Meta(ge=0)] | None = None
    tti_max: str | Annotated[int, Meta(ge=0)] | None = None

    def policy(self) -> UsecasePolicy:
        """As admission has it. Raises `InvalidRequest`."""
        return UsecasePolicy(
            expirations=self.expirations,
            ttl_seconds_max=_seconds(self.ttl_max),
            tti_seconds_max=_seconds(self.tti_max),
        )


def _seconds(written: str | int | None) -> int | None:
    return parse_duration(written, Limits()) if isinstance(written, str) else written


class Admission(Section, frozen=True):
    """Which requests are stopped."""

    killswitches: Annotated[
        tuple[Meant, ...],
        _structure("a list of {usecase: …, scopes: {…}, service: …}", "Requests that are refused, whoever makes them."),
    ] = ()


class UsecasePolicySettings(Section, frozen=True):
    """What objects may ask for, by their usecase."""

    policies: Annotated[
        dict[str, Policy],
        _structure(
            "a mapping of usecases to {expirations: […], ttl_max: …, tti_max: …}",
            "Which expirations objects may have, by usecase; * is for all others.",
        ),
    ] = {}


class Throughput(Section, frozen=True):
    """How many requests a server takes in a second, all of its workers together."""

    rate: Annotated[int, _whole(0, 10**9, "Requests a second; 0 for no limit.")] = 0
    burst: Annotated[int, _whole(0, 10**9, "Requests that may come at once; 0 for those of one second.")] = 0
    usecase_percent: Annotated[int, _whole(0, 100, "Share of both that one usecase may have; 0 for no limit.")] = 0
    scope_percent: Annotated[
        int, _whole(0, 100, "Share of both for requests of the same usecase and scopes; 0 for no limit.")
    ] = 0
    rules: Annotated[
        tuple[LimitRule, ...],
        _structure(
            "a list of {usecase: …, scopes: {…}, service: …, rate: … or percent: …, burst: …}",
            "Extra limits, each on the requests that it means.",
        ),
    ] = ()
    report_only: Annotated[bool, Meta(description="Count what would be refused, and admit it.")] = False


class Bandwidth(Section, frozen=True):
    """How many bytes of payload a server takes and gives in a second, all of its workers together."""

    rate: Annotated[int, _size(0, TIB, "Bytes a second; 0 for no limit.")] = 0
    usecase_rate: Annotated[int, _size(0, TIB, "Bytes a second of one usecase; 0 for no limit.")] = 0
    scope_rate: Annotated[int, _size(0, TIB, "Bytes a second of the same usecase and scopes; 0 for no limit.")] = 0
    report_only: Annotated[bool, Meta(description="Count what would be refused, and admit it.")] = False


class Backpressure(Section, frozen=True):
    """How many operations a worker has under way on the stores. Durations are in seconds."""

    operations: Annotated[int, _whole(1, 100_000, "Operations under way on the stores, in one worker.")] = 256
    queue: Annotated[int, _whole(0, 100_000, "Operations that wait for their turn; more get 429.")] = 256
    queue_wait: Annotated[float, _duration(0, 3600, "How long one waits before it gets 429.")] = 5.0
    bulk_percent: Annotated[
        int, _whole(1, 100, "Share of both that operations may have which come in bulk or take long.")
    ] = 50


class Tiering(Section, frozen=True):
    """Which object lives where. Sizes are in bytes, durations in seconds."""

    inline_max: Annotated[int, _size(KIB, 16 * MIB, "Objects up to this size live in the high-volume store.")] = MIB
    object_max: Annotated[int, _size(KIB, 5 * TIB, "The largest object that is accepted.")] = 5 * TIB
    operation_deadline: Annotated[
        float, _duration(1, 12 * 3600, "How long one write may take; after it the write is given up.")
    ] = 6 * 3600.0


class Sweeper(Section, frozen=True):
    """The cleaning up after crashes and of what expired. Durations are in seconds."""

    period: Annotated[float, _duration(1, 86_400, "Time from one run to the next.")] = 60.0
    grace: Annotated[
        float, _duration(0, 30 * 86_400, "How long the traces of an operation that never ended are left; always safe.")
    ] = 6 * 3600.0
    second_visit: Annotated[
        float, _duration(0, 86_400, "How long after a blob was deleted it is looked for once more.")
    ] = 300.0


class Uploads(Section, frozen=True):
    """Multipart uploads. Durations are in seconds."""

    retention: Annotated[
        float, _duration(1, 365 * 86_400, "An upload that nobody has completed is aborted this long after it began.")
    ] = 7 * 86_400.0
    outcome_retention: Annotated[
        float,
        _duration(
            1, 365 * 86_400, "How long it is remembered that an upload was completed, for clients that ask again."
        ),
    ] = 7 * 86_400.0
    part_min: Annotated[
        int, _size(0, 5 * GIB, "The smallest part, the last one excepted; 5 MiB to behave like S3.")
    ] = 0


class Log(Section, frozen=True):
    """What is written to standard error."""

    level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"], Meta(description="The least severe level written.")
    ] = "info"
    format: Annotated[
        Literal["auto", "json", "console"],
        Meta(description="json: one object a line; console: for people; auto: console on a terminal, else json."),
    ] = "auto"
    audit: Annotated[
        bool, Meta(description="Whether every mutation and every refusal has a line, whatever the level is.")
    ] = True


class Config(Section, frozen=True):
    """All settings of one server. A store whose path is empty is below ``data.path``."""

    data: Data = Data()
    high_volume: SqliteHighVolume = SqliteHighVolume()
    long_term: FilesystemLongTerm = FilesystemLongTerm()
    change_log: SqliteChangeLog = SqliteChangeLog()
    http: Http = Http()
    tls: Tls = Tls()
    auth: Auth = Auth()
    admission: Admission = Admission()
    usecases: UsecasePolicySettings = UsecasePolicySettings()
    throughput: Throughput = Throughput()
    bandwidth: Bandwidth = Bandwidth()
    backpressure: Backpressure = Backpressure()
    tiering: Tiering = Tiering()
    sweeper: Sweeper = Sweeper()
    uploads: Uploads = Uploads()
    log: Log = Log()

    @property
    def high_volume_path(self) -> Path:
        """The database file of the high-volume store."""
        return Path(self.high_volume.path or Path(self.data.path, "high-volume.sqlite3"))

    @property
    def long_term_path(self) -> Path:
        """The directory of the long-term store."""
        return Path(self.long_term.path or Path(self.data.path, "long-term"))

    @property
    def change_log_path(self) -> Path:
        """The database file of the change log."""
        return Path(self.change_log.path or Path(self.data.path, "change-log.sqlite3"))

    def store_path(self, section: str) -> Path | None:
        """Where the store of a section is; None if the section is not a store's."""
        paths = {
            "high_volume": self.high_volume_path,
            "long_term": self.long_term_path,
            "change_log": self.change_log_path,
        }
        return paths.get(section)


def limits_from(config: Config) -> Limits:
    """The bounds that ``config`` sets, with the defaults of `Limits` for the others."""
    return Limits(
        inline_bytes_max=config.tiering.inline_max,
        object_bytes_max=config.tiering.object_max,
        operation_deadline_seconds=config.tiering.operation_deadline,
        entry_grace_seconds=config.sweeper.grace,
        sweep_second_visit_seconds=config.sweeper.second_visit,
        upload_retention_seconds=config.uploads.retention,
        outcome_retention_seconds=config.uploads.outcome_retention,
        part_bytes_min=config.uploads.part_min,
        connections_max=config.http.connections_max,
        client_bytes_max=max(Limits().client_bytes_max, config.http.max_requests * config.tiering.inline_max),
        operations_max=config.backpressure.operations,
        operations_queue_max=config.backpressure.queue,
        operation_wait_seconds_max=config.backpressure.queue_wait,
        operations_bulk_percent=config.backpressure.bulk_percent,
    )


def rules_from(config: Config) -> Rules:
    """The rules on requests that ``config`` sets. For a configuration that `load_config` made, nothing is raised."""
    policies = dict(config.usecases.policies)
    of_others = policies.pop(_ALL_OTHERS, Policy())
    bandwidth = config.bandwidth
    return Rules(
        killswitches=Killswitches(tuple(meant.condition() for meant in config.admission.killswitches)),
        policies=UsecasePolicies({name: each.policy() for name, each in policies.items()}, of_others.policy()),
        throughput=_throughput(config.throughput),
        bandwidth=BandwidthLimits(
            all_bytes=bandwidth.rate or None,
            each_usecase=bandwidth.usecase_rate or None,
            each_scope=bandwidth.scope_rate or None,
            report_only=bandwidth.report_only,
        ),
    )


_ALL_OTHERS = "*"


def _throughput(settings: Throughput) -> ThroughputLimits:
    whole = rate_of(settings.rate, settings.burst or None) if settings.rate else None
    return ThroughputLimits(
        all_requests=whole,
        each_usecase=whole.share(settings.usecase_percent) if whole and settings.usecase_percent else None,
        each_scope=whole.share(settings.scope_percent) if whole and settings.scope_percent else None,
        rules=tuple(
            ThroughputRule(condition=rule.condition(), rate=_rule_rate(rule, whole)) for rule in settings.rules
        ),
        report_only=settings.report_only,
    )


def _rule_rate(rule: LimitRule, whole: Rate | None) -> Rate:
    """Raises `InvalidRequest`."""
    if (rule.rate is None) == (rule.percent is None):
        raise InvalidRequest("a rule has either a rate or a percent")
    if rule.rate is not None:
        return rate_of(rule.rate, rule.burst)
    if whole is None:
        raise InvalidRequest("a rule's percent is a share of throughput.rate, which is not set")
    share = whole.share(rule.percent or 0)
    return share if rule.burst is None else rate_of(share.per_second, rule.burst)


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
                written = _PRIVATE_KEY.sub("(a private key)", _one_line(name, _KEYS[key].written(value)))
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
    structures = {entry.__name__ for entry in Entry.__subclasses__()}
    for title, definition in schema["$defs"].items():
        if title not in structures:
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


def _keys() -> Iterator[_Key]:
    for section in msgspec.structs.fields(Config):
        tag = section.type.__struct_config__.tag
        if tag is not None:
            yield _Key(f"{section.name}.type", Literal[tag])
        for field in msgspec.structs.fields(section.type):
            yield _Key(f"{section.name}.{field.name}", field.type)


_KEYS = {key.name: key for key in _keys()}


def _one_line(name: str, value: object) -> str:
    """A setting as one line of YAML, so that a comment can follow it."""
    if isinstance(value, dict | list | tuple):
        written = json.dumps(value, ensure_ascii=False)  # which is YAML, but for what breaks lines there alone
        return f"{name}: {written}".translate({ord(mark): f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029\ufeff"})
    return yaml.safe_dump({name: value}, allow_unicode=True, width=math.inf).rstrip("\n")


_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)", re.DOTALL)
"""What has no business in settings, and is not shown if somebody has put it there."""


def _shown(value: object) -> str:
    if isinstance(value, str):
        value = _PRIVATE_KEY.sub("(a private key)", value)
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
    made = {}
    for field in msgspec.structs.fields(Config):
        fields = sections.get(field.name, {})
        fields.pop("type", None)
        made[field.name] = field.type(**fields)
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
    paths: dict[str, str] = {}
    for section in ("high_volume", "long_term", "change_log"):
        path = os.path.realpath(config.store_path(section) or "")
        if path in paths:
            yield f"{section}.path: {path} is already {paths[path]}.path; each store needs a place of its own"
        paths[path] = section


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
        yield from _refused(where, functools.partial(_rule_rate, rule, whole))
    for usecase, policy in config.usecases.policies.items():
        where = f"usecases.policies: {_shown(usecase)}"
        if usecase != _ALL_OTHERS:
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
