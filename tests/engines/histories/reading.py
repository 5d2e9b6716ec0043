"""What the names of a history stand for, in one replay of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

from tests.engines.histories.notation import Call, History, is_octets, literal, named_uuid, read_octets
from tests.engines.histories.shapes import INSTANTS, Drawn, Instant, Octets, shown
from tests.engines.histories.sources import Recipe
from tierstore.backends.high_volume.contract import Content, Gone, HeadContent, Inline, InlineHead, RowHead, Tombstone
from tierstore.changelog.entries import Entry, Role, State
from tierstore.clock import UnixMicros
from tierstore.types.ids import ObjectId, Revision
from tierstore.types.multipart import PartName, UploadId
from tierstore.types.ranges import Span


class Different(Exception):
    """What was found, which should have been something else."""


class Reader:
    """Reads arguments, and compares answers. What a store draws is learned from its answers."""

    def __init__(self, history: History, began: UnixMicros) -> None:
        self._objects = {name: ObjectId.from_storage_path(path) for name, path in history.objects.items()}
        self._texts = history.octets
        self._octets = {name: read_octets(text) for name, text in history.octets.items()}
        self._began = began
        self._drawn: dict[str, bytes | str] = {}
        self._names: dict[Drawn, str] = {}
        self._readers: Mapping[tuple[str, str], Callable[[Any], Any]] = {
            ("high_volume", "expected"): self._version,
            ("high_volume", "version"): self._version,
            ("high_volume", "base"): self._row_head,
            ("changelog", "expected"): self.octets,
            ("changelog", "upload"): self.octets,
            ("changelog", "after"): self._entry,
            ("long_term", "upload"): self._upload,
        }
        """By contract, where arguments of one name are not of one kind."""
        self._readers_by_name: Mapping[str, Callable[[Any], Any]] = {
            **dict.fromkeys(INSTANTS, self.instant),
            **dict.fromkeys(("payload", "md5"), self.octets),
            **dict.fromkeys(("revision", "new", "old"), self.revision),
            **dict.fromkeys(("owner", "identity"), named_uuid),
            "object_id": self.object_id,
            "content": self._content,
            "parts": lambda parts: [PartName(number, self._known(tag)) for number, tag in parts],
            "source": lambda source: Recipe(self.octets(source["yields"]), source["ends"]),
            "span": lambda span: Span(*span),
            "entry": self._entry,
        }

    # Reading

    def arguments(self, call: Call) -> dict[str, Any]:
        """What ``call`` is given, by the contract's names; a source as `Recipe`.

        Raises `KeyError` for what the store was to draw and has not shown.
        """
        return {name: self._argument(call.store, name, value) for name, value in call.given.items()}

    def _argument(self, store: str, name: str, value: Any) -> Any:
        read = self._readers.get((store, name)) or self._readers_by_name.get(name)
        return value if read is None else read(value)

    def instant(self, micros: int) -> UnixMicros:
        """The moment that is ``micros`` after the beginning."""
        return self._began + micros

    def octets(self, name: str) -> bytes:
        """The bytes called ``name``; nothing where only their digest was kept."""
        return self._octets[name]

    def is_octets(self, name: str, octets: bytes) -> bool:
        """Whether these are the bytes called ``name``."""
        return is_octets(self._texts[name], octets)

    def object_id(self, name: str) -> ObjectId:
        """The object called ``name``."""
        return self._objects[name]

    def revision(self, name: str) -> Revision:
        """The revision called ``name``."""
        object_name, _, uuid = name.partition("/")
        return Revision(self._objects[object_name], named_uuid(uuid))

    def _known(self, name: str) -> Any:
        """What the store has drawn, or what stands for itself."""
        return name[1:] if name.startswith("=") else self._drawn[name]

    def _version(self, name: str) -> bytes:
        value = self._known(name)
        return bytes.fromhex(value) if isinstance(value, str) else bytes(value)

    def _upload(self, value: str | Sequence[str]) -> Revision | UploadId:
        if isinstance(value, str):
            return self.revision(value)
        revision, store_id = value
        return UploadId(self.revision(revision), self._known(store_id))

    def _content(self, value: Any) -> Content | HeadContent:
        match value:
            case "gone":
                return Gone()
            case {"inline": metadata, "payload": payload}:
                return Inline(self._octets[metadata], self._octets[payload])
            case {"inline": metadata}:
                return InlineHead(self._octets[metadata])
            case {"tombstone": metadata, "revision": uuid}:
                return Tombstone(self._octets[metadata], named_uuid(uuid))
            case _:
                raise ValueError(f"no content: {value}")

    def _row_head(self, value: Mapping[str, Any]) -> RowHead:
        content = self._content(value["content"])
        assert not isinstance(content, Inline)
        expires = None if value["expires"] is None else self.instant(value["expires"])
        return RowHead(self._version(value["version"]), content, expires, self._version(value["fenced"]))

    def _entry(self, value: Sequence[Any]) -> Entry:
        revision, owner, role, state, epoch, sweeps, recorded, not_before, upload = value
        return Entry(
            revision=self.revision(revision),
            owner=named_uuid(owner),
            role=Role(role),
            state=State(state),
            epoch=epoch,
            sweeps=sweeps,
            recorded=self.instant(recorded),
            not_before=self.instant(not_before),
            upload=None if upload is None else self._octets[upload],
        )

    # Comparing

    def compare(self, recorded: Any, shape: Any, *, anew: bool = False) -> None:
        """Compare an answer with the recorded one. Raises `Different`.

        What is drawn ``anew`` may be another thing than what had its name before.
        """
        match shape:
            case dict():
                if not isinstance(recorded, dict) or recorded.keys() != shape.keys():
                    raise Different(shown(shape))
                for key, value in shape.items():
                    self._compare_within(recorded[key], value, shape, anew=anew)
            case list():
                if not isinstance(recorded, list) or len(recorded) != len(shape):
                    raise Different(shown(shape))
                for one, value in zip(recorded, shape, strict=True):
                    self._compare_within(one, value, shape, anew=anew)
            case Drawn():
                self._compare_drawn(recorded, shape, anew=anew)
            case _:
                if not self._is(recorded, shape):
                    raise Different(shown(shape))

    def _compare_within(self, recorded: Any, value: Any, whole: Any, *, anew: bool) -> None:
        try:
            self.compare(recorded, value, anew=anew)
        except Different as different:
            if any(isinstance(each, dict | list) for each in (whole.values() if isinstance(whole, dict) else whole)):
                raise
            raise Different(f"{different}, in {shown(whole)}") from None

    def _compare_drawn(self, name: Any, drawn: Drawn, *, anew: bool) -> None:
        if not isinstance(name, str):
            raise Different(shown(drawn))
        if name.startswith("="):
            if name != literal(drawn.value):
                raise Different(shown(drawn))
            return
        other = self._names.get(drawn)
        if other not in {None, name}:
            raise Different(f"{shown(drawn)}, which is {other}")
        known = self._drawn.get(name)
        if known is not None and known != drawn.value:
            if not anew:
                raise Different(f"{shown(drawn)}, and {name} was {known!r}")
            del self._names[Drawn(drawn.sort, drawn.scope, known)]
        self._drawn[name] = drawn.value
        self._names[drawn] = name

    def _is(self, recorded: Any, leaf: Any) -> bool:
        """Whether what was recorded stands for ``leaf``."""
        if isinstance(leaf, Instant):
            return isinstance(recorded, int) and self.instant(recorded) == leaf.micros
        if isinstance(leaf, Octets | UUID | ObjectId | Revision):
            return isinstance(recorded, str) and self._is_named(recorded, leaf)
        return type(recorded) is type(leaf) and bool(recorded == leaf)

    def _is_named(self, name: str, leaf: Octets | UUID | ObjectId | Revision) -> bool:
        match leaf:
            case Octets(octets):
                return self.is_octets(name, octets)
            case UUID():
                return named_uuid(name) == leaf
            case ObjectId():
                return self.object_id(name) == leaf
            case Revision():
                return self.revision(name) == leaf
