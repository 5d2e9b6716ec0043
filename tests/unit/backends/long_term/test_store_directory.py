"""The directory of a filesystem store."""

import fcntl
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from tierstore.backends.long_term.blob_file import BlobWriter
from tierstore.backends.long_term.store_directory import StoreDirectory
from tierstore.errors import Broken, StartupError, Unavailable
from tierstore.testing.ids import SeededIds
from tierstore.types.ids import ObjectId, Revision

NOBODY = 65534
_ids = SeededIds(77)


@contextmanager
def opened(root: Path) -> Iterator[StoreDirectory]:
    """A store's directory, held by one more instance."""
    directory = StoreDirectory.open(root, _ids.uuid())
    assert directory is not None
    try:
        yield directory
    finally:
        directory.close()


@contextmanager
def unprivileged() -> Iterator[None]:
    """As somebody whom permissions bind."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


def put(directory: StoreDirectory, uuid: UUID, content: bytes = b"content") -> Path:
    """The file of a blob that was just written."""
    BlobWriter(directory, Revision(ObjectId("photos", (), "k"), uuid)).publish([content], 1)
    return directory.blob_file(uuid)


def abandoned_instance(root: Path, *files: str, lock: bool = True) -> Path:
    """What a process that was killed leaves behind."""
    directory = root / "tmp" / str(_ids.uuid())
    directory.mkdir()
    for name in (*files, *(["lock"] if lock else [])):
        (directory / name).write_bytes(b"half a blob")
    return directory


def test_new_store(root: Path) -> None:
    """A new store is made with its parents, for its user alone."""
    deep = root / "a" / "b"
    with opened(deep) as directory:
        file = put(directory, _ids.uuid())
        made = [root, *root.rglob("*")]
        assert {path.stat().st_mode & 0o777 for path in made if path.is_dir()} == {0o700}
        assert {path.stat().st_mode & 0o777 for path in made if path.is_file()} == {0o600}
        assert file in made
        assert (deep / "format").read_text() == "tierstore long-term filesystem 1\n"


def test_blob_file_name(root: Path) -> None:
    """A blob's file is named by its UUID, in the directory of its last three digits; they vary, the first do not."""
    with opened(root) as directory:
        uuid = UUID("018f3c2e-7b1a-7000-8000-00000000abcd")
        assert directory.blob_file(uuid) == root / "blobs" / "bcd" / f"{uuid}.blob"


@pytest.mark.parametrize("text", ["tierstore long-term filesystem 2\n", "", "something else", "\0" * 100_000])
def test_another_format(root: Path, text: str) -> None:
    """A store of another version, or no store at all, is left alone."""
    with opened(root):
        (root / "format").write_text(text)
    before = sorted(root.rglob("*"))
    with pytest.raises(StartupError, match="only reads"):
        StoreDirectory.open(root, _ids.uuid())
    assert sorted(root.rglob("*")) == before


def test_missing_format(root: Path) -> None:
    """Blobs without a format file are not taken over on a guess."""
    (root / "blobs").mkdir(parents=True)
    with pytest.raises(StartupError, match="no format file"):
        StoreDirectory.open(root, _ids.uuid())


def test_interrupted_start(root: Path) -> None:
    """A start that was killed before the format file had its name does not stop the next one."""
    root.mkdir()
    (root / "format.new").write_text("tierst")
    with opened(root) as directory:
        assert put(directory, _ids.uuid()).exists()


def test_root_is_a_file(root: Path) -> None:
    """A file where the directory should be, or above it, is named."""
    root.write_text("")
    for path in (root, root / "below", root / "further" / "below"):
        with pytest.raises(StartupError, match="is not a directory"):
            StoreDirectory.open(path, _ids.uuid())


def test_root_is_not_writable(root: Path) -> None:
    """A directory that this user may not write is named, with what to do."""
    with opened(root):
        assert (root / "format").exists()
    root.chmod(0)
    try:
        with unprivileged(), pytest.raises(StartupError, match="give this user read and write access"):
            StoreDirectory.open(root, _ids.uuid())
    finally:
        root.chmod(0o700)


def test_published_but_not_durable() -> None:
    """When a blob has its name and its directory cannot be synced, the outcome is open; discarding takes it back."""
    uuid = _ids.uuid()
    with tempfile.TemporaryDirectory() as parent:
        if os.geteuid() == 0:
            os.chown(parent, NOBODY, -1)
        with unprivileged(), opened(Path(parent) / "store") as directory:
            put(directory, uuid).unlink()
            leaf = directory.blob_file(uuid).parent
            leaf.chmod(0o300)
            writer = BlobWriter(directory, Revision(ObjectId("photos", (), "k"), uuid))
            with pytest.raises(Unavailable, match="durable"):
                writer.publish([b"content"], 1)
            assert directory.blob_file(uuid).exists()
            with capture_logs() as logs:
                writer.discard()
            assert not directory.blob_file(uuid).exists()
            assert [entry["event"] for entry in logs] == ["unfinished blob not removed"], "its absence is not durable"
            leaf.chmod(0o700)


def test_root_cannot_be(root: Path) -> None:
    """Any other obstacle is told in the system's words."""
    with pytest.raises(StartupError, match="File name too long"):
        StoreDirectory.open(root / ("x" * 256), _ids.uuid())


def test_reopened(root: Path) -> None:
    """A store that was closed has no trace of the instance, and has its blobs."""
    with opened(root) as directory:
        file = put(directory, _ids.uuid())
    assert list((root / "tmp").iterdir()) == []
    with opened(root):
        assert file.exists()


def test_one_starts_at_a_time(root: Path) -> None:
    """While one process is starting or collecting, another waits, and nobody collects."""
    with opened(root) as directory:
        dead = abandoned_instance(root, "0")
        with (root / "lock").open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            assert directory.remove_debris() == 0
            assert StoreDirectory.open(root, _ids.uuid()) is None
        assert dead.exists()
        assert directory.remove_debris() == 2


def test_debris_of_the_dead(root: Path) -> None:
    """What killed processes left is removed and counted, once; whether they had their lock or not."""
    with opened(root) as directory:
        abandoned_instance(root, "0", "1", "17")
        abandoned_instance(root)
        abandoned_instance(root, lock=False)
        assert directory.remove_debris() == 3 + 1 + 1 + 1
        assert directory.remove_debris() == 0
        assert len(list((root / "tmp").iterdir())) == 1


def test_debris_of_the_living(root: Path) -> None:
    """What another instance is writing is not debris while it lives."""
    with opened(root) as directory, opened(root) as other:
        file = other.temporary_file()
        file.write_bytes(b"half a blob")
        assert directory.remove_debris() == 0
        assert other.remove_debris() == 0
        assert file.exists()


def test_foreign_files_are_left(root: Path) -> None:
    """Files that are not ours are not touched, wherever they are."""
    with opened(root) as directory:
        foreign = [
            root / "note.txt",
            root / "tmp" / "note.txt",
            root / "tmp" / "lost+found" / "1",
            root / "blobs" / "x",
        ]
        for file in foreign:
            file.parent.mkdir(exist_ok=True)
            file.write_text("not ours")
        assert directory.remove_debris() == 0
        assert directory.leaves() == []
    assert all(file.exists() for file in foreign)


def test_listing_passes_over_foreign_files(root: Path) -> None:
    """Only blobs' files are listed, in order, and only where they belong."""
    with opened(root) as directory:
        uuids = sorted(UUID(f"{n:08x}-0000-4000-8000-000000000abc") for n in (3, 1, 2))
        for uuid in uuids:
            put(directory, uuid)
        leaf = root / "blobs" / "abc"
        for name in ("note.txt", f"{uuids[0]}", f"{uuids[0]}.blob.bak", "x.blob", f"{str(uuids[0])[:-1]}d.blob"):
            (leaf / name).write_text("not ours")
        assert directory.leaves() == ["abc"]
        assert directory.uuids("abc") == uuids
        assert directory.uuids("def") == []


def test_removed_leaf_directory(root: Path) -> None:
    """A leaf directory that was removed under us, because it was empty, is made again."""
    with opened(root) as directory:
        uuid = _ids.uuid()
        file = put(directory, uuid)
        directory.remove(file)
        file.parent.rmdir()
        directory.remove(file)
        assert put(directory, uuid).exists()


def nest(directory: Path) -> Path:
    """Make directories within each other until their path is too long for the kernel; return the outermost one."""
    name = "x" * 250
    fd = os.open(directory, os.O_RDONLY)
    for _ in range(20):
        os.mkdir(name, dir_fd=fd)
        inner = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    return directory / name


def test_close_after_everything_was_removed(root: Path) -> None:
    """Closing goes through when the instance's directory is gone, or cannot be removed."""
    with opened(root) as directory:
        (own,) = (root / "tmp").iterdir()
        (own / "lock").unlink()
        own.rmdir()
        assert directory.leaves() == []
    with opened(root):
        (own,) = (root / "tmp").iterdir()
        unremovable = nest(own)
    assert unremovable.exists()


def test_what_cannot_be_removed_is_passed_over(root: Path) -> None:
    """A directory that cannot be collected is logged, and keeps nobody from the others, now or later."""
    with opened(root) as directory:
        stuck = abandoned_instance(root, "0")
        unremovable = nest(stuck)
        no_directory = root / "tmp" / str(_ids.uuid())
        no_directory.write_text("not ours")
        endless = root / "tmp" / str(_ids.uuid())
        endless.mkdir()
        (endless / "lock").symlink_to(endless / "lock")
        others = [abandoned_instance(root, "0"), abandoned_instance(root, "0")]
        for _ in range(2):
            with capture_logs() as logs:
                directory.remove_debris()
            assert {entry["directory"] for entry in logs} == {str(stuck), str(no_directory), str(endless)}
            assert {entry["log_level"] for entry in logs} == {"warning"}
        assert not any(other.exists() for other in others)
        assert unremovable.exists()


def test_directories_are_debris_too(root: Path) -> None:
    """What a dead instance left is removed with all that is in it, without following links; the rest stays."""
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "file").write_text("not ours")
    with opened(root) as directory:
        left = abandoned_instance(root, "0")
        (left / "1").mkdir()
        (left / "1" / "upload").write_text("")
        (left / "1" / "00001.part").write_text("")
        (left / "1" / "within").mkdir()
        (left / "1" / "within" / "file").write_text("")
        (left / "2").symlink_to(outside)
        own = directory.temporary_file()
        own.mkdir()
        assert directory.remove_debris() == 8
        assert not left.exists()
        assert own.exists()
    assert (outside / "file").exists()


def test_removing_an_upload_directory(root: Path) -> None:
    """A directory is gone with all that is in it, and leaves nothing; that it is absent is fine."""
    with opened(root) as directory:
        uuid = _ids.uuid()
        upload = directory.upload_directory(uuid)
        directory.remove_directory(upload)
        upload.mkdir(parents=True)
        (upload / "00001.part").write_text("")
        assert directory.uuids(str(uuid)[-3:]) == []
        directory.remove_directory(upload)
        directory.remove_directory(upload)
        assert not upload.exists()
        assert [path.name for path in directory.temporary_file().parent.iterdir()] == ["lock"]


def test_what_is_gone_is_gone_although_it_cannot_be_removed(root: Path) -> None:
    """A directory whose files cannot be removed is out of its place all the same, and what is left is logged."""
    with opened(root) as directory:
        upload = directory.upload_directory(_ids.uuid())
        upload.mkdir(parents=True)
        nest(upload)
        with capture_logs() as logs:
            directory.remove_directory(upload)
        assert [entry["event"] for entry in logs] == ["temporary directory not removed"]
        assert not upload.exists()


def test_a_start_does_not_wait_for_removals(root: Path) -> None:
    """While what the dead left is removed, however much that is, processes start and other collectors pass it by."""
    met: list[int] = []
    watched = True

    def start_and_collect(event: str, arguments: tuple[object, ...]) -> None:
        if watched and event == "os.remove" and Path(str(arguments[0])).parent == dead:
            with opened(root) as other:
                met.append(other.remove_debris())

    with opened(root) as directory:
        dead = abandoned_instance(root, "0", "1")
        sys.addaudithook(start_and_collect)  # called before each removal
        try:
            assert directory.remove_debris() == 3
        finally:
            watched = False
    assert met == [0, 0, 0]
    assert not dead.exists()


def test_an_interrupted_adoption(root: Path) -> None:
    """An identity is there whole or not at all; what a killed adopter left is debris."""
    with opened(root) as directory:
        left = abandoned_instance(root, "0")
        (left / "0").write_text("018f")
        assert directory.identity() is None
        uuid = _ids.uuid()
        assert directory.adopt(uuid) == uuid
        assert (root / "identity").read_text() == f"{uuid}\n"
        assert (root / "identity").stat().st_mode & 0o777 == 0o600
        assert directory.remove_debris() == 2


@pytest.mark.parametrize("text", ["", "018f3c2e", "\0" * 100_000, f"{UUID(int=1)}\n\n", f"{UUID(int=1)}x"])
def test_a_damaged_identity(root: Path, text: str) -> None:
    """A file that holds no identity is not taken for none, and not replaced."""
    with opened(root) as directory:
        (root / "identity").write_text(text)
        with pytest.raises(Broken, match="damaged"):
            directory.identity()
        with pytest.raises(Broken, match="damaged"):
            directory.adopt(_ids.uuid())
        assert (root / "identity").read_text() == text
