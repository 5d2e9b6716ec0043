"""Small disks of a test's own: a tmpfs that can be full or read-only. Needs root and the right to mount.

Where mounting is not permitted the test is skipped, with the reason; with ``CI=true`` it fails instead.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


class SmallDisk:
    """A mounted tmpfs at ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def remount(self, options: str) -> None:
        """Change the mount: ``ro`` (while no file is open for writing), ``rw``, ``size=8m``. Raises `OSError`."""
        if complaint := _run("mount", "-o", f"remount,{options}", str(self.path)):
            raise OSError(complaint)


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[SmallDisk]:
    """Make ``path`` and mount a tmpfs there; unmount it at the end. ``size``: ``8m``, or ``8m,nr_inodes=64``."""
    path.mkdir(parents=True)
    mounted = _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path))
    if mounted:
        reason = f"a small disk could not be mounted: {mounted}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    try:
        yield SmallDisk(path)
    finally:
        _run("umount", "--lazy", str(path))


def _run(*command: str) -> str:
    """Run a command; return what it complained about, or nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"
