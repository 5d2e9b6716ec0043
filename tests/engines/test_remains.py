"""What a settled pair of engines must not have is found: what proves a load on engines can fail.

The tests are the embedded stores', of ``tests/kill/test_remains.py``.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.deployment import Deployment
from tests.engines.deployments import deployment_called
from tests.kill.test_remains import (  # noqa: F401  # because pytest finds tests by their names
    test_what_is_not_settled_is_found,
    test_what_is_settled_passes,
)


@pytest.fixture(params=["postgres-s3", "bigtable-s3"])
def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Deployment]:
    """The pairs that are put under load, with nothing in them."""
    with deployment_called(request.param, request.getfixturevalue, tmp_path) as deployment:
        yield deployment
