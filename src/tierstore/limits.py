"""Every maximum in one place, with its unit in its name.

`Limits()` is what production uses; a few of them can be set in the config (see `tierstore.config`). `Limits.tiny()`
makes everything small, so that tests meet every edge with a few bytes.
"""

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB


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
    metadata_bytes_max: int = 16 * KIB
    """UTF-8 bytes of an object's metadata: content type, origin, filename, custom names and values together."""
    custom_metadata_max: int = 128
    """Custom metadata entries of one object."""
    object_bytes_max: int = 5 * TIB
    """Bytes of one object."""
    duration_seconds_max: int = 100 * 366 * 86_400
    """Seconds of a ttl or tti."""

    # Tiers
    inline_bytes_max: int = MIB
    """Objects up to this many bytes live inline in the high-volume store; also what a write may buffer."""
    stream_chunk_bytes: int = 256 * KIB
    """Bytes read from or written to a file at once, and so what a streamed request holds."""

    # Protocol
    commit_attempts_max: int = 256
    """Compare-and-writes of one mutation before it gives up with a retryable error."""
    read_attempts_max: int = 64
    """Times a read follows a row that is overwritten under it before it answers with a retryable error."""
    operation_deadline_seconds: float = 6 * 3600.0
    """No mutation compare-and-writes later than this after it began; must be well below ``marker_retention``."""
    marker_retention_seconds: float = 24 * 3600.0
    """A `gone` row, or an expired inline one, keeps its version at least this long."""
    tti_debounce_seconds_max: float = 24 * 3600.0
    """A tti deadline is moved when it is stale by a quarter of its duration, or by this, whichever is less."""

    # Work
    database_queue_max: int = 4096
    """Operations waiting for one embedded database; more are refused as busy."""
    database_batch_max: int = 256
    """Write operations that share one commit."""
    database_lock_wait_seconds_max: float = 10.0
    """How long a writer waits for another process's transaction before the operation fails as unavailable."""
    background_tasks_max: int = 1024
    """Cleanups under way off the callers' paths; beyond it the caller does its own."""
    sweep_batch: int = 256
    """Entries or rows that one step of the sweeper takes at a time."""
    sweep_concurrency: int = 8
    """Entries that one sweeper settles at the same time."""

    @classmethod
    def tiny(cls) -> "Limits":
        """Bounds so small that a test reaches each of them with a few bytes: "large" begins at 65 bytes."""
        return cls(
            key_bytes_max=4 * KIB,
            metadata_bytes_max=2 * KIB,
            custom_metadata_max=8,
            object_bytes_max=64 * KIB,
            inline_bytes_max=64,
            stream_chunk_bytes=16,
            commit_attempts_max=64,
            read_attempts_max=16,
            database_queue_max=64,
            database_batch_max=4,
            background_tasks_max=8,
            sweep_batch=4,
            sweep_concurrency=2,
        )
