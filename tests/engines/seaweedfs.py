"""SeaweedFS for tests: a real store that speaks S3, all of it in one process; the binary of the development lock.

``SEAWEEDFS`` names another one, to try another version. What it keeps survives that it is killed.
"""

import itertools
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import botocore.auth
import botocore.awsrequest
import botocore.credentials
import requests

from tests.engines.engine import HOST, Engine, executable, free_ports

ACCESS_KEY = "devkey"
SECRET_KEY = "devsecret123"
REGION = "us-east-1"
_GRPC = 10_000
"""The server takes each port once more, so much higher."""


class SeaweedFs(Engine):
    """One SeaweedFS with the bucket ``longterm``."""

    name = "seaweedfs"
    bucket: ClassVar[str] = "longterm"
    _prefixes: ClassVar["itertools.count[int]"] = itertools.count()

    def __init__(self) -> None:
        self._binary = os.environ.get("SEAWEEDFS") or executable("weed", Path(sys.executable).parent)
        self._ports = free_ports(5, beside=(_GRPC,))
        self._session = requests.Session()
        super().__init__(port=self._ports[0])

    @property
    def url(self) -> str:
        """Where it speaks S3."""
        return f"http://{self.address}"

    def new_prefix(self) -> str:
        """A prefix of keys that no test has had."""
        return f"test-{os.getpid()}-{next(self._prefixes)}"

    def environment(self) -> Mapping[str, str]:
        return {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}

    def command(self) -> Sequence[str]:
        s3, master, volume, filer, admin = self._ports
        return [
            self._binary, "-logtostderr=true", "mini", f"-dir={self.home}", f"-ip={HOST}", f"-ip.bind={HOST}",
            f"-s3.port={s3}", f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}",
            f"-admin.port={admin}", "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
            "-master.telemetry=false", "-s3.autoCreateBucket=false", f"-bucket={self.bucket}",
        ]  # fmt: skip

    def answers(self) -> bool:
        # It says that it is ready before it can write.
        return self.ask("PUT", "ready", b"ready").status_code == 200

    def close(self) -> None:
        super().close()
        self._session.close()

    def ask(self, method: str, key: str, body: bytes = b"", query: str = "") -> requests.Response:
        """A signed request about one object, or with an empty key about the bucket, by another client than ours."""
        return self._ask(method, f"{self.bucket}{'/' if key else ''}{key}{'?' if query else ''}{query}", body)

    def put_bucket(self, bucket: str) -> bool:
        """Make a bucket; whether it is there now."""
        return self._ask("PUT", bucket).ok

    def delete_bucket(self, bucket: str) -> bool:
        """Remove a bucket with all that is in it; whether it has gone."""
        for key in re.findall(r"<Key>([^<]*)</Key>", self._ask("GET", f"{bucket}?list-type=2").text):
            self._ask("DELETE", f"{bucket}/{key}")
        return self._ask("DELETE", bucket).ok

    def _ask(self, method: str, target: str, body: bytes = b"") -> requests.Response:
        url = f"{self.url}/{target}"
        request = botocore.awsrequest.AWSRequest(method, url, data=body)
        credentials = botocore.credentials.Credentials(ACCESS_KEY, SECRET_KEY)
        botocore.auth.S3SigV4Auth(credentials, "s3", REGION).add_auth(request)
        headers = {name: str(value) for name, value in request.headers.items()}
        return self._session.request(method, url, data=body, headers=headers, timeout=10)
