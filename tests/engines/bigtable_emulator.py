"""Google's emulator of Bigtable for tests: in memory, without credentials and without application profiles.

``BIGTABLE_EMULATOR`` names another binary than the one that ``make dev`` puts below ``.venv``. It hides that the real
one collects late, and keeps no application profiles; the tests say where they make up for that.
"""

import itertools
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import grpc  # type: ignore[import-untyped]  # because it has no types of its own
from google.cloud.bigtable_admin_v2 import BigtableTableAdminClient
from google.cloud.bigtable_admin_v2.services.bigtable_table_admin.transports import BigtableTableAdminGrpcTransport

from tests.engines.engine import HOST, Engine, executable

VARIABLE = "BIGTABLE_EMULATOR_HOST"
"""What Google's clients look for."""
PROJECT, INSTANCE = "test", "test"
NEVER_SECONDS = 100 * 366 * 86_400


class BigtableEmulator(Engine):
    """One emulator, without any table. What it holds is gone when it is stopped."""

    name = "bigtable-emulator"
    _tables: ClassVar["itertools.count[int]"] = itertools.count()

    def __init__(self) -> None:
        self._binary = os.environ.get("BIGTABLE_EMULATOR") or executable("bigtable-emulator", Path(sys.prefix) / "bin")
        super().__init__()

    def command(self) -> Sequence[str]:
        return [self._binary, "-host", HOST, "-port", str(self.port)]

    def answers(self) -> bool:
        with socket.create_connection((HOST, self.port), timeout=1):
            return True

    def new_table(self) -> str:
        """The name of a table that no test has had. Nothing makes it but who uses it."""
        return f"test-{os.getpid()}-{next(self._tables)}"

    @contextmanager
    def admin(self) -> Iterator[BigtableTableAdminClient]:
        """A client that makes tables, beside the one under test."""
        with grpc.insecure_channel(self.address) as channel:
            yield BigtableTableAdminClient(transport=BigtableTableAdminGrpcTransport(channel=channel))

    def make_table(self, *families: str, kept_seconds: Mapping[str, int] | None = None) -> str:
        """A new table whose cells stay, superseded ones too, but where ``kept_seconds`` says how long after their time.

        So it is as with the real one, which collects late, at its latest.
        """
        name = self.new_table()
        kept = {
            family: {"gc_rule": {"max_age": {"seconds": seconds}}} for family, seconds in (kept_seconds or {}).items()
        }
        with self.admin() as admin:
            admin.create_table(
                request={
                    "parent": f"projects/{PROJECT}/instances/{INSTANCE}",
                    "table_id": name,
                    "table": {"column_families": {family: {} for family in families}},
                }
            )
            # The emulator collects only where a rule was given to a table that was there.
            changes = [{"id": family, "create": rule} for family, rule in kept.items()]
            if changes:
                path = f"projects/{PROJECT}/instances/{INSTANCE}/tables/{name}"
                admin.modify_column_families(request={"name": path, "modifications": changes})
        return name
