"""The metrics that tierstore keeps, under the names it shows them with.

They are process-wide, as the Prometheus client's are. With ``PROMETHEUS_MULTIPROC_DIR`` set before this module is
first imported (``tierstore serve`` does it), the values of all worker processes are added up when they are scraped.
What is looked up only when somebody scrapes (the change log's backlog) is in `tierstore.http.internal`.
"""

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_BYTES = tuple(float(4**power) for power in range(3, 21))  # 64 B to 1 TiB
_OPERATIONS = tuple(float(2**power) for power in range(9))  # 1 to 256

requests = Counter(
    "tierstore_requests",
    "Requests by operation, tier of the object and status; cut_off if a response failed after its status was sent.",
    ["operation", "tier", "status"],
)
request_seconds = Histogram(
    "tierstore_request_seconds", "Time from a request's head to its last byte.", ["operation", "tier"], buckets=_SECONDS
)
object_bytes = Histogram(
    "tierstore_object_bytes", "Sizes of objects written and read.", ["operation", "tier"], buckets=_BYTES
)
requests_in_flight = Gauge(
    "tierstore_requests_in_flight",
    "Requests being served now, without those that wait for their clients.",
    multiprocess_mode="livesum",
)
connections_open = Gauge("tierstore_connections", "Connections open now.", multiprocess_mode="livesum")
connections_max = Gauge("tierstore_connections_max", "Connections that may be open.", multiprocess_mode="livesum")
connections_ended = Counter(
    "tierstore_connections_ended",
    "Connections that were ended because there were too many (connections), because too much was held for clients that "
    "were waited for (memory), or at once, because no other gave way (refused).",
    ["reason"],
)
requests_max = Gauge("tierstore_requests_max", "Requests that may be served at once.", multiprocess_mode="livesum")
operations_in_flight = Gauge(
    "tierstore_operations_in_flight",
    "Operations on the stores under way now, without those that wait for their clients.",
    multiprocess_mode="livesum",
)
operations_waiting = Gauge(
    "tierstore_operations_waiting", "Operations on the stores that wait for their turn.", multiprocess_mode="livesum"
)
operations_max = Gauge(
    "tierstore_operations_max", "Operations on the stores that may be under way at once.", multiprocess_mode="livesum"
)
operations_queue_max = Gauge(
    "tierstore_operations_queue_max", "Operations on the stores that may wait at once.", multiprocess_mode="livesum"
)
operations_refused = Counter(
    "tierstore_operations_refused", "Operations that were refused because the stores are busy.", ["reason"]
)
rate_limited = Counter(
    "tierstore_rate_limited",
    "Requests that met a rate limit, by kind and limit: refused, or only reported.",
    ["kind", "limit", "outcome"],
)
limits_judged_apart = Counter(
    "tierstore_limits_judged_apart",
    "Requests admitted by a worker's own buckets, while another had stopped in a change of the shared ones.",
)
killswitched_requests = Counter("tierstore_killswitched_requests", "Requests that a killswitch refused.")
policy_violations = Counter("tierstore_policy_violations", "Inserts that the policy of their usecase refused.")
commit_conflicts = Counter(
    "tierstore_commit_conflicts", "Compare-and-writes that lost a race and were repeated.", ["operation"]
)
dangling_tombstones = Counter(
    "tierstore_dangling_tombstones", "Reads that found a tombstone whose blob does not exist: a lost object."
)
corrupt_reads = Counter(
    "tierstore_corrupt_reads", "Reads that failed because stored bytes did not match their checksum.", ["tier"]
)
batch_operations = Counter(
    "tierstore_batch_operations",
    "Operations of batch requests by kind and status; 499 if nobody was left to be told.",
    ["kind", "status"],
)
deadline_bumps = Counter("tierstore_deadline_bumps", "Deadlines of tti objects moved by an access.", ["outcome"])
background_failures = Counter("tierstore_background_failures", "Background tasks that failed.", ["task"])
uploads_begun = Counter("tierstore_uploads_begun", "Multipart uploads that were begun.")
upload_parts = Counter("tierstore_upload_parts", "Parts of multipart uploads that were stored.")
upload_part_bytes = Histogram("tierstore_upload_part_bytes", "Sizes of parts that were stored.", buckets=_BYTES)
upload_completes = Counter(
    "tierstore_upload_completes", "Attempts to complete a multipart upload, by what their client was told.", ["outcome"]
)
upload_claims = Histogram(
    "tierstore_upload_claims",
    "How often a multipart upload was claimed until it was committed, by all attempts together; one that lost a race "
    "claims again.",
    buckets=_OPERATIONS,
)
upload_aborts = Counter(
    "tierstore_upload_aborts",
    "Multipart uploads that were aborted: by a client, or because nobody finished them.",
    ["by"],
)
sweep_runs = Counter("tierstore_sweep_runs", "Runs of the sweeper.", ["outcome"])
sweep_results = Counter("tierstore_sweep_results", "What the sweeper did, by item.", ["result"])
sweep_seconds = Histogram("tierstore_sweep_seconds", "Duration of a run of the sweeper.", buckets=_SECONDS)
database_batch_operations = Histogram(
    "tierstore_database_batch_operations",
    "Write operations that shared one commit of an embedded database.",
    ["database"],
    buckets=_OPERATIONS,
)
engine_connections = Gauge(
    "tierstore_engine_connections", "Connections to a store's engine.", ["store"], multiprocess_mode="livesum"
)
engine_connection_wait_seconds = Histogram(
    "tierstore_engine_connection_wait_seconds",
    "How long calls of a store waited for a connection, those that had to.",
    ["store"],
    buckets=_SECONDS,
)

for _store in ("high_volume", "change_log", "long_term"):  # so that they are shown, whatever the stores are
    engine_connections.labels(_store)
    engine_connection_wait_seconds.labels(_store)

# Counters that alerts watch exist from the start: an increase from nothing to 1 is invisible to `increase()`.
for _counter, _values in (
    (connections_ended, ("connections", "memory", "refused")),
    (commit_conflicts, ("put_blob", "put_inline", "delete", "complete")),
    (corrupt_reads, ("high_volume", "long_term")),
    (deadline_bumps, ("moved", "lost", "failed", "skipped")),
    (
        background_failures,
        (
            *("put", "delete", "extend_expiry", "initiate_upload", "upload_part", "complete_upload", "abort_upload"),
            *("create_session", "append", "query_session", "cancel_session"),
            *("clean_up", "discard", "expedite", "extend", "finish_upload", "sweeper"),
        ),
    ),
    (upload_completes, ("completed", "repeated", "no_such_upload", "invalid", "retry", "error")),
    (upload_aborts, ("client", "retention")),
    (operations_refused, ("queue_full", "waited_too_long")),
    (sweep_runs, ("ok", "failed")),
    (
        sweep_results,
        ("kept", "done", "deleted", "forgotten", "expired", "lost", "error", "marker_removed", "debris_removed"),
    ),
):
    for _value in _values:
        _counter.labels(_value)

for _kind, _limits in (
    ("throughput", ("global", "usecase", "scope", "rule")),
    ("bandwidth", ("global", "usecase", "scope")),
):
    for _limit in _limits:
        for _outcome in ("refused", "reported"):
            rate_limited.labels(_kind, _limit, _outcome)

for _kind, _status in (("get", "200"), ("head", "204"), ("insert", "201"), ("delete", "204")):
    batch_operations.labels(_kind, _status)
