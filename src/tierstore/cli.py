"""The command ``tierstore``.

Guarantees: exit code 0 for success, 1 with one plain sentence on standard error for what the operator can mend
(`StartupError`), 2 for a command line that makes no sense. ``--help`` answers quickly: what a command needs is imported
when it runs, and the metrics library not before `tierstore.process.server` has chosen their directory.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from tierstore import __version__
from tierstore.errors import StartupError

if TYPE_CHECKING:
    from tierstore.config import LoadedConfig

Command = TypeVar("Command", bound=Callable[..., Any])

_KEYS_BY_FLAG: Final = {
    "host": "http.host",
    "port": "http.port",
    "data": "data.path",
    "workers": "http.workers",
    "log_level": "log.level",
    "log_format": "log.format",
}
"""The setting that each flag with a value sets."""

_SETTINGS_HELP = """
Settings come from, the later the stronger: defaults, the YAML file given with --config, the environment, flags. A
variable is named after its key: http.port is TIERSTORE__HTTP__PORT. "tierstore config show" lists all keys.
"""

_EXIT_HELP = """
Exit codes: 0 success, 1 a setting, the port or the data directory is at fault (one sentence on standard error says
how), 2 the command line makes no sense.
"""


def _examples(*lines: str) -> str:
    return "\n\n\b\nExamples:\n" + "".join(f"  {line}\n" for line in lines) + "\n"


def main() -> None:
    """Run the command line of this process, and end the process."""
    _reserve_standard_streams()
    try:
        cli(prog_name="tierstore")
    except StartupError as error:
        click.echo(f"tierstore: {error}", err=True)
        sys.exit(1)


@click.group(
    help=f"tierstore {__version__} stores objects, small ones in a fast tier and large ones in a cheap one.",
    epilog=_EXIT_HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="tierstore %(version)s")
def cli() -> None:
    """All commands."""


def with_settings(command: Command) -> Command:
    """Give ``command`` the options that change settings; it gets them as keyword arguments for `_load`."""
    options = (
        click.option(
            "--config", "file", type=click.Path(path_type=Path), metavar="FILE", help="Read settings from a YAML file."
        ),
        click.option("--host", metavar="ADDRESS", help="Address to listen on.  [http.host, default 127.0.0.1]"),
        click.option("--port", type=int, metavar="N", help="Port; 0 takes a free one.  [http.port, default 8888]"),
        click.option("--data", metavar="DIR", help="Directory of the embedded stores.  [data.path, default ./data]"),
        click.option("--workers", type=int, metavar="N", help="Server processes.  [http.workers, default 1]"),
        click.option("--no-auth", is_flag=True, help="Let everybody read and write.  [auth.enforce: false]"),
        click.option("--log-level", metavar="LEVEL", help="debug, info, warning, error, critical.  [log.level]"),
        click.option("--log-format", metavar="FORMAT", help="auto, json, console.  [log.format]"),
    )
    for option in reversed(options):
        command = option(command)
    return command


@cli.command(
    epilog=_examples(
        "tierstore serve --no-auth",
        "tierstore serve --config /etc/tierstore.yaml --workers 4",
        'TIERSTORE__TIERING__INLINE_MAX="256 KiB" tierstore serve --no-auth --port 0',
    )
    + _SETTINGS_HELP
    + _EXIT_HELP
)
@with_settings
def serve(**options: Any) -> None:
    """Start the server.

    Without settings it listens on 127.0.0.1:8888, keeps its data in ./data, and refuses every request for objects, as
    this release cannot check tokens yet; --no-auth lets everybody in.

    SIGTERM or Ctrl+C stops it cleanly: requests under way are finished first, for at most http.shutdown_grace. A second
    Ctrl+C stops it at once (exit code 130); no acknowledged object is lost either way.
    """
    loaded = _load(**options)
    from tierstore.process import server  # noqa: PLC0415  # because it takes a while, and only this command needs it

    sys.exit(server.serve(loaded.config))


@cli.group(epilog=_EXIT_HELP)
def config() -> None:
    """Look at settings without starting anything."""


@config.command(
    epilog=_examples(
        "tierstore config show > tierstore.yaml",
        "TIERSTORE__HTTP__PORT=9000 tierstore config show --config tierstore.yaml",
    )
    + _SETTINGS_HELP
    + _EXIT_HELP
)
@with_settings
def show(**options: Any) -> None:
    """Print all settings in effect, as YAML that --config reads, each with where it came from."""
    click.echo(_load(**options).render(), nl=False)


@config.command(
    epilog=_examples("tierstore config check --config tierstore.yaml && systemctl restart tierstore")
    + _SETTINGS_HELP
    + _EXIT_HELP
)
@with_settings
def check(**options: Any) -> None:
    """Check the settings: print "ok", or every problem with its key, its origin and the reason."""
    _load(**options)
    click.echo("ok")


@config.command(epilog=_examples("tierstore config schema > tierstore.schema.json"))
def schema() -> None:
    """Print the JSON Schema of the YAML file, for editors and other checks."""
    from tierstore.config import config_schema  # noqa: PLC0415  # because it takes a while, and --help does not need it

    click.echo(json.dumps(config_schema(), indent=2))


def _load(file: Path | None, no_auth: bool, **values: Any) -> "LoadedConfig":
    from tierstore.config import Setting, load_config  # noqa: PLC0415  # because it takes a while, unlike --help

    flags = {
        _KEYS_BY_FLAG[flag]: Setting(value, f"flag --{flag.replace('_', '-')}")
        for flag, value in values.items()
        if value is not None
    }
    if no_auth:
        flags["auth.enforce"] = Setting(False, "flag --no-auth")
    return load_config(file, os.environ, flags)


def _reserve_standard_streams() -> None:
    """Make file descriptors 0 to 2 exist, so that no file of ours is ever opened as one of them and logged into."""
    while True:
        opened = os.open(os.devnull, os.O_RDWR)
        if opened > 2:
            os.close(opened)
            return
        os.set_inheritable(opened, True)
