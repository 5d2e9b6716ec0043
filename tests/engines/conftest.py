"""The pairs of stores, for tests that are to hold on each of them."""

from collections.abc import Iterator

import pytest

from tests.engines.deployment import Deployment
from tests.engines.deployments import PAIRS, deployment_called
from tierstore.testing.server import ServerProcess


def _deployment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    directory = tmp_path_factory.mktemp("credentials")
    with deployment_called(request.param, request.getfixturevalue, directory) as deployment:
        yield deployment


@pytest.fixture(scope="module", params=PAIRS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Each pair of stores in turn, with a namespace of its own for each file of tests."""
    yield from _deployment(request, tmp_path_factory)


@pytest.fixture(params=PAIRS[1:])
def new_pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Each pair of engines in turn, with a namespace of its own for each test."""
    yield from _deployment(request, tmp_path_factory)


@pytest.fixture(scope="session", params=PAIRS[1:])
def pair_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server on each pair of engines in turn, which tests share that do not look at what else there is."""
    directory = tmp_path_factory.mktemp("credentials")
    with (
        deployment_called(request.param, request.getfixturevalue, directory) as deployment,
        deployment.server(tmp_path_factory.mktemp("data")) as server,
    ):
        yield server
