"""The command ``tierstore serve``."""

import sys
from typing import Any

import click

from tierstore.cli.options import load, with_settings
from tierstore.cli.wording import EXIT_HELP, SETTINGS_HELP, examples


@click.command(
    epilog=examples(
        "tierstore serve --no-auth",
        "tierstore serve --config /etc/tierstore.yaml --workers 4",
        'TIERSTORE__TIERING__INLINE_MAX="256 KiB" tierstore serve --no-auth --port 0',
    )
    + SETTINGS_HELP
    + EXIT_HELP
)
@with_settings
def serve(**options: Any) -> None:
    """Start the server.

    Without settings it listens on 127.0.0.1:8888, keeps its data in ./data, and refuses every request for objects, as
    no keys are set that tokens could be checked with (auth.keys); --no-auth lets everybody in.

    SIGHUP makes it read its settings again: keys, killswitches, policies and limits. If anything is wrong with them,
    those before stay in force.

    SIGTERM or Ctrl+C stops it cleanly: requests under way are finished first, for at most http.shutdown_grace. A second
    Ctrl+C stops it at once (exit code 130); no acknowledged object is lost either way.
    """
    loaded = load(**options)
    from tierstore.process import server  # noqa: PLC0415  # because it takes a while, and only this command needs it

    sys.exit(server.serve(loaded.config, reread=lambda: load(**options).config))
