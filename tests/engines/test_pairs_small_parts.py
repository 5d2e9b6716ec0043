"""Multipart uploads of the public client whose parts are small, where the long-term store is an engine that takes them.

The tests are the embedded stores', of ``tests/end_to_end/test_multipart.py``.
"""

from collections.abc import Iterator

import pytest

from tests.end_to_end.test_multipart import (  # noqa: F401  # because pytest finds tests and fixtures by their names
    session,
    test_a_listed_part_tells_what_it_is,
    test_another_client_process_resumes_from_the_listing,
    test_compressed_parts,
    test_metadata_of_the_beginning_is_the_objects,
    test_parts_in_parallel_and_out_of_order,
    test_refused_completions,
    test_streams_as_parts,
)
from tests.engines.deployments import postgres_and_gcs
from tests.engines.fake_gcs import FakeGcs
from tests.engines.postgres import Postgres
from tierstore.testing.server import ServerProcess


@pytest.fixture(scope="module")
def server(postgres: Postgres, fake_gcs: FakeGcs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server on PostgreSQL and what stands in for Google Cloud Storage, which takes parts that are smaller."""
    directory = tmp_path_factory.mktemp("credentials")
    with (
        postgres_and_gcs(postgres, fake_gcs, directory, part_bytes_min=1) as deployment,
        deployment.server(tmp_path_factory.mktemp("data")) as running,
    ):
        yield running
