"""Options that several commands have, and the settings that are read from them.

Guarantees: nothing that takes a while is imported before a command runs.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from tierstore.config_loading import LoadedConfig

Command = TypeVar("Command", bound=Callable[..., Any])

_KEYS_BY_FLAG: Final = {
    "host": "http.host",
    "port": "http.port",
    "data": "data.path",
    "workers": "http.workers",
    "tls_certificate": "tls.certificate",
    "tls_key": "tls.key",
    "log_level": "log.level",
    "log_format": "log.format",
}
"""The setting that each flag with a value sets."""

FILE = click.option(
    "--config", "file", type=click.Path(path_type=Path), metavar="FILE", help="Read settings from a YAML file."
)
_DATA = click.option("--data", metavar="DIR", help="Directory of the embedded stores.  [data.path, default ./data]")
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")
_LOGS = (
    click.option("--log-level", metavar="LEVEL", help="debug, info, warning, error, critical.  [log.level]"),
    click.option("--log-format", metavar="FORMAT", help="auto, json, console.  [log.format]"),
)


def with_settings(command: Command) -> Command:
    """Give ``command`` the options that change settings; it gets them as keyword arguments for `load`."""
    options = (
        FILE,
        click.option("--host", metavar="ADDRESS", help="Address to listen on.  [http.host, default 127.0.0.1]"),
        click.option("--port", type=int, metavar="N", help="Port; 0 takes a free one.  [http.port, default 8888]"),
        _DATA,
        click.option("--workers", type=int, metavar="N", help="Server processes.  [http.workers, default 1]"),
        click.option(
            "--tls-certificate", metavar="FILE", help="Serve HTTPS, with this certificate.  [tls.certificate]"
        ),
        click.option("--tls-key", metavar="FILE", help="The certificate's private key.  [tls.key]"),
        click.option("--no-auth", is_flag=True, help="Let everybody read and write.  [auth.enforce: false]"),
        *_LOGS,
    )
    return _with(options, command)


def with_stores(command: Command) -> Command:
    """Give ``command`` the options that say which stores it opens; it gets them as keyword arguments for `load`."""
    return _with((FILE, _DATA, *_LOGS), command)


def with_listing(command: Command) -> Command:
    """Give ``command`` the options of a listing, ``limit`` and ``as_json``."""
    options = (
        click.option(
            "--limit", type=click.IntRange(min=1), default=1000, show_default=True, metavar="N", help="Show at most N."
        ),
        JSON,
    )
    return _with(options, command)


def _with(options: Sequence[Callable[[Command], Command]], command: Command) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def load(file: Path | None, no_auth: bool = False, **values: Any) -> "LoadedConfig":
    """The settings by a file, the environment and flags. Raises `ConfigError`."""
    from tierstore.config_loading import Setting, load_config  # noqa: PLC0415  # because it takes a while, unlike --help

    flags = {
        _KEYS_BY_FLAG[flag]: Setting(value, f"flag --{flag.replace('_', '-')}")
        for flag, value in values.items()
        if value is not None
    }
    if no_auth:
        flags["auth.enforce"] = Setting(False, "flag --no-auth")
    return load_config(file, os.environ, flags)
