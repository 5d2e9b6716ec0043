"""The public client, unchanged, against a server on each pair of engines: the tests are those of the embedded stores.

Of ``tests/end_to_end/test_public_client.py`` all but the ones that look at the server's process, or at what no store
has a part in.
"""

import pytest

from tests.end_to_end.test_public_client import (  # noqa: F401  # because pytest finds tests and fixtures by their names
    session,
    test_a_resumable_threshold_falls_back_to_a_plain_upload,
    test_an_expired_object_is_gone,
    test_as_much_custom_metadata_as_there_may_be_can_be_read,
    test_compression_is_the_clients,
    test_expiration_is_kept,
    test_extend_expiry,
    test_extend_expiry_is_refused,
    test_metadata_comes_back,
    test_put_get_head_delete,
    test_server_made_keys,
    test_streams_of_unknown_length,
    test_tenants_are_apart,
)
from tierstore.testing.server import ServerProcess


@pytest.fixture
def server(pair_server: ServerProcess) -> ServerProcess:
    """The server of each pair."""
    return pair_server
