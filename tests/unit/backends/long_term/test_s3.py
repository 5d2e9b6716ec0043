"""Where a bucket is, and what a server does not start with."""

from dataclasses import replace
from pathlib import Path

import pytest

from tierstore.backends.long_term.s3 import S3LongTerm
from tierstore.backends.long_term.s3_bucket import bucket_address
from tierstore.clock import SystemClock
from tierstore.errors import StartupError
from tierstore.idsource import SystemIds
from tierstore.limits import MIB, Limits


@pytest.mark.parametrize(
    ("endpoint", "region", "path_style", "address"),
    [
        ("", "eu-central-1", False, "https://photos.s3.eu-central-1.amazonaws.com"),
        ("", "eu-central-1", True, "https://s3.eu-central-1.amazonaws.com/photos"),
        ("", "cn-north-1", False, "https://photos.s3.cn-north-1.amazonaws.com.cn"),
        ("http://127.0.0.1:8333", "us-east-1", True, "http://127.0.0.1:8333/photos"),
        ("https://s3.example.org/", "us-east-1", False, "https://photos.s3.example.org"),
        ("https://example.org/s3", "us-east-1", True, "https://example.org/s3/photos"),
    ],
)
def test_where_a_bucket_is(endpoint: str, region: str, path_style: bool, address: str) -> None:
    """In the path, or in the name of the host."""
    assert bucket_address(endpoint, region, "photos", path_style=path_style) == address


@pytest.mark.parametrize(
    ("settings", "part_bytes_min", "words"),
    [
        ({"endpoint": "http://127.0.0.1:1"}, 0, "uploads.part_min must not be 0"),
        ({}, 5 * MIB - 1, "uploads.part_min must be at least 5242880"),
        ({"endpoint": "http://127.0.0.1:1", "prefix": "a//b"}, 1, "prefix"),
        ({"endpoint": "s3.example.org"}, 1, "does not begin with http"),
        ({"endpoint": "https://127.0.0.1:1", "ca": "missing.pem"}, 1, "certificates in missing.pem"),
    ],
)
async def test_settings_that_are_wrong(settings: dict[str, str], part_bytes_min: int, words: str) -> None:
    """Are told in words, before anything is asked of the store."""
    limits = replace(Limits(), part_bytes_min=part_bytes_min)
    with pytest.raises(StartupError, match=words):
        await S3LongTerm.open(bucket="photos", limits=limits, clock=SystemClock(), ids=SystemIds(), **settings)  # type: ignore[arg-type]  # because each is a text


async def test_a_file_that_holds_no_certificates(tmp_path: Path) -> None:
    """Is told in words."""
    (tmp_path / "ca.pem").write_text("nothing", encoding="ascii")
    with pytest.raises(StartupError, match="cannot be read"):
        await S3LongTerm.open(
            bucket="photos",
            endpoint="https://127.0.0.1:1",
            ca=str(tmp_path / "ca.pem"),
            limits=replace(Limits(), part_bytes_min=1),
            clock=SystemClock(),
            ids=SystemIds(),
        )
