"""The commands ``tierstore config``: settings, without starting anything."""

import json
from typing import Any

import click

from tierstore.cli.options import load, with_settings
from tierstore.cli.wording import EXIT_HELP, SETTINGS_HELP, examples


@click.group(epilog=EXIT_HELP)
def config() -> None:
    """Look at settings without starting anything."""


@config.command(
    epilog=examples(
        "tierstore config show > tierstore.yaml",
        "TIERSTORE__HTTP__PORT=9000 tierstore config show --config tierstore.yaml",
    )
    + SETTINGS_HELP
    + EXIT_HELP
)
@with_settings
def show(**options: Any) -> None:
    """Print all settings in effect, as YAML that --config reads, each with where it came from."""
    click.echo(load(**options).render(), nl=False)


@config.command(
    epilog=examples("tierstore config check --config tierstore.yaml && systemctl restart tierstore")
    + SETTINGS_HELP
    + EXIT_HELP
)
@with_settings
def check(**options: Any) -> None:
    """Check the settings: print "ok", or every problem with its key, its origin and the reason."""
    from tierstore.clock import SystemClock  # noqa: PLC0415  # because it takes a while, unlike --help
    from tierstore.process.access import with_key_files_read  # noqa: PLC0415  # because it takes a while, too
    from tierstore.process.tls import check_tls  # noqa: PLC0415  # because it takes a while, too

    read = with_key_files_read(load(**options).config)
    if read.tls.certificate:
        check_tls(read.tls, SystemClock())
    click.echo("ok")


@config.command(epilog=examples("tierstore config schema > tierstore.schema.json"))
def schema() -> None:
    """Print the JSON Schema of the YAML file, for editors and other checks."""
    from tierstore.config_loading import config_schema  # noqa: PLC0415  # because it takes a while, and --help does not need it

    click.echo(json.dumps(config_schema(), indent=2))
