"""Every maximum in one place, with its unit in its name.

`Limits()` is what production uses; a few of them can be set in the config (see `tierstore.config`). `Limits.tiny()`
makes everything small, so that tests meet every edge with a few bytes.
"""

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

KILLSWITCHES_MAX = 256
"""Killswitches of a server; each is tried on each request."""
KEY_VERSIONS_MAX = 8
"""Public keys of one key id: each is tried on each signature."""
LIMIT_RULES_MAX = 64
"""Extra rules of the throughput limit; likewise. The table of buckets has a place for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on sizes, counts and waits. Immutable; built once by the composition root."""

    # Names
    key_bytes_max: int = 4 * KIB
    """UTF-8 bytes of an object key."""
    scopes_max: int = 16
    """Scopes of one object id."""
    scope_bytes_max: int = 256
    """Bytes of one scope's name, and of its value."""

    # Requests
    target_bytes_max: int = 32 * KIB
    """Bytes of a request target (path and query, percent-encoded)."""
    header_bytes_max: int = 64 * KIB
    """Bytes of all request headers together."""
    headers_max: int = 256
    """Headers of a request: 64 of custom metadata, and what clients and proxies add."""
    metadata_bytes_max: int = 16 * KIB
    """UTF-8 bytes of an object's metadata: content type, origin, filename, custom names and values together."""
    custom_metadata_max: int = 64
    """Custom metadata entries of one object: few enough for clients that read no more than 100 response headers."""
    object_bytes_max: int = 5 * TIB
    """Bytes of one object."""
    duration_seconds_max: int = 100 * 366 * 86_400
    """Seconds of a ttl or tti, and of the lifetime that an extension may lead to."""
    extension_body_bytes_max: int = 4 * KIB
    """Bytes of the document that says how an object's expiry is to be extended."""
    client_stall_seconds_max: float = 300.0
    """How long a request waits for its client to send, or to take, the next bytes; then it ends."""
    body_bytes_per_second_min: int = KIB
    """How fast a client must send a body, or take one, on average, after the first ``client_stall_seconds_max``."""
    connections_max: int = 16_384
    """Connections of a worker; beyond it those give way whose clients are waited for, or the new one is refused."""
    client_bytes_max: int = 768 * MIB
    """What a worker keeps in memory of bodies that have not all come, and of answers that clients have not taken:
    1.5 MiB for each of 512 requests, be they small, or streamed."""
    patience_seconds: float = 2.0
    """How long a client is waited for in any case, whatever others need."""
    pipelined_requests_max: int = 32
    """Requests that wait on one connection for the answer to an earlier one; then it is closed behind them."""
    unread_body_bytes_max: int = 64 * KIB
    """What may be left of a body when a request is refused for its connection to be kept; with more it is closed."""
    linger_seconds_max: float = 2.0
    """How long a connection that is closed with bytes still coming takes them in, so that the answer is seen; and how
    long an idle one with TLS waits for its client to say goodbye."""
    linger_bytes_max: int = 16 * MIB
    """How many of those bytes it takes in."""

    # Credentials
    token_bytes_max: int = 8 * KIB
    """Bytes of a token."""
    tokens_cached_max: int = 4096
    """Verified tokens that a process remembers until they expire."""
    presign_seconds_max: int = 7 * 86_400
    """How long a pre-signed URL may be valid."""
    presign_early_seconds_max: int = 60
    """How long before its timestamp a pre-signed URL is valid already, for clocks that differ."""

    # Multipart uploads
    parts_max: int = 10_000
    """Parts of one upload, and the highest part number."""
    part_bytes_max: int = 5 * GIB
    """Bytes of one part."""
    part_bytes_min: int = 0
    """Bytes of each part but the last; the embedded store needs none, S3 wants 5 MiB."""
    parts_listed_max: int = 1_000
    """Parts of one page of a listing."""
    upload_id_bytes_max: int = 2 * KIB
    """Characters of an upload id as clients have it."""
    complete_body_bytes_max: int = 4 * MIB
    """Bytes of the list of parts that completes an upload."""
    complete_keep_alive_seconds: float = 1.0
    """While an upload is being completed, its client is sent a space this often."""
    complete_overtime_seconds_max: float = 60.0
    """How long it is kept waiting beyond ``operation_deadline``, for the steps that look at the time by themselves."""
    complete_wait_seconds_max: float = 5.0
    """How long an attempt to complete an upload waits for a sweeper that is settling it; then it asks for a retry."""
    complete_poll_seconds: float = 0.05
    """How often it looks meanwhile."""
    upload_attempts_max: int = 16
    """Attempts to complete one upload that a process has under way; more are refused as busy."""
    upload_lock_wait_seconds_max: float = 30.0
    """How long an operation waits for others, of its own process too, that hold the same upload of the filesystem's
    store. A part that has been sent waits for those of its own process for as long as they take."""
    upload_retention_seconds: float = 7 * 86_400.0
    """An upload that nobody has completed is aborted this long after it began; a resumable one, after its last byte."""
    session_unit_bytes_min: int = 4 * MIB
    """Bytes of a resumable upload that are stored, and made durable, at a time: what a broken connection, or the end of
    a process, can cost. More for objects of more than ``parts_max`` / 2 such units."""
    outcome_retention_seconds: float = 7 * 86_400.0
    """That an upload was completed is remembered this long, for clients that lost the answer."""

    # Batches
    batch_operations_max: int = 1_000
    """Operations of one batch; those beyond are refused, each by itself."""
    batch_refused_max: int = 1_000
    """How many of those are refused so; a batch with more ends there."""
    batch_part_bytes_max: int = MIB
    """Bytes of one operation's body; a longer one is refused, and read past."""
    batch_bytes_max: int = GIB
    """Bytes of the body of a batch, all parts and what is between them."""
    batch_held_max: int = 8
    """Objects that a batch has in memory on their way in, the one that is arriving included, and as many on their way
    out; also how many of its operations are under way at once."""
    batches_max: int = 32
    """Batches that a worker has under way; more are refused as busy. With the above, half of what may be under way on
    the stores and wait for a turn: the share of operations in bulk."""

    # Tiers
    inline_bytes_max: int = MIB
    """Objects up to this many bytes live inline in the high-volume store; also what a write may buffer."""
    stream_chunk_bytes: int = 512 * KIB
    """Bytes read from or written to a file at once, and so what a streamed request holds."""

    # Protocol
    commit_attempts_max: int = 256
    """Compare-and-writes of one mutation before it gives up with a retryable error."""
    read_attempts_max: int = 64
    """Times a read follows a row that is overwritten under it before it answers with a retryable error."""
    operation_deadline_seconds: float = 6 * 3600.0
    """No mutation writes a blob or compare-and-writes later than this after it began; well below
    ``marker_retention``."""
    marker_retention_seconds: float = 24 * 3600.0
    """A `gone` row, or an expired inline one, keeps its version at least this long."""
    tti_debounce_seconds_max: float = 24 * 3600.0
    """A tti deadline is moved when it is stale by a quarter of its duration, or by this, whichever is less."""
    extension_settled_seconds: float = 60.0
    """For so long after a deadline a read makes sure that no extension of it is on its way: longer than a store takes
    from its look at the clock to the commit."""

    # Sweeper
    entry_grace_seconds: float = 6 * 3600.0
    """How long a sweeper leaves an operation's entries alone. Any value is safe; a short one may fail slow writes."""
    sweep_lease_seconds: float = 30.0
    """How long an entry that a sweeper has condemned is left to it by the others."""
    sweep_second_visit_seconds: float = 300.0
    """After this a sweeper looks again whether what it deleted has stayed away, and only then forgets the entry."""
    sweep_batches_max: int = 1_000
    """Batches of one kind that one run of the sweeper takes; the rest waits for the next run."""

    # Work
    mutations_max: int = 4096
    """Mutations under way, those included whose callers have gone, and without those that wait for their clients; more
    are refused as busy."""
    left_completions_max: int = 64
    """Completions of uploads of one use case and scopes that go on although their callers have gone; while there are so
    many, no more of these are taken. Few, because each holds its list of parts; more than ``upload_attempts_max``, so
    that no single upload can be the cause."""
    left_completions_total_max: int = 1024
    """The same of all together; well below ``mutations_max``, which is everybody's."""
    operations_max: int = 256
    """Operations on the stores that a worker has under way; more wait. One that waits for its client does not count."""
    operations_queue_max: int = 256
    """Operations that wait for their turn; more are refused as busy."""
    operation_wait_seconds_max: float = 5.0
    """How long an operation waits for its turn before it is refused as busy."""
    operations_bulk_percent: int = 50
    """Of both, how much those operations may have that come in bulk, or take long: the rest is for single ones."""
    database_queue_max: int = 4096
    """Operations waiting for one embedded database; more are refused as busy."""
    database_batch_max: int = 256
    """Write operations that share one commit."""
    database_batch_bytes_max: int = 16 * MIB
    """Bytes that the operations of one commit write, about; the one that reaches the bound is the last."""
    database_read_batch_max: int = 8
    """Read operations that share one snapshot, and so wait for each other's end."""
    database_checkpoint_bytes: int = 16 * MIB
    """Bytes by which a database's write-ahead log grows between two checkpoints."""
    database_lock_wait_seconds_max: float = 10.0
    """How long a writer waits for another process's transaction before the operation fails as unavailable."""
    postgres_waiting_max: int = 4096
    """Statements that wait for one of a worker's connections to PostgreSQL; more are refused as busy."""
    postgres_connection_wait_seconds_max: float = 5.0
    """How long a statement waits for a connection before it is refused as busy."""
    postgres_idle_seconds_max: float = 300.0
    """A connection that nobody has needed for so long is not used again: something between may have forgotten it."""
    postgres_connection_seconds_max: float = 300.0
    """A connection is replaced when it is as old as this, so that it is noticed if the server's clock has jumped."""
    postgres_lateness_seconds_max: float = 30.0
    """A statement that depends on the time does nothing if it is on its way for longer than this by the server's clock;
    less than ``extension_settled_seconds``."""
    postgres_migration_seconds_max: float = 3600.0
    """How long one step of a migration may take, and how long one waits for another process's."""
    bigtable_calls_max: int = 512
    """Calls to one Bigtable table that a worker has under way; more are refused as busy."""
    bigtable_attempts_max: int = 128
    """Conditional mutations of one operation that lose against others before it fails as unavailable."""
    bigtable_turn_seconds_max: float = 10.0
    """How long a change of the log on Bigtable waits for others of its process that change entries of the same object;
    then it is refused as busy."""
    bigtable_page_rows: int = 500
    """Rows that are read from Bigtable at a time when many are looked through."""
    bigtable_page_bytes: int = 4 * MIB
    """Bytes of those rows after which fewer are read at a time, and the rest later; each of them is read whole."""
    bigtable_walk_rows: int = 2_000
    """Rows of a high-volume table that one call of `remove_markers` looks at, at most; the next goes on from there."""
    bigtable_hints_known_max: int = 65_536
    """Index rows that a process remembers to be of writes that are over."""
    object_store_attempts_max: int = 4
    """Times one request to an object store is made, where that is safe."""
    object_store_pause_seconds_max: float = 2.0
    """The longest pause between two of them."""
    object_store_assembly_seconds_max: float = 600.0
    """How long an object store may take to make an object of the parts of an upload."""
    identity_wait_seconds_max: float = 3.0
    """How long a starting process waits for another one that seems to be giving new stores their identity."""
    directory_lock_wait_seconds_max: float = 30.0
    """How long a starting process waits for others that are starting on the same blob directory."""
    background_tasks_max: int = 1024
    """Cleanups under way off the callers' paths; beyond it the caller does its own."""
    sweep_batch: int = 256
    """Entries or rows that one step of the sweeper takes at a time."""
    sweep_concurrency: int = 8
    """Entries that one sweeper settles at the same time."""

    # Processes
    config_bytes_max: int = MIB
    """Bytes of a configuration file."""
    request_head_seconds_max: float = 30.0
    """How long a client may take to send a request's target and headers."""
    worker_stop_seconds_max: float = 60.0
    """How long a worker process may take to close its stores after its last request, before it is killed."""
    worker_restart_seconds_max: float = 5.0
    """The longest pause before a worker process that keeps dying is started again."""

    @property
    def new_entry_kept_seconds_min(self) -> float:
        """An entry of role new is not forgotten sooner than this after it was recorded: when its operation must have
        given up, by a clock that is behind by half an operation's time, and the stores have finished what they had.
        """
        return 1.5 * self.operation_deadline_seconds + self.sweep_second_visit_seconds

    @classmethod
    def tiny(cls) -> "Limits":
        """Bounds so small that a test reaches each of them with a few bytes: "large" begins at 65 bytes."""
        return cls(
            key_bytes_max=4 * KIB,
            headers_max=64,
            metadata_bytes_max=2 * KIB,
            custom_metadata_max=8,
            object_bytes_max=64 * KIB,
            parts_max=8,
            part_bytes_max=32 * KIB,
            parts_listed_max=3,
            session_unit_bytes_min=16,
            complete_keep_alive_seconds=0.05,
            complete_overtime_seconds_max=1.0,
            complete_wait_seconds_max=1.0,
            upload_lock_wait_seconds_max=5.0,
            upload_retention_seconds=3600.0,
            outcome_retention_seconds=3600.0,
            batch_operations_max=6,
            batch_refused_max=3,
            batch_part_bytes_max=256,
            batch_bytes_max=64 * KIB,
            batch_held_max=2,
            batches_max=4,
            inline_bytes_max=64,
            stream_chunk_bytes=16,
            commit_attempts_max=64,
            read_attempts_max=16,
            bigtable_calls_max=64,
            database_queue_max=64,
            database_batch_max=4,
            database_batch_bytes_max=256,
            database_checkpoint_bytes=64 * KIB,
            operation_deadline_seconds=900.0,
            entry_grace_seconds=600.0,
            sweep_lease_seconds=60.0,
            sweep_second_visit_seconds=60.0,
            mutations_max=64,
            background_tasks_max=8,
            sweep_batch=4,
            sweep_concurrency=2,
        )
