"""Where servers under test keep things: the settings of their stores, and what can be done to the engines of these.

Guarantees: servers, and whoever opens the stores of one that has ended, learn everything from settings and environment,
as an operator's do. Does not: start engines for good, or close them; their fixtures do.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.engines.engine import Engine
from tierstore.config import Config, limits_from
from tierstore.config_loading import Setting, load_config
from tierstore.testing.server import ServerProcess
from tierstore.testing.tcp_proxy import TcpProxy
from tierstore.types.ids import Revision

Settings = Mapping[str, Mapping[str, object]]
"""Settings of the configuration, by section and name."""


@dataclass(frozen=True)
class Deployment:
    """A pair of stores with its change log."""

    name: str
    settings: Settings = field(default_factory=dict)
    """Of the stores."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What servers find in their environment: credentials, and where an emulator is."""
    engines: Sequence[Engine] = ()
    """Those that keep what they have when they are killed."""
    lines: Sequence[TcpProxy] = ()
    """Those on the way to an engine."""
    find_strays: Callable[[Collection[Revision]], set[str]] | None = None
    """Finds the names of what is in the long-term store and no part of these blobs, without the code under test."""

    @property
    def is_embedded(self) -> bool:
        """Whether the stores are files of the server's own."""
        return not self.settings

    @property
    def part_bytes_min(self) -> int:
        """How many bytes each part of an upload has, but the last; with 0 the store takes parts of any size."""
        return limits_from(self.config(Path())).part_bytes_min

    def server(self, data: Path, *, config: Settings | None = None, **options: Any) -> ServerProcess:
        """A server on it, with more settings and what else `ServerProcess` takes."""
        settings = merged(self.settings, config or {})
        return ServerProcess(data, config=settings, environment=self.environment, **options)

    def config(self, data: Path, more: Settings | None = None) -> Config:
        """The settings as a server has them that keeps its embedded stores below ``data``."""
        given = merged({"data": {"path": str(data)}}, merged(self.settings, more or {}))
        flags = {
            f"{section}.{name}": Setting(value, "test")
            for section, names in given.items()
            for name, value in names.items()
        }
        return load_config(None, {}, flags).config

    def file(self, path: Path) -> Path:
        """Write a configuration file to ``path``: a line for each store."""
        lines = [
            f"{section}: {yaml.safe_dump(dict(names), default_flow_style=True, width=10_000).strip()}\n"
            for section, names in self.settings.items()
        ]
        path.write_text("".join(lines))
        return path

    @contextlib.contextmanager
    def environment_here(self) -> Iterator[None]:
        """Meanwhile this process has the environment of its servers, to open the stores itself."""
        before = {name: os.environ.get(name) for name in self.environment}
        os.environ.update(self.environment)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def strays(self, blobs: Collection[Revision]) -> set[str]:
        """The names of what is in the long-term store and no part of these blobs; none where nobody can look."""
        return set() if self.find_strays is None else self.find_strays(blobs)

    # Harm

    async def kill_engine(self, choice: int, seconds: float) -> str:
        """Kill an engine as a crash would, and start it again after ``seconds``; say which."""
        engine = self.engines[choice % len(self.engines)]
        await asyncio.to_thread(engine.kill)
        try:
            await asyncio.sleep(seconds)
        finally:  # other tests have the same engine
            await asyncio.to_thread(engine.start)
        return engine.name

    async def pause_engine(self, choice: int, seconds: float) -> str:
        """Let an engine stand still for ``seconds``, with all connections open; say which."""
        engine = self.engines[choice % len(self.engines)]
        with engine.paused():
            await asyncio.sleep(seconds)
        return engine.name

    def cut_line(self, choice: int) -> str:
        """Reset all connections of a line; say of which."""
        self.lines[choice % len(self.lines)].cut()
        return f"line {choice % len(self.lines)}"

    async def block_line(self, choice: int, seconds: float) -> str:
        """Refuse all connections of a line for ``seconds``; say of which."""
        line = self.lines[choice % len(self.lines)]
        line.refuse()
        await asyncio.sleep(seconds)
        line.resume()
        return f"line {choice % len(self.lines)}"

    async def hold_line(self, choice: int, seconds: float) -> str:
        """Let nothing pass on a line for ``seconds``; say on which."""
        line = self.lines[choice % len(self.lines)]
        line.hold()
        await asyncio.sleep(seconds)
        line.resume()
        return f"line {choice % len(self.lines)}"


EMBEDDED = Deployment("embedded")
"""The default: SQLite and files below the data directory."""


def merged(*layers: Settings) -> Settings:
    """Settings, the later ones over the earlier ones."""
    result: dict[str, dict[str, object]] = {}
    for layer in layers:
        for section, names in layer.items():
            result.setdefault(section, {}).update(names)
    return result
