"""The text forms that credentials come in, read strictly: base64url, JSON, parameters of a query.

Guarantees: a text has one meaning or is refused with `UnreadableCredentials`: base64url without padding or stray bits
(RFC 7515, appendix C), JSON objects without repeated members or numbers that are none (RFC 7519, section 4). Messages
never repeat what was read.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn
from urllib.parse import unquote_to_bytes

from tierstore.errors import UnreadableCredentials

_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def decode_base64url(text: str, what: str) -> bytes:
    """The bytes that ``text`` stands for; ``what`` is what it is, for people. Raises `UnreadableCredentials`."""
    if _BASE64URL.fullmatch(text) is None or len(text) % 4 == 1:
        raise UnreadableCredentials(f"{what} is not base64url without padding")
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        raise UnreadableCredentials(f"{what} is not base64url without padding") from None
    if encode_base64url(raw) != text:
        raise UnreadableCredentials(f"{what} is not base64url in its one form")
    return raw


def encode_base64url(raw: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def parse_object(raw: bytes, what: str) -> dict[str, Any]:
    """The JSON object that ``raw`` is; ``what`` is what it is, for people. Raises `UnreadableCredentials`."""
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise UnreadableCredentials(f"{what} is no JSON object, or repeats a member") from None
    if not isinstance(value, dict):
        raise UnreadableCredentials(f"{what} is no JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError
    return members


def _no_constant(_name: str) -> NoReturn:
    raise ValueError


def raw_parameters(raw_query: bytes) -> Iterator[tuple[bytes, bytes | None]]:
    """The parameters of a query as on the wire, names and values; None for the value of one without ``=``."""
    for pair in raw_query.split(b"&"):
        if pair:
            name, equals, value = pair.partition(b"=")
            yield name, value if equals else None


def decode_value(raw: bytes, what: str) -> str:
    """The text of a parameter's value, percent-decoded once. Raises `UnreadableCredentials`."""
    if _BAD_ESCAPE.search(raw) is not None:
        raise UnreadableCredentials(f"{what} has a malformed percent-escape")
    try:
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise UnreadableCredentials(f"{what} is not valid UTF-8") from None
