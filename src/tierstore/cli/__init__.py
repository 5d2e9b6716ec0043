"""The command ``tierstore``.

Guarantees: exit code 0 for success, 1 with one plain sentence on standard error for what the operator can mend
(`StartupError`) or what a store refused, 2 for a command line that makes no sense. ``--help`` answers quickly: what a
command needs is imported when it runs, and the metrics library not before `tierstore.process.server` has chosen their
directory.
"""

import os
import sys

import click

from tierstore import __version__
from tierstore.cli.credentials import keys, presign, token
from tierstore.cli.engines import engines
from tierstore.cli.serving import serve
from tierstore.cli.settings import config
from tierstore.cli.stores import changelog, uploads
from tierstore.cli.wording import EXIT_HELP
from tierstore.errors import StartupError


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
    epilog=EXIT_HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="tierstore %(version)s")
def cli() -> None:
    """All commands."""


for _command in (serve, config, engines, uploads, changelog, keys, token, presign):
    cli.add_command(_command)


def _reserve_standard_streams() -> None:
    """Make file descriptors 0 to 2 exist, so that no file of ours is ever opened as one of them and logged into."""
    while True:
        opened = os.open(os.devnull, os.O_RDWR)
        if opened > 2:
            os.close(opened)
            return
        os.set_inheritable(opened, True)
