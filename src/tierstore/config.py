"""The settings of a server: what there is to be set, and the limits and rules that it comes to.

Each setting is a dotted key, ``section.name``, with a default and a description. Guarantees: a `Config` is immutable
and can be pickled. Does not: read settings or judge how they go together (`tierstore.config_loading` does), touch the
paths it names (`tierstore.build.check_stores` does), or change while a server runs.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from tierstore.admission.conditions import Condition, condition
from tierstore.admission.killswitches import Killswitches
from tierstore.admission.rate_limits import Bandwidth as BandwidthLimits
from tierstore.admission.rate_limits import Rate, ThroughputRule, rate_of
from tierstore.admission.rate_limits import Throughput as ThroughputLimits
from tierstore.admission.rules import Rules
from tierstore.admission.usecases import ALL_KINDS, ExpirationKind, UsecasePolicies, UsecasePolicy
from tierstore.errors import InvalidRequest, InvariantBroken
from tierstore.limits import GIB, KIB, MIB, TIB, Limits
from tierstore.types.durations import parse_duration
from tierstore.types.sizes import SIZE_PATTERN

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


def _url(schemes: str, wanted: str, description: str) -> Meta:
    """An address, which may hold a password, and so is not shown if it cannot be read."""
    pattern = f"{_NO_CONTROLS}(?:{schemes})://"
    return Meta(max_length=4096, pattern=pattern, description=description, extra={"kind": "url", "wanted": wanted})


def _name(pattern: str, description: str) -> Meta:
    """A name in a store, whose rules are ``pattern``."""
    return Meta(max_length=255, pattern=rf"^(?:{pattern})$(?!\n)", description=description)


def _structure(wanted: str, description: str) -> Meta:
    """A setting that is no single value: a list, or a mapping. ``wanted`` says how it is written."""
    return Meta(description=description, extra={"kind": "structure", "wanted": wanted})


_PASSWORD = re.compile(r"(://[^:/\s]*:).+(?=@)|((?i:password)\s*=\s*)(?:'+[^']*'+|[^&\s'\"]+)")
"""Rather too much than too little: up to the last @, for people forget to encode the one that is in a password."""


def without_password(text: str) -> str:
    """``text`` with stars for the passwords of the addresses in it."""
    return _PASSWORD.sub(r"\1\2***", text)


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


_POSTGRES = ("postgres(?:ql)?", "an address such as postgresql://user@host:5432/name")
_HTTP = ("https?", "an address such as https://store.example.org")
_PG_SCHEMA = Annotated[str, _name("[a-z_][a-z0-9_]{0,62}", "The schema of its tables; made when it is missing.")]
_PG_CONNECTIONS = Annotated[int, _whole(1, 1000, "Connections of one worker to the database, at most.")]
_PG_PREPARED = Annotated[
    bool,
    Meta(description="Whether statements are prepared; false behind a transaction pooler that does not keep them."),
]
_TIMEOUT = Annotated[float, _duration(1, 300, "How long one call of the store may take.")]
_PREFIX = Annotated[
    str,
    _name("[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+){0,7}", "What the names of all its objects begin with, without a slash."),
]
_EMULATOR = Annotated[
    bool,
    Meta(
        description="Whether an emulator may be used, if BIGTABLE_EMULATOR_HOST names one; it loses all when it ends."
    ),
]
_CA = Annotated[str, _path("Certificates in PEM that the store's own is signed by, in place of the system's.")]


class PostgresHighVolume(Section, frozen=True, tag_field="type", tag="postgres"):
    """The high-volume store: rows and small objects, in a PostgreSQL database. Durations are in seconds."""

    url: Annotated[str, _url(*_POSTGRES, "Address of the database: postgresql://user:password@host:5432/name.")]
    schema: _PG_SCHEMA = "tierstore"
    connections: _PG_CONNECTIONS = 16
    timeout: _TIMEOUT = 10.0
    prepared_statements: _PG_PREPARED = True


class BigtableHighVolume(Section, frozen=True, tag_field="type", tag="bigtable"):
    """The high-volume store: rows and small objects, in a Bigtable table. Durations are in seconds."""

    project: Annotated[str, _text("The project of the instance.")]
    instance: Annotated[str, _text("The instance.")]
    table: Annotated[str, _text("The table; made when it is missing.")] = "tierstore-objects"
    app_profile: Annotated[str, _text("The application profile, with single-cluster routing.")] = "default"
    timeout: _TIMEOUT = 10.0
    emulator: _EMULATOR = False


class S3LongTerm(Section, frozen=True, tag_field="type", tag="s3"):
    """The long-term store: large objects, in a bucket of S3 or of what speaks like it. Durations are in seconds."""

    bucket: Annotated[str, _text("The bucket, which must be there.")]
    endpoint: Annotated[str, _url(*_HTTP, "Where the service is, such as https://s3.example.org; AWS unless set.")] = ""
    region: Annotated[str, _text("The region that requests are signed for.")] = "us-east-1"
    prefix: _PREFIX = "tierstore"
    path_style: Annotated[
        bool,
        Meta(
            description="Whether the bucket is in the path of addresses, not in the name of the host; never so at AWS."
        ),
    ] = True
    ca: _CA = ""
    profile: Annotated[str, _text("The profile of the credential chain; its default unless set.")] = ""
    connections: Annotated[int, _whole(1, 10_000, "Connections of one worker to the store, at most.")] = 256
    timeout: _TIMEOUT = 30.0


class GcsLongTerm(Section, frozen=True, tag_field="type", tag="gcs"):
    """The long-term store: large objects, in a bucket of Google Cloud Storage. Durations are in seconds."""

    bucket: Annotated[str, _text("The bucket, which must be there.")]
    prefix: _PREFIX = "tierstore"
    endpoint: Annotated[str, _url(*_HTTP, "Where the service is; Google's unless set.")] = ""
    ca: _CA = ""
    connections: Annotated[int, _whole(1, 10_000, "Connections of one worker to the store, at most.")] = 256
    timeout: _TIMEOUT = 30.0


class PostgresChangeLog(Section, frozen=True, tag_field="type", tag="postgres"):
    """The change log: which blobs may be unreferenced, in a PostgreSQL database. Durations are in seconds."""

    url: Annotated[str, _url(*_POSTGRES, "Address of the database; high_volume.url unless set.")] = ""
    schema: _PG_SCHEMA = "tierstore"
    connections: _PG_CONNECTIONS = 8
    timeout: _TIMEOUT = 10.0
    prepared_statements: _PG_PREPARED = True


class BigtableChangeLog(Section, frozen=True, tag_field="type", tag="bigtable"):
    """The change log: which blobs may be unreferenced, in a Bigtable table. Durations are in seconds."""

    project: Annotated[str, _text("The project of the instance; that of high_volume unless set.")] = ""
    instance: Annotated[str, _text("The instance; that of high_volume unless set.")] = ""
    table: Annotated[str, _text("The table; made when it is missing.")] = "tierstore-changes"
    app_profile: Annotated[str, _text("The application profile, with single-cluster routing.")] = "default"
    timeout: _TIMEOUT = 10.0
    emulator: _EMULATOR = False


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


class Batch(Section, frozen=True):
    """What batch requests may hold. Bounds of a worker."""

    requests: Annotated[int, _whole(1, 10_000, "Batch requests under way in one worker; more get 429.")] = 32
    parts: Annotated[
        int,
        _whole(1, 1_000, "Objects that one of them has in memory on their way in, and on their way out; 1 MiB each."),
    ] = 8


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
        float,
        _duration(
            1,
            365 * 86_400,
            "An upload that nobody has completed is aborted this long after it began; a resumable one, after its last "
            "bytes.",
        ),
    ] = 7 * 86_400.0
    outcome_retention: Annotated[
        float,
        _duration(
            1, 365 * 86_400, "How long it is remembered that an upload was completed, for clients that ask again."
        ),
    ] = 7 * 86_400.0
    part_min: Annotated[
        int,
        _size(0, 5 * GIB, "The smallest part, the last one excepted; 0 for what the long-term store takes."),
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


HighVolumeSettings = SqliteHighVolume | PostgresHighVolume | BigtableHighVolume
LongTermSettings = FilesystemLongTerm | S3LongTerm | GcsLongTerm
ChangeLogSettings = SqliteChangeLog | PostgresChangeLog | BigtableChangeLog
StoreSettings = HighVolumeSettings | LongTermSettings | ChangeLogSettings


def kind_of(store: StoreSettings) -> str:
    """What is called ``type`` in the settings of a store."""
    return str(store.__struct_config__.tag)


EMBEDDED_PATHS = {
    "high_volume": "high-volume.sqlite3",
    "long_term": "long-term",
    "change_log": "change-log.sqlite3",
}
"""The sections of stores, and where each is below ``data.path``, if it is an embedded one and nothing else is set."""


class Config(Section, frozen=True):
    """All settings of one server. A store whose path is empty is below ``data.path``."""

    data: Data = Data()
    high_volume: HighVolumeSettings = SqliteHighVolume()
    long_term: LongTermSettings = FilesystemLongTerm()
    change_log: ChangeLogSettings = SqliteChangeLog()
    http: Http = Http()
    tls: Tls = Tls()
    auth: Auth = Auth()
    admission: Admission = Admission()
    usecases: UsecasePolicySettings = UsecasePolicySettings()
    throughput: Throughput = Throughput()
    bandwidth: Bandwidth = Bandwidth()
    backpressure: Backpressure = Backpressure()
    batch: Batch = Batch()
    tiering: Tiering = Tiering()
    sweeper: Sweeper = Sweeper()
    uploads: Uploads = Uploads()
    log: Log = Log()

    @property
    def change_log_settings(self) -> ChangeLogSettings:
        """Those of the change log, with what they take over from those of the high-volume store."""
        log, store = self.change_log, self.high_volume
        if isinstance(log, PostgresChangeLog) and isinstance(store, PostgresHighVolume):
            return msgspec.structs.replace(log, url=log.url or store.url)
        if isinstance(log, BigtableChangeLog) and isinstance(store, BigtableHighVolume):
            project, instance = log.project or store.project, log.instance or store.instance
            return msgspec.structs.replace(log, project=project, instance=instance)
        return log

    @property
    def high_volume_path(self) -> Path:
        """The database file of the high-volume store, which is an embedded one."""
        return self.embedded_path("high_volume")

    @property
    def long_term_path(self) -> Path:
        """The directory of the long-term store, which is an embedded one."""
        return self.embedded_path("long_term")

    @property
    def change_log_path(self) -> Path:
        """The database file of the change log, which is an embedded one."""
        return self.embedded_path("change_log")

    def embedded_path(self, section: str) -> Path:
        """Where the store of a section is, which is an embedded one."""
        path = self.store_path(section)
        if path is None:
            raise InvariantBroken("only an embedded store has a path")
        return path

    def store_path(self, section: str) -> Path | None:
        """Where the store of a section is; None if the section is not that of an embedded store."""
        settings = getattr(self, section)
        if isinstance(settings, SqliteHighVolume | FilesystemLongTerm | SqliteChangeLog):
            return Path(settings.path or Path(self.data.path, EMBEDDED_PATHS[section]))
        return None


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
        part_bytes_min=config.uploads.part_min or _part_bytes_min(config.long_term),
        connections_max=config.http.connections_max,
        client_bytes_max=max(Limits().client_bytes_max, config.http.max_requests * config.tiering.inline_max),
        operations_max=config.backpressure.operations,
        operations_queue_max=config.backpressure.queue,
        operation_wait_seconds_max=config.backpressure.queue_wait,
        operations_bulk_percent=config.backpressure.bulk_percent,
        batches_max=config.batch.requests,
        batch_held_max=config.batch.parts,
    )


def _part_bytes_min(store: LongTermSettings) -> int:
    """The smallest part that a store takes, the last one excepted (S3: "Multipart upload limits")."""
    return 5 * MIB if isinstance(store, S3LongTerm | GcsLongTerm) else 0


def rules_from(config: Config) -> Rules:
    """The rules on requests that ``config`` sets. For a configuration that `load_config` made, nothing is raised."""
    policies = dict(config.usecases.policies)
    of_others = policies.pop(ALL_OTHERS, Policy())
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


ALL_OTHERS = "*"
"""Stands for all usecases without a policy of their own."""


def _throughput(settings: Throughput) -> ThroughputLimits:
    whole = rate_of(settings.rate, settings.burst or None) if settings.rate else None
    return ThroughputLimits(
        all_requests=whole,
        each_usecase=whole.share(settings.usecase_percent) if whole and settings.usecase_percent else None,
        each_scope=whole.share(settings.scope_percent) if whole and settings.scope_percent else None,
        rules=tuple(ThroughputRule(condition=rule.condition(), rate=rule_rate(rule, whole)) for rule in settings.rules),
        report_only=settings.report_only,
    )


def rule_rate(rule: LimitRule, whole: Rate | None) -> Rate:
    """The rate of an extra rule, where ``whole`` is that of all requests. Raises `InvalidRequest`."""
    if (rule.rate is None) == (rule.percent is None):
        raise InvalidRequest("a rule has either a rate or a percent")
    if rule.rate is not None:
        return rate_of(rule.rate, rule.burst)
    if whole is None:
        raise InvalidRequest("a rule's percent is a share of throughput.rate, which is not set")
    share = whole.share(rule.percent or 0)
    return share if rule.burst is None else rate_of(share.per_second, rule.burst)
