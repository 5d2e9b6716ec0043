"""Resumable uploads and batches on each pair of engines: the tests are those of the embedded stores.

Processes that race for one session; a thousand operations in a batch.
"""

import pytest

from tests.end_to_end.test_batch import (  # noqa: F401  # because pytest finds tests by their names
    test_a_thousand_mixed_operations,
)
from tests.end_to_end.test_resumable import (  # noqa: F401  # because pytest finds tests by their names
    test_a_session_is_no_process_own,
    test_processes_race_for_one_session,
)
from tests.engines.deployment import Deployment


@pytest.fixture
def deployment(new_pair: Deployment) -> Deployment:
    """Each pair, with nothing in it."""
    return new_pair
