"""What a browser is told of an object, so that it never runs what somebody has stored.

An object's bytes and its content type are its writer's. Opened at the service's address, HTML, SVG or a script would
run with the rights of that address: with its cookies, and with whatever else is served there. Three headers each
prevent it, for browsers that know only some of them:

- ``content-disposition: attachment`` with every type that is not on the short list of those that no browser runs, so
  that what nobody thought of is saved to a file, and not opened;
- ``x-content-type-options: nosniff`` (with every response of the service): the type is believed, not guessed;
- ``content-security-policy``: should the object be opened all the same, it loads nothing, runs nothing, is of an origin
  of its own, and is framed by nobody.

Does not: change what is stored, or look into payloads. Other clients than browsers pass all of this over.
"""

from functools import lru_cache
from typing import Final

from tierstore.types.metadata import Metadata
from tierstore.types.metadata_headers import Header, content_disposition

NOSNIFF: Final[Header] = (b"x-content-type-options", b"nosniff")
POLICY: Final[Header] = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; sandbox")
_ATTACHMENT: Final = b"attachment"

_INERT_IMAGES = ("apng", "avif", "bmp", "gif", "heic", "heif", "jpeg", "jxl", "png", "tiff", "webp", "x-icon")
_INERT = frozenset({"text/plain", "application/json", *(f"image/{name}" for name in _INERT_IMAGES)})
"""Of images not SVG, which has scripts. PDF has some as well, and its viewers do not work under the policy anyway."""
_INERT_FAMILIES = ("audio/", "video/")
_REMEMBERED_CHARACTERS_MAX = 128


def headers_for_browsers(metadata: Metadata) -> list[Header]:
    """The headers of a response that carries an object of ``metadata``, or tells of it; without `NOSNIFF`.

    With a file name the payload is always offered for download, under that name (the wire protocol's "Metadata
    headers").
    """
    if metadata.filename is not None:
        return [POLICY, (b"content-disposition", content_disposition(metadata.filename))]
    if may_be_opened(metadata.content_type):
        return [POLICY]
    return [POLICY, (b"content-disposition", _ATTACHMENT)]


def may_be_opened(content_type: str) -> bool:
    """Whether a browser may show a payload of this type in its window: it is of a kind that none of them runs.

    Letter case, parameters and spaces around the type mean nothing (RFC 9110, section 8.3.1); what is no media type is
    not opened.
    """
    if len(content_type) > _REMEMBERED_CHARACTERS_MAX:
        return _is_inert(content_type)
    return _is_inert_remembered(content_type)


def _is_inert(content_type: str) -> bool:
    essence = content_type.partition(";")[0].strip(" \t").lower()
    if essence in _INERT:
        return True
    # Whatever is XML may be XHTML, or bring a style sheet that makes it so.
    return essence.startswith(_INERT_FAMILIES) and not essence.endswith("xml")


_is_inert_remembered = lru_cache(maxsize=512)(_is_inert)
