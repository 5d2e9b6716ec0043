"""The floor: the least that the same HTTP server can cost. It reads bodies, answers with constants, stores nothing."""

from starlette.types import Receive, Scope, Send

from tierstore.limits import KIB

_CHUNK = bytes(256 * KIB)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """GET ``/{size}/…`` answers that many bytes; PUT reads its body and answers a few."""
    if scope["type"] != "http":
        return
    if scope["method"] == "PUT":
        while (await receive()).get("more_body", False):
            continue
        size = 16
    else:
        size = int(scope["path"].split("/")[1])
    headers = [(b"content-length", str(size).encode()), (b"content-type", b"application/octet-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    while size > len(_CHUNK):
        await send({"type": "http.response.body", "body": _CHUNK, "more_body": True})
        size -= len(_CHUNK)
    await send({"type": "http.response.body", "body": _CHUNK[:size]})
