"""What answers of S3 mean."""

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from tierstore.backends.long_term.s3_answers import (
    ListedPart,
    code_of,
    document,
    error_of,
    is_absent,
    moment,
    sentence_of,
)
from tierstore.errors import (
    EntityTooSmall,
    InvalidPart,
    InvalidPartOrder,
    NoSuchUpload,
    ObjectTooLarge,
    StorageFull,
    TierstoreError,
    Unavailable,
)
from tierstore.object_storage.transport import Answer

NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


def answer(status: int, body: str = "", **headers: str) -> Answer:
    """An answer with headers, of which ``a_b`` is written ``a-b``."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Answer(status, CIMultiDictProxy(CIMultiDict(named)), body.encode())


def error(code: str) -> str:
    """An error document."""
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>about secret/key</Message></Error>"


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "NoSuchUpload", NoSuchUpload),
        (400, "InvalidPart", InvalidPart),
        (400, "InvalidPartOrder", InvalidPartOrder),
        (400, "EntityTooSmall", EntityTooSmall),
        (400, "EntityTooLarge", ObjectTooLarge),
        (507, "", StorageFull),
        (507, "XMinioStorageFull", StorageFull),
        (403, "QuotaExceeded", StorageFull),
        (403, "AccessDenied", Unavailable),
        (503, "SlowDown", Unavailable),
        (500, "InternalError", Unavailable),
        (404, "NoSuchBucket", Unavailable),
        (404, "", Unavailable),
        (418, "", Unavailable),
    ],
)
def test_errors(status: int, code: str, kind: type[TierstoreError]) -> None:
    """What a client can cause is its error, and no text of the store's, which names keys, is in it."""
    found = error_of(answer(status, error(code) if code else ""))
    assert type(found) is kind
    assert "secret/key" not in str(found)


@pytest.mark.parametrize(
    ("status", "code", "headers", "words"),
    [
        (404, "NoSuchBucket", {}, "does not exist"),
        (301, "PermanentRedirect", {"x_amz_bucket_region": "eu-west-1"}, "another region (eu-west-1)"),
        (400, "IllegalLocationConstraintException", {}, "another region"),
        (400, "AuthorizationHeaderMalformed", {"x_amz_bucket_region": "eu-west-1"}, "eu-west-1"),
        (403, "RequestTimeTooSkewed", {}, "clocks"),
        (403, "SignatureDoesNotMatch", {}, "credentials"),
        (403, "", {}, "credentials"),
        (500, "InternalError", {}, "500 InternalError"),
    ],
)
def test_operators_are_told_what_to_mend(status: int, code: str, headers: dict[str, str], words: str) -> None:
    """In a sentence."""
    assert words in sentence_of(answer(status, error(code) if code else "", **headers))


def test_an_absent_object_is_told_from_an_absent_bucket() -> None:
    """And from what says nothing."""
    assert is_absent(answer(404, error("NoSuchKey")))
    for other in (answer(404, error("NoSuchBucket")), answer(404), answer(404, "<html>"), answer(200)):
        assert not is_absent(other)


def test_documents() -> None:
    """With and without a namespace, with entities, and with what is left out."""
    part = "<PartNumber>3</PartNumber><ETag>&quot;abc&quot;</ETag><Size>70</Size><LastModified>{}</LastModified>"
    part = f"<Part>{part}</Part>"
    for stored, micros in (("1970-01-01T00:00:02.000Z", 2_000_000), ("1970-01-01T00:00:02", 2_000_000)):
        page = document(
            answer(200, f"<ListPartsResult {NAMESPACE}>{part.format(stored)}</ListPartsResult>"), "ListPartsResult"
        )
        assert list(page.parts()) == [ListedPart(3, "abc", 70, micros)]
        assert not page.truncated
    page = document(answer(200, "<L><IsTruncated>true</IsTruncated><Contents><Key>a&amp;b</Key></Contents></L>"), "L")
    assert (page.truncated, list(page.names()), page.text("NextKeyMarker")) == (True, ["a&b"], "")
    page = document(
        answer(
            200, "<L><Upload><Key>k</Key><UploadId>u</UploadId><Initiated>1970-01-01T00:00:00Z</Initiated></Upload></L>"
        ),
        "L",
    )
    assert [(each.name, each.store_id, each.begun) for each in page.uploads()] == [("k", "u", 0)]


@pytest.mark.parametrize("body", ["", "no xml", "<Other/>", error("InternalError"), "<ListPartsResult>", "\x00"])
def test_what_cannot_be_read_is_unavailable(body: str) -> None:
    """And never an empty listing."""
    with pytest.raises(Unavailable):
        document(answer(200, body), "ListPartsResult")


@pytest.mark.parametrize(
    "part",
    ["<PartNumber>x</PartNumber>", "<PartNumber>1</PartNumber><Size>1</Size><LastModified>soon</LastModified>"],
)
def test_numbers_and_instants_that_are_none(part: str) -> None:
    """Are unavailable."""
    page = document(answer(200, f"<L><Part>{part}</Part></L>"), "L")
    with pytest.raises(Unavailable):
        page.parts()


def test_headers() -> None:
    """The instant that one tells; none is unavailable."""
    said = answer(200, Date="Thu, 01 Jan 1970 00:00:03 GMT", Other="soon")
    assert moment(said.headers, "Date") == 3_000_000
    for name in ("Other", "Missing"):
        with pytest.raises(Unavailable):
            moment(said.headers, name)


def test_errors_within_a_success_have_a_code() -> None:
    """What is no error has none."""
    assert code_of(answer(200, error("InternalError"))) == "InternalError"
    assert [code_of(answer(200, body)) for body in ("", "x", "<Result/>")] == ["", "", ""]
