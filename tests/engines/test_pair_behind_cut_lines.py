"""A resumable upload on engines, whose lines break and whose servers die: the test is that of the embedded stores.

On one pair, for it takes long; all pairs have broken lines in the load of `tests.engines.load`.
"""

import pytest

from tests.end_to_end.test_resumable import (  # noqa: F401  # because pytest finds tests by their names
    test_a_line_that_is_cut_and_a_server_that_is_killed,
)
from tests.engines.deployment import Deployment
from tests.engines.deployments import postgres_and_s3
from tests.engines.postgres import Postgres
from tests.engines.seaweedfs import SeaweedFs


@pytest.fixture
def deployment(postgres: Postgres, seaweedfs: SeaweedFs) -> Deployment:
    """PostgreSQL and SeaweedFS, with nothing in it."""
    return postgres_and_s3(postgres, seaweedfs)
