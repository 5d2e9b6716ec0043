"""The layouts of blobs that uploads have made: remembered, read from beside the blob, or found out from the blob
itself.

Guarantees: a layout is given only for the state of the blob (ETag) that it was found true of: it was made together with
that state, or every trailer is where it says. `S3Layouts.certain` leaves it beside the blob, so that later readers make
one small request, and none once they remember it. What is kept beside a blob can be lost or damaged without harm.
"""

import struct
from collections.abc import Sequence
from dataclasses import replace

from tierstore.backends.long_term.s3_bucket import S3Bucket, Stored
from tierstore.backends.long_term.s3_stream import corrupt
from tierstore.errors import CorruptObject, Unavailable
from tierstore.limits import Limits
from tierstore.object_storage.layout import KnownLayout, Layout, LayoutCache, etag_of_parts
from tierstore.object_storage.names import Names
from tierstore.object_storage.trailer import Trailer, trailer_bytes
from tierstore.tasks import for_each
from tierstore.types.ids import Revision
from tierstore.types.multipart import PartName
from tierstore.types.ranges import Span

_REMEMBERED_PARTS_MAX = 1 << 18
"""Parts of all layouts that are remembered: 8 bytes each, or a little more."""
_TRAILERS_AT_ONCE = 8


class S3Layouts:
    """The layouts of one bucket's blobs."""

    def __init__(self, bucket: S3Bucket, names: Names, limits: Limits) -> None:
        self._bucket = bucket
        self._names = names
        self._limits = limits
        self._remembered = LayoutCache(_REMEMBERED_PARTS_MAX)

    async def expected(self, revision: Revision) -> KnownLayout | None:
        """What is remembered, or kept beside the blob. Whoever uses it compares the ETag. None if there is nothing."""
        if (known := self._remembered.get(revision)) is not None:
            return known
        raw = await self._bucket.content(self._names.layout(revision))
        if raw is None:
            return None
        try:
            known = KnownLayout.decode(raw, revision)
        except (CorruptObject, struct.error, UnicodeDecodeError):
            return None
        self._remembered.put(revision, known)
        return known

    async def found_out(self, revision: Revision, stored: Stored, end: bytes) -> KnownLayout:
        """The layout that the blob itself tells. ``end`` is the last of it.

        Raises `CorruptObject`, and `Unavailable` when the blob is not as ``stored`` any more.
        """
        length, sizes = trailer_bytes(revision), list[int]()
        stop, numbers_below = stored.stored_bytes, self._limits.parts_max + 1
        while stop:
            if sizes:
                end = await self._at(revision, Span(stop - length, stop), stored)
            trailer = Trailer.decode(end[-length:], revision)
            if trailer.size + length > stop or not 0 < trailer.number < numbers_below:
                raise corrupt(revision, "its parts are not what their ends say")
            sizes.append(trailer.size)
            stop, numbers_below = stop - length - trailer.size, trailer.number
            if 0 < stop < length:
                raise corrupt(revision, "its parts are not what their ends say")
        known = KnownLayout(Layout(revision, sizes[::-1]), stored.etag, of_parts=False)
        self._remembered.put(revision, known)
        return known

    async def certain(self, revision: Revision, stored: Stored, end: bytes, *, keep: bool) -> KnownLayout:
        """The layout of a blob as it is now; with ``keep`` it is beside the blob when this returns.

        Raises as `found_out` does.
        """
        known = await self.expected(revision)
        if known is None or not is_of(known, stored):
            known = await self.found_out(revision, stored, end)
        if keep and not known.is_kept:
            await self._keep(revision, known)
        return known

    async def made(self, revision: Revision, etag: str, sizes: Sequence[int], parts: Sequence[PartName]) -> bool:
        """The store says that it has made a blob with this ETag, of these parts; whether that is certain, and kept."""
        layout = Layout(revision, sizes)
        of_parts = etag == etag_of_parts([part.etag for part in parts])
        if not of_parts and not await self._is_true(revision, layout, etag):
            return False
        await self._keep(revision, KnownLayout(layout, etag, of_parts))
        return True

    async def forget(self, revision: Revision) -> None:
        """Remove what is kept of a blob that is gone."""
        self._remembered.forget(revision)
        await self._bucket.delete(self._names.layout(revision))

    def drop(self, revision: Revision) -> None:
        """Do not remember a layout any more: it is not that of the blob."""
        self._remembered.forget(revision)

    async def _keep(self, revision: Revision, known: KnownLayout) -> None:
        """Leave a layout beside the blob, and remember that it is there, too: `certain` relies on it.

        Whoever deletes a blob deletes its layout after it, and a blob that has gone does not come back. So either the
        blob is seen to be gone here, or its layout is deleted there.
        """
        self._remembered.put(revision, known)
        await self._bucket.put(self._bucket.url(self._names.layout(revision)), known.encode(revision))
        if await self._bucket.part(self._names.blob(revision), Span(0, 1)) is None:
            await self.forget(revision)
        else:
            self._remembered.put(revision, replace(known, is_kept=True))

    async def _is_true(self, revision: Revision, layout: Layout, etag: str) -> bool:
        """Whether the blob has this ETag, and a trailer at each place where the layout has one."""

        async def has_trailer(place: tuple[int, int]) -> bool:
            size, start = place
            try:
                found = await self._bucket.part(self._names.blob(revision), Span(start, start + layout.trailer_bytes))
                if found is None or found[0].etag != etag or found[0].stored_bytes != layout.stored_bytes:
                    return False
                return Trailer.decode(found[1], revision).size == size
            except (CorruptObject, Unavailable):  # whoever looks next finds it out again
                return False

        places = zip(layout.sizes, layout.trailer_starts(), strict=True)
        return all(await for_each(places, has_trailer, at_once=_TRAILERS_AT_ONCE))

    async def _at(self, revision: Revision, span: Span, stored: Stored) -> bytes:
        found = await self._bucket.part(self._names.blob(revision), span)
        if found is None or found[0].etag != stored.etag or len(found[1]) != len(span):
            raise Unavailable("the blob has changed while it was looked at; try again")
        return found[1]


def is_of(known: KnownLayout, stored: Stored) -> bool:
    """Whether a layout is that of a blob as it is stored now."""
    return known.etag == stored.etag and known.layout.stored_bytes == stored.stored_bytes
