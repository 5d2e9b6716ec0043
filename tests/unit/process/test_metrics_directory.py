"""Laws of `tierstore.process.metrics_directory`: which token buckets a process uses.

Metrics need processes of their own: they are in the end-to-end tests.
"""

from pathlib import Path

import pytest

from tierstore.admission.buckets import BucketTable, Charge, Region
from tierstore.errors import StartupError
from tierstore.process.metrics_directory import VARIABLE, open_buckets


def _used(table: BucketTable) -> float:
    return table.used(table.fixed(0), 1.0, 5.0)


def test_a_process_alone_has_buckets_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a shared directory nobody else uses them, and where names lie in them nobody can know."""
    monkeypatch.delenv(VARIABLE, raising=False)
    one, other = open_buckets(lambda: None), open_buckets(lambda: None)
    one.add([Charge(one.fixed(0), 1.0, 1.0, 7.0)], 5.0)
    assert (_used(one), _used(other)) == (7.0, 0.0)
    assert one.named(Region.SCOPE_BYTES, "name") != other.named(Region.SCOPE_BYTES, "name")


def test_processes_with_a_shared_directory_share_buckets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each finds the ones that were made for all."""
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    BucketTable.create(tmp_path / "rate-limits", bytes(16))
    one, other = open_buckets(lambda: None), open_buckets(lambda: None)
    one.add([Charge(one.fixed(0), 1.0, 1.0, 7.0)], 5.0)
    assert (_used(one), _used(other)) == (7.0, 7.0)
    for table in (one, other):
        table.close()


@pytest.mark.parametrize("content", [None, b"", b"short"])
def test_buckets_that_are_not_there_are_no_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    """A worker that cannot share the limits does not serve without them."""
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    if content is not None:
        (tmp_path / "rate-limits").write_bytes(content)
    with pytest.raises(StartupError, match="cannot be shared"):
        open_buckets(lambda: None)
