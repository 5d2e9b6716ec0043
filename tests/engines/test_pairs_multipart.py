"""Multipart uploads of the public client, unchanged, on each pair of engines: the tests are the embedded stores'.

Of ``tests/end_to_end/test_multipart.py`` those that a long-term store has a part in, and whose uploads have one part:
S3 has a smallest size for the others. `tests.engines.test_pairs` has uploads of many parts, which are as large as that.
"""

import pytest

from tests.end_to_end.test_multipart import (  # noqa: F401  # because pytest finds tests and fixtures by their names
    session,
    test_a_completed_upload_takes_nothing_more,
    test_a_stream_that_ends_early,
    test_an_aborted_upload_is_gone,
    test_completes_at_the_same_time,
    test_refused_parts,
    test_refused_uploads,
)
from tierstore.testing.server import ServerProcess


@pytest.fixture
def server(pair_server: ServerProcess) -> ServerProcess:
    """The server of each pair."""
    return pair_server
