"""PgBouncer in transaction mode for tests, before a PostgreSQL server: the pooler that most people have.

The one that ``make dev`` unpacks below ``.venv``, if the system's packages are Debian's; else that of the path.
"""

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.engines.engine import HOST, Engine, executable, ordinary_user
from tests.engines.postgres import Postgres

_CONFIGURATION = """
[databases]
postgres = host={host} port={server_port} user=postgres
[pgbouncer]
listen_addr = {host}
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {connections}
server_reset_query =
"""
_UNPACKED = Path(sys.prefix) / "pgbouncer"


class PgBouncer(Engine):
    """A pooler that shares ``connections`` to the server among its clients, one transaction at a time."""

    name = "pgbouncer"

    def __init__(self, server: Postgres, *, connections: int) -> None:
        program = Path(executable("pgbouncer", _UNPACKED))
        super().__init__(user=ordinary_user("postgres", "nobody"))
        if program.parent == _UNPACKED:  # where only root may look, perhaps
            program = Path(shutil.copytree(_UNPACKED, self.home / "program", symlinks=True)) / program.name
        self._program = str(program)
        self.keeps_statements = self.version >= (1, 21)
        """Whether prepared statements survive the change of connections."""
        text = _CONFIGURATION.format(host=HOST, port=self.port, server_port=server.port, connections=connections)
        if self.keeps_statements:
            text += "max_prepared_statements = 100\n"
        self._configuration = self.home / "pgbouncer.ini"
        self._configuration.write_text(text)

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"postgresql://postgres@{self.address}/postgres"

    @property
    def version(self) -> tuple[int, int]:
        """Of the program."""
        told = subprocess.run([self._program, "--version"], capture_output=True, text=True, check=True).stdout
        found = re.search(r"(\d+)\.(\d+)", told)
        assert found is not None
        return int(found[1]), int(found[2])

    def command(self) -> Sequence[str]:
        return [self._program, "-q", str(self._configuration)]

    def answers(self) -> bool:
        socket.create_connection((HOST, self.port), timeout=1).close()
        return True
