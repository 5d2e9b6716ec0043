"""Names that survive a loss of power, where that is ours to see to."""

from pathlib import Path

import pytest

from tierstore.embedded.directories import sync_directory, sync_name_of


def test_a_directory_and_its_name_are_synced(tmp_path: Path) -> None:
    """Where it can be done, it is."""
    (tmp_path / "new").mkdir()
    sync_directory(tmp_path / "new")
    sync_name_of(tmp_path / "new")


@pytest.mark.parametrize("above", ["/proc/self", "/sys"])
def test_a_name_on_a_filesystem_that_syncs_nothing_is_passed_over(above: str) -> None:
    """As of a volume that is mounted into a read-only image: the server starts all the same."""
    inside = next(path for path in sorted(Path(above).iterdir()) if path.is_dir() and not path.is_symlink())
    with pytest.raises(OSError, match="Invalid argument"):
        sync_directory(inside.parent)
    sync_name_of(inside)


def test_a_name_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """Only what a filesystem cannot do is passed over."""
    with pytest.raises(FileNotFoundError):
        sync_name_of(tmp_path / "missing" / "directory")
