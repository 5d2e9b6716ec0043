"""A disk that writes down what is done to it: mounted, used by any number of processes, unmounted, read.

Needs Linux, ``/dev/fuse`` and the right to mount. Where that is not there the test is skipped, with the reason; with
``CI=true`` it fails instead.
"""

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.power_loss.journal import Journal

REPOSITORY = Path(__file__).parents[2]
"""Where ``python -m tests.…`` runs."""


class DiskUnavailable(Exception):
    """There can be no recorded disk here, for the reason that the text says."""


class RecordedDisk:
    """A mounted disk. Its journal is known once it has been unmounted."""

    journal: Journal

    def __init__(self, path: Path) -> None:
        self.path = path


@contextlib.contextmanager
def recorded_disk(
    directory: Path, before: Journal = (), fatal: Sequence[int] = (), failing: Sequence[int] = ()
) -> Iterator[RecordedDisk]:
    """A disk with what ``before`` leaves, mounted below ``directory``, which exists. Raises `DiskUnavailable`.

    A process that is about to take one of the ``fatal`` steps, counted from the beginning of the journal, is killed.
    The ``failing`` steps fail with an I/O error, and are not taken.
    """
    mounted, journal = directory / "disk", directory / "journal"
    mounted.mkdir()
    journal.write_bytes(pickle.dumps(list(before)))
    server = _mount(mounted, journal, fatal, failing)
    disk = RecordedDisk(mounted)
    try:
        yield disk
    finally:
        complaint = _run("umount", str(mounted))
        if complaint:  # something is still open, after a failure that is on its way
            _run("umount", "--lazy", str(mounted))
            server.kill()
        server.wait()
    if complaint or server.returncode:
        raise RuntimeError(complaint or f"the disk's server ended with exit code {server.returncode}")
    disk.journal = pickle.loads(journal.read_bytes())


@contextlib.contextmanager
def disk_or_skip(directory: Path) -> Iterator[RecordedDisk]:
    """A recorded disk for a test."""
    with contextlib.ExitStack() as stack:
        try:
            disk = stack.enter_context(recorded_disk(directory))
        except DiskUnavailable as error:
            if os.environ.get("CI") == "true":
                pytest.fail(str(error))
            pytest.skip(str(error))
        yield disk


def _mount(mounted: Path, journal: Path, *refused: Sequence[int]) -> "subprocess.Popen[bytes]":
    try:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise DiskUnavailable(f"a recorded disk could not be mounted: {error}") from error
    try:
        options = f"fd={device},rootmode=40755,user_id={os.getuid()},group_id={os.getgid()}"
        complaint = _run("mount", "-i", "-t", "fuse", "-o", options, "recorded", str(mounted), keep=device)
        if complaint:
            raise DiskUnavailable(f"a recorded disk could not be mounted: {complaint}")
        command = [sys.executable, "-m", "tests.power_loss.disk_server", str(device), str(journal)]
        command += [",".join(map(str, steps)) for steps in refused]
        return subprocess.Popen(command, cwd=REPOSITORY, pass_fds=[device], stdin=subprocess.DEVNULL)
    finally:
        os.close(device)


def _run(*command: str, keep: int | None = None) -> str:
    """Run a command; return what it complained about, or nothing."""
    kept = [] if keep is None else [keep]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, pass_fds=kept)
    except OSError as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"
