"""Where things are in Google Cloud Storage: the addresses of both its APIs.

The JSON API serves what it can; multipart uploads are in the XML API alone
(https://cloud.google.com/storage/docs/multipart-uploads). Both are reached by path, not by host name, so that any
endpoint will do.
"""

from collections.abc import Mapping, Sequence
from urllib.parse import quote, urlencode

from yarl import URL

GOOGLE = "https://storage.googleapis.com"


class Addresses:
    """The addresses of one bucket."""

    def __init__(self, endpoint: str, bucket: str) -> None:
        self._endpoint = endpoint.rstrip("/") or GOOGLE
        self._bucket = quote(bucket, safe="")

    def objects(self, **query: str | int) -> URL:
        """All objects of the bucket, in the JSON API."""
        return self._url(f"/storage/v1/b/{self._bucket}/o", query)

    def resource(self, name: str, **query: str | int) -> URL:
        """One object, in the JSON API."""
        return self._url(f"/storage/v1/b/{self._bucket}/o/{quote(name, safe='')}", query)

    def permissions(self, wanted: Sequence[str]) -> URL:
        """Which of the ``wanted`` permissions the account has for the bucket, in the JSON API."""
        path = f"{self._endpoint}/storage/v1/b/{self._bucket}/iam/testPermissions"
        return URL(f"{path}?{urlencode([('permissions', each) for each in wanted])}", encoded=True)

    def new_objects(self, **query: str | int) -> URL:
        """Where objects are sent to, in the JSON API."""
        return self._url(f"/upload/storage/v1/b/{self._bucket}/o", query)

    def uploads(self, name: str, **query: str | int) -> URL:
        """Uploads of an object, or with an empty name of the bucket, in the XML API; `_` in a key is sent as `-`."""
        rest = "".join(f"&{urlencode({_hyphenated(key): value})}" for key, value in query.items())
        return URL(f"{self._endpoint}{self._path(name)}?uploads{rest}", encoded=True)

    def upload(self, name: str, upload_id: str, **query: str | int) -> URL:
        """One multipart upload, in the XML API; ``_`` in a key is sent as ``-``."""
        return self._url(self._path(name), {"uploadId": upload_id} | {_hyphenated(key): query[key] for key in query})

    def _path(self, name: str) -> str:
        """Of an object in the XML API, or of the bucket."""
        return f"/{self._bucket}" + (f"/{quote(name)}" if name else "")

    def _url(self, path: str, query: Mapping[str, str | int]) -> URL:
        return URL(f"{self._endpoint}{path}{'?' if query else ''}{urlencode(query)}", encoded=True)


def _hyphenated(name: str) -> str:
    return name.replace("_", "-")
