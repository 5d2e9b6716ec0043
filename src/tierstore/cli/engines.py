"""The command ``tierstore engines``: whether the stores that a server would use do what it builds on.

What is tried is `tierstore.process.engine_checks`'; here is how it is asked for and shown.
"""

import json
from typing import TYPE_CHECKING, Any

import click

from tierstore.cli.options import JSON, load, with_stores
from tierstore.cli.wording import OPERATORS_EXIT_HELP, Failed, examples, plainly

if TYPE_CHECKING:
    from tierstore.process.engine_checks import Finding


@click.group(epilog=OPERATORS_EXIT_HELP)
def engines() -> None:
    """Try the configured stores."""


@engines.command(
    epilog=examples(
        "tierstore engines check --config tierstore.yaml",
        "tierstore engines check --json | jq 'select(.kept | not)'",
    )
    + OPERATORS_EXIT_HELP
)
@JSON
@with_stores
def check(as_json: bool, **options: Any) -> None:
    """Try every promise that the service builds on, and every permission, on the configured stores.

    For each: whether it is kept, how long it took, and in words what is wrong. Servers may run meanwhile. What is put
    into the stores has the usecase tierstore-check and is taken away again. Stores that are new are made, as by the
    first start of a server.
    """
    from tierstore.process import engine_checks  # noqa: PLC0415  # because it takes a while, unlike --help

    def show(finding: "Finding") -> None:
        click.echo(json.dumps(finding.fields()) if as_json else finding.text())

    config = load(**options).config
    if failed := plainly(lambda: engine_checks.check_engines(config, show)):
        raise Failed(f"{failed} promises are not kept, see above")
