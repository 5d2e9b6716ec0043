"""What answers of Google Cloud Storage mean."""

import json

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from tierstore.backends.long_term.gcs_answers import code_of, document_of, refusal_of, resource_of, says_no_such_object
from tierstore.errors import (
    Busy,
    ChecksumMismatch,
    EntityTooSmall,
    InvalidPart,
    InvalidPartOrder,
    NoSuchUpload,
    ObjectTooLarge,
    Unavailable,
)
from tierstore.object_storage.transport import Answer

SECRET = "a-users-key"


def answer(status: int, body: bytes | str = b"") -> Answer:
    """An answer with this body."""
    return Answer(status, CIMultiDictProxy(CIMultiDict()), body.encode() if isinstance(body, str) else body)


def xml_error(code: str) -> str:
    """An error as the XML API writes it."""
    return f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>of {SECRET}</Message></Error>"


def json_error(reason: str, status: int) -> str:
    """An error as the JSON API writes it."""
    told = {"message": f"of {SECRET}", "domain": "global", "reason": reason}
    return json.dumps({"error": {"code": status, "message": f"of {SECRET}", "errors": [told]}})


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (404, xml_error("NoSuchUpload"), NoSuchUpload),
        (400, xml_error("InvalidPart"), InvalidPart),
        (400, xml_error("InvalidPartOrder"), InvalidPartOrder),
        (400, xml_error("EntityTooSmall"), EntityTooSmall),
        (400, xml_error("EntityTooLarge"), ObjectTooLarge),
        (400, xml_error("BadDigest"), ChecksumMismatch),
        (404, xml_error("NoSuchBucket"), Unavailable),
        (403, xml_error("AccessDenied"), Unavailable),
        (401, json_error("authError", 401), Unavailable),
        (403, json_error("forbidden", 403), Unavailable),
        (404, json_error("notFound", 404), Unavailable),
        (429, json_error("rateLimitExceeded", 429), Busy),
        (503, json_error("backendError", 503), Unavailable),
        (429, "", Busy),
        (502, "<html>Bad gateway</html>", Unavailable),
        (500, "not & xml", Unavailable),
        (500, b"\xff\xfe", Unavailable),
        (500, '{"error": []}', Unavailable),
        (500, '{"error": {"errors": []}}', Unavailable),
        (500, "[1]", Unavailable),
    ],
)
def test_refusals(status: int, body: bytes | str, error: type[Exception]) -> None:
    """A client's mistake is told as such, all else is passing; what the service says of names is told to nobody."""
    refused = refusal_of(answer(status, body))
    assert type(refused) is error
    assert SECRET not in str(refused)


def test_absence_is_believed_of_objects_alone() -> None:
    """Not of a bucket, and not with another status."""
    assert says_no_such_object(answer(404, "No such object: b/o"))
    assert says_no_such_object(answer(404, json_error("notFound", 404).replace("of ", "No such object: ")))
    assert not says_no_such_object(answer(404, "The specified bucket does not exist."))
    assert not says_no_such_object(answer(403, "No such object: b/o"))


@pytest.mark.parametrize("namespace", ["", ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"', ' xmlns="urn:other"'])
def test_documents_of_any_namespace(namespace: str) -> None:
    """Names are told apart without it; a number that is none, or is missing, is not guessed."""
    document = document_of(answer(200, f"<A{namespace}><B>1</B><B>x</B><IsTruncated>true</IsTruncated></A>"))
    assert (document.name, document.text("B"), document.whole("B"), document.is_truncated) == ("A", "1", 1, True)
    assert len(document.all("B")) == 2
    assert document.text("C") == ""
    for missing in ("C", "IsTruncated"):
        with pytest.raises(Unavailable):
            document.whole(missing)


@pytest.mark.parametrize("body", ["", "{", "[1]", "null", "<a>", b"\xff"])
def test_answers_that_cannot_be_read(body: bytes | str) -> None:
    """They are unavailable, and nothing is made of them; so is a success that is none."""
    with pytest.raises(Unavailable):
        resource_of(answer(200, body))
    with pytest.raises(Unavailable):
        document_of(answer(200, body))
    with pytest.raises(NoSuchUpload):
        document_of(answer(404, xml_error("NoSuchUpload")))
    assert code_of(answer(500, body)) == ""
