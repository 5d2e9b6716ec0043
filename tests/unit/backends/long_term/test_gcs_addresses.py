"""Addresses in Google Cloud Storage say what they are of, whatever it is called."""

from urllib.parse import parse_qsl, unquote

import pytest

from tierstore.backends.long_term.gcs_addresses import GOOGLE, Addresses
from tierstore.testing.hostile import HOSTILE_KEYS

ADDRESSES = Addresses("http://127.0.0.1:1/", "a-bucket")


@pytest.mark.parametrize("name", HOSTILE_KEYS)
def test_names_come_back(name: str) -> None:
    """What the service decodes is the name that was meant, in both APIs, in one path segment of the JSON API."""
    url = ADDRESSES.resource(name, alt="media")
    assert unquote(url.raw_path.removeprefix("/storage/v1/b/a-bucket/o/")) == name
    assert "/" not in url.raw_path.removeprefix("/storage/v1/b/a-bucket/o/")
    assert unquote(ADDRESSES.upload(name, "id").raw_path.removeprefix("/a-bucket/")) == name


def test_queries_come_back() -> None:
    """Ids of uploads hold whatever the service likes; the parameters of the XML API are written with hyphens."""
    url = ADDRESSES.upload("name", "a+b/c=&d", part_number_marker=3)
    assert parse_qsl(url.raw_query_string) == [("uploadId", "a+b/c=&d"), ("part-number-marker", "3")]
    assert ADDRESSES.uploads("", prefix="a&b").raw_query_string == "uploads&prefix=a%26b"
    assert ADDRESSES.uploads("name").raw_query_string == "uploads"
    wanted = ADDRESSES.permissions(["storage.objects.get", "storage.objects.list"])
    assert [value for _, value in parse_qsl(wanted.raw_query_string)] == ["storage.objects.get", "storage.objects.list"]


def test_the_service_is_googles_unless_told_otherwise() -> None:
    """And nothing is between its address and the path."""
    assert str(Addresses("", "b").objects()) == f"{GOOGLE}/storage/v1/b/b/o"
    assert str(ADDRESSES.objects()) == "http://127.0.0.1:1/storage/v1/b/a-bucket/o"
