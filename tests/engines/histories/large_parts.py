"""Uploads with parts as large as real stores want them, with every mistake; not by dice."""

from dataclasses import replace
from typing import Any, Final

from tests.engines.histories.looking import blobs
from tests.engines.histories.notation import uuid_of
from tests.engines.histories.scene import Scene
from tests.engines.histories.sources import Recipe, Source
from tierstore.limits import KIB, MIB, Limits
from tierstore.types.ids import UPLOAD_UUID_VERSION, ObjectId, Revision
from tierstore.types.multipart import PartName, UploadId
from tierstore.types.ranges import Span

_BY = "a client with large parts"
LARGE_LIMITS: Final = replace(
    Limits.tiny(),
    part_bytes_min=5 * MIB,
    part_bytes_max=6 * MIB,
    object_bytes_max=12 * MIB,
    stream_chunk_bytes=256 * KIB,
)


async def large_parts(scene: Scene) -> None:
    """One upload after the other of parts as large as real stores want them, with every mistake; not by dice."""

    async def ask(name: str, **arguments: Any) -> Any:
        return await scene.ask(_BY, f"long_term.{name}", **arguments)

    async def send(upload: UploadId, number: int, unit: bytes, size: int) -> PartName:
        octets = unit * (size // len(unit))
        source = Source(Recipe(octets, "whole"), None)
        part = await ask("upload_part", upload=upload, number=number, source=source, size=size, md5=None)
        return PartName(number, part.etag)

    first, second, third = (
        Revision(ObjectId("strolls", (), "large"), uuid_of(number, UPLOAD_UUID_VERSION)) for number in (2, 4, 6)
    )
    upload = UploadId(first, await ask("initiate", revision=first))
    one = await send(upload, 1, b"a large part    ", 5 * MIB)
    two = await send(upload, 2, b"another of them ", 5 * MIB)
    three = await send(upload, 3, b"third part large", 5 * MIB)
    await ask("complete", upload=upload, parts=[one, two, three])  # too large
    await ask("complete", upload=upload, parts=[two, one])
    await ask("complete", upload=upload, parts=[one, one])
    stale, two = two, await send(upload, 2, b"small", 1_000)
    await ask("complete", upload=upload, parts=[one, stale])
    await ask("complete", upload=upload, parts=[one, two, three])  # the second is too small
    await ask("complete", upload=upload, parts=[one, PartName(4, two.etag)])
    await ask("list_parts", upload=upload, after=0, limit=9)
    await ask("head", revision=first)
    await ask("complete", upload=upload, parts=[one, three])
    await ask("list_parts", upload=upload, after=0, limit=9)
    await ask("complete", upload=upload, parts=[one, three])
    await ask("complete", upload=upload, parts=[one])
    await ask("abort", upload=upload)
    await ask("head", revision=first)
    await ask("get", revision=first)
    await ask("get", revision=first, span=Span(5 * MIB - 8, 5 * MIB + 8))
    await ask("get", revision=first, span=Span(10 * MIB - 16, 10 * MIB))
    begun = UploadId(second, await ask("initiate", revision=second))
    await ask("complete", upload=begun, parts=[await send(begun, 7, b"alone", 1_000)])
    await ask("get", revision=second)
    given_up = UploadId(third, await ask("initiate", revision=third))
    large = await send(given_up, 1, b"of no use at all", 5 * MIB)
    last = await send(given_up, 2, b"neither", 700)
    await ask("list_parts", upload=given_up, after=0, limit=1)
    await ask("abort", upload=given_up)
    await ask("complete", upload=given_up, parts=[large, last])
    await ask("head", revision=third)
    await blobs(scene, "strolls/", 1)
    for revision in (first, second, third):
        await ask("delete", revision=revision)
    await blobs(scene, "", 2)
