"""Strolls at the long-term store."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.engines.histories.scene import Scene
from tests.engines.histories.sources import Recipe, Source
from tests.engines.histories.stroller import Stroller
from tierstore.types.ids import UPLOAD_UUID_VERSION, Revision
from tierstore.types.multipart import Part, PartName, UploadId


@dataclass(slots=True)
class _Sent:
    """An upload, and what is known of its parts."""

    upload: UploadId
    parts: dict[int, Part] = field(default_factory=dict)
    stale: list[PartName] = field(default_factory=list)
    """Names of parts that others have replaced."""
    ended: bool = False
    """Whether it was completed or aborted."""


class BlobStroller(Stroller):
    """At the long-term store."""

    def __init__(self, scene: Scene, random: Random) -> None:
        super().__init__(scene, random)
        self._revisions: list[Revision] = []
        self._uploads: list[_Sent] = []
        self._steps: Sequence[tuple[int, Callable[[], Any]]] = (
            (3, self._put),
            (4, self._get),
            (1, self._head),
            (1, self._delete),
            (3, self._begin),
            (9, self._send),
            (2, self._list),
            (6, self._complete),
            (2, self._abort),
            (1, self._clean),
        )

    async def step(self) -> None:
        weights = [weight for weight, _ in self._steps]
        ((_, step),) = self.random.choices(self._steps, weights)
        await step()

    def _new(self, version: int) -> Revision:
        self._revisions.append(Revision(self.object(), self.uuid(version)))
        return self._revisions[-1]

    def _known(self) -> Revision:
        return self.random.choice(self._revisions[-6:]) if self._revisions else self._new(4)

    def _some(self) -> _Sent | None:
        return self.random.choice(self._uploads[-3:]) if self._uploads else None

    def _size(self, size: int) -> int | None:
        return self.random.choice([size, size, None])

    async def _put(self) -> None:
        octets = self.octets(200)
        ends = self.random.choice(["whole", "whole", "whole", "IncompleteBody"])
        size = self._size(len(octets))
        if size is not None and ends == "whole" and self.random.random() < 0.2:
            size += self.random.choice([-1, 1]) if size else 1
        arguments = {"not_after": self.later()} if self.random.random() < 0.6 else {}
        there = [one for one in self._revisions if not one.is_upload]
        revision = self.random.choice(there) if there and self.random.random() < 0.1 else self._new(4)
        source = Source(Recipe(octets, ends), None)
        await self.ask("long_term.put", revision=revision, source=source, size=size, **arguments)

    async def _get(self) -> None:
        await self.ask("long_term.get", revision=self._known())

    async def _head(self) -> None:
        await self.ask("long_term.head", revision=self._known())

    async def _delete(self) -> None:
        revision = self._known()
        if revision.is_upload:  # who deletes has aborted it before
            await self.ask("long_term.abort", upload=revision)
        await self.ask("long_term.delete", revision=revision)

    async def _begin(self) -> None:
        revision = self._new(UPLOAD_UUID_VERSION)
        arguments = {"not_after": self.later()} if self.random.random() < 0.6 else {}
        name = await self.ask("long_term.initiate", revision=revision, **arguments)
        if isinstance(name, str):
            self._uploads.append(_Sent(UploadId(revision, name)))
            for _ in range(self.random.randrange(6)):
                await self._send(self._uploads[-1])

    async def _send(self, sent: _Sent | None = None) -> None:
        sent = sent or self._some()
        if sent is None:
            return
        number = self.random.randint(1, 4)
        octets = self.random.randbytes(self.random.choice([0, 5, 20, 20, 30, 30, 120, 120, 120]))
        ends = self.random.choice(["whole", "whole", "whole", "whole", "whole", "IncompleteBody"])
        size, digest = len(octets), hashlib.md5(octets, usedforsecurity=False).digest()
        md5 = self.random.choice([None, None, digest])
        if ends == "whole" and self.random.random() < 0.1:
            size, md5 = size + 1, None
        elif ends == "whole" and self.random.random() < 0.1:
            md5 = bytes(16)
        source = Source(Recipe(octets, ends), None)
        part = await self.ask(
            "long_term.upload_part", upload=sent.upload, number=number, source=source, size=size, md5=md5
        )
        if isinstance(part, Part):
            before = sent.parts.get(number)
            if before is not None and before.etag != part.etag:
                sent.stale.append(PartName(number, before.etag))
            sent.parts[number] = part

    async def _list(self) -> None:
        if (sent := self._some()) is not None:
            after, limit = self.random.randrange(4), self.random.choice([1, 2, 9])
            await self.ask("long_term.list_parts", upload=sent.upload, after=after, limit=limit)

    async def _complete(self) -> None:
        if (sent := self._some()) is None or not sent.parts:
            return
        if await self.ask("long_term.complete", upload=sent.upload, parts=self._named(sent)) is None:
            sent.ended = True

    def _named(self, sent: _Sent) -> list[PartName]:
        """Parts to complete with: right ones, or with one mistake."""
        large = [part for _, part in sorted(sent.parts.items()) if part.size >= self.scene.limits.part_bytes_min]
        names = [PartName(part.number, part.etag) for part in large]
        names = names or [PartName(part.number, part.etag) for _, part in sorted(sent.parts.items())][:1]
        in_bounds = sum(part.size for part in large) <= self.scene.limits.object_bytes_max
        small = [part for part in sent.parts.values() if part.size < self.scene.limits.part_bytes_min]
        wrong = {
            "order": names[::-1] if len(names) > 1 and in_bounds and not sent.ended else None,
            "twice": [names[0], *names] if in_bounds and not sent.ended else None,
            "missing": [*names, PartName(7, names[0].etag)] if in_bounds else None,
            "etag": [PartName(names[0].number, "0" * 32), *names[1:]] if in_bounds else None,
            "stale": [sent.stale[-1]] if sent.stale else None,
            "small": _with_one(small[0], names) if small else None,
        }
        mistake = self.random.choice(["", "", "order", "twice", "missing", "etag", "stale", "small", "small", "small"])
        return wrong.get(mistake) or names

    async def _abort(self) -> None:
        if (sent := self._some()) is not None:
            other = UploadId(self._new(UPLOAD_UUID_VERSION), sent.upload.store_id)
            target = self.random.choice([sent.upload, sent.upload, sent.upload.revision, other])
            await self.ask("long_term.abort", upload=target)
            sent.ended |= target is not other

    async def _clean(self) -> None:
        await self.ask("long_term.remove_debris")


def _with_one(small: Part, names: Sequence[PartName]) -> list[PartName]:
    """A small part, and one behind it if there is one."""
    behind = [name for name in names if name.number > small.number]
    return [PartName(small.number, small.etag), *behind[:1]]
