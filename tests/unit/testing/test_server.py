"""What the harness knows of the server that it has started."""

from tierstore.testing.server import living_workers


def test_workers_are_known_also_by_a_line_behind_half_a_one() -> None:
    """A process that is killed as it writes may leave half a line, and the next one is then written behind it."""
    lines = [
        '{"worker_pid":11,"event":"worker started","level":"info"}\n',
        '{"method":"PUT","scopes":{"a":"b"},"pa{"worker_pid":12,"event":"worker started","more":{"c":1}}\n',
        '{"event":"worker died","worker_pid":11}\n',
        '{"event":"listening"}\n',
        '{"worker_pid":13,"event":"worker started"}\n',
    ]
    assert living_workers(lines) == [12, 13]
