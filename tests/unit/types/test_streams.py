"""A body for readers that keep what has come of it."""

import pytest

from tests.unit.tiering.world import BytesBody
from tierstore.errors import ClientDisconnected, IncompleteBody, ObjectTooLarge, RequestTimeout
from tierstore.types.streams import BodyUntilCut


@pytest.mark.parametrize("error", [IncompleteBody("short"), ClientDisconnected("gone"), RequestTimeout("slow")])
async def test_a_body_ends_where_its_sender_did(error: IncompleteBody | ClientDisconnected | RequestTimeout) -> None:
    """All that has come is handed out, the end is an ordinary one, and stays; the reason is kept."""
    body = BodyUntilCut(BytesBody(b"a" * 25, error=error))
    assert (body.size, body.complete, body.error) == (25, False, None)
    assert b"".join([chunk async for chunk in body]) == b"a" * 25
    assert body.error is error
    assert body.complete
    assert [chunk async for chunk in body] == []


async def test_a_whole_body_is_as_it_is() -> None:
    """It has no error, and is complete with its end."""
    body = BodyUntilCut(BytesBody(b"a" * 25))
    assert await anext(body) == b"a" * 10
    assert not body.complete
    assert b"".join([chunk async for chunk in body]) == b"a" * 15
    assert (body.complete, body.error) == (True, None)


async def test_other_errors_go_through() -> None:
    """What is no fault of the line is no end of the body."""
    body = BodyUntilCut(BytesBody(b"", error=ObjectTooLarge("large")))
    with pytest.raises(ObjectTooLarge):
        await anext(body)
    assert (body.complete, body.error) == (False, None)
