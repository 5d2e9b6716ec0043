"""The XML documents of Google's XML API for multipart uploads, and the error documents of both its APIs.

Written from Google's public reference (its pages "Initiate", "Upload a part", "List parts", "List uploads", "Complete"
and "Abort" of a multipart upload, and "HTTP status and error codes" for XML and for JSON).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from xml.etree import ElementTree as ET

from aiohttp import web

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
XML = "application/xml; charset=UTF-8"


class Refused(Exception):
    """What a request is answered with instead of what it wanted."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message


NO_SUCH_UPLOAD = Refused(404, "NoSuchUpload", "The requested upload was not found.")
NO_SUCH_BUCKET = Refused(404, "NoSuchBucket", "The specified bucket does not exist.")


def refusal_xml(refused: Refused) -> web.Response:
    """An error as the XML API says it."""
    error = ET.Element("Error")
    for name, text in (("Code", refused.code), ("Message", refused.message)):
        ET.SubElement(error, name).text = text
    return web.Response(status=refused.status, body=_serialized(error), headers={"Content-Type": XML})


def refusal_json(status: int, reason: str, message: str) -> web.Response:
    """An error as the JSON API says it."""
    told = {"message": message, "domain": "global", "reason": reason}
    return web.json_response({"error": {"code": status, "message": message, "errors": [told]}}, status=status)


def document(name: str, fields: Iterable[tuple[str, str]], rows: Iterable[ET.Element] = ()) -> web.Response:
    """A successful answer whose root is ``name``."""
    root = ET.Element(name, {"xmlns": NAMESPACE})
    for field, text in fields:
        ET.SubElement(root, field).text = text
    root.extend(rows)
    return web.Response(body=_serialized(root), headers={"Content-Type": XML})


def row(name: str, fields: Iterable[tuple[str, str]]) -> ET.Element:
    """One of several things that a document lists."""
    element = ET.Element(name)
    for field, text in fields:
        ET.SubElement(element, field).text = text
    return element


def instant(seconds: float) -> str:
    """A time as the XML API writes it, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class NamedPart:
    """A part as a request to complete names it."""

    number: int
    etag: str


def parse_complete(body: bytes) -> Sequence[NamedPart]:
    """The parts that a request to complete names. Raises `Refused` for anything that is not that document."""
    malformed = Refused(400, "MalformedCompleteMultipartUploadRequest", "The XML you provided was not well-formed.")
    try:
        root = ET.fromstring(body)
    except ET.ParseError:
        raise malformed from None
    if _bare(root.tag) != "CompleteMultipartUpload":
        raise malformed
    parts = []
    for element in root:
        fields = {_bare(field.tag): field.text or "" for field in element}
        if _bare(element.tag) != "Part" or set(fields) != {"PartNumber", "ETag"} or not fields["PartNumber"].isdigit():
            raise malformed
        parts.append(NamedPart(int(fields["PartNumber"]), fields["ETag"].strip().strip('"')))
    if not parts:
        raise malformed
    return parts


def _bare(tag: str) -> str:
    """A tag without its namespace."""
    return tag.rpartition("}")[2]


def _serialized(root: ET.Element) -> bytes:
    return b"<?xml version='1.0' encoding='UTF-8'?>" + ET.tostring(root)
