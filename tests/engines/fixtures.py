"""The engines as fixtures: each test process starts one of a kind when a test first wants it, and stops it at its end.

Tests share the engine, one after the other, and each has a namespace of its own on it. A test may stop, kill or restart
it, if it leaves it serving. ``tests/conftest.py`` takes all that ``__all__`` names. What an engine needs is imported
when it is wanted: every process that runs tests reads this module, and vendors' libraries take seconds.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.engines.engine import serving

if TYPE_CHECKING:
    from tests.engines.bigtable_emulator import BigtableEmulator
    from tests.engines.fake_gcs import FakeGcs
    from tests.engines.postgres import Postgres
    from tests.engines.seaweedfs import SeaweedFs

__all__ = ["bigtable_emulator", "fake_gcs", "postgres", "seaweedfs"]


@pytest.fixture(scope="session")
def postgres() -> "Iterator[Postgres]":
    """A PostgreSQL server."""
    from tests.engines.postgres import Postgres  # noqa: PLC0415  # because few processes want it

    yield from serving(Postgres)


@pytest.fixture(scope="session")
def fake_gcs() -> "Iterator[FakeGcs]":
    """A fake-gcs-server, in memory."""
    from tests.engines.fake_gcs import FakeGcs  # noqa: PLC0415  # because few processes want it

    yield from serving(FakeGcs)


@pytest.fixture(scope="session")
def seaweedfs() -> "Iterator[SeaweedFs]":
    """A SeaweedFS with one bucket."""
    from tests.engines.seaweedfs import SeaweedFs  # noqa: PLC0415  # because few processes want it

    yield from serving(SeaweedFs)


@pytest.fixture(scope="session")
def bigtable_emulator() -> "Iterator[BigtableEmulator]":
    """Google's emulator of Bigtable, in memory."""
    from tests.engines.bigtable_emulator import BigtableEmulator  # noqa: PLC0415  # because few processes want it

    yield from serving(BigtableEmulator)
