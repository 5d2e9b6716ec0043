"""The commands ``tierstore keys``, ``tierstore token`` and ``tierstore presign``: what callers are known by.

What they do is `tierstore.process.credentials`'; here is what is asked for, and how it is shown.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from tierstore.cli.options import FILE, load
from tierstore.cli.wording import OPERATORS_EXIT_HELP, Failed, examples, plainly

_TOKEN_CHARACTERS_MAX: Final = 65_536

_KID = click.option("--kid", required=True, metavar="KID", help="The id under which the server knows the key.")
_PRIVATE_KEY = click.option(
    "--key",
    "key_file",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="The private key that signs, in PEM.",
)


@click.group(epilog=OPERATORS_EXIT_HELP)
def keys() -> None:
    """Make the keys that tokens and URLs are signed with."""


@keys.command(
    epilog=examples("tierstore keys generate --kid media-2026 --directory /etc/tierstore/keys") + OPERATORS_EXIT_HELP
)
@click.option("--kid", required=True, metavar="KID", help="The id of the key, in tokens and settings.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    default=Path(),
    metavar="DIR",
    help="Where the two files go.  [default: the current one]",
)
def generate(kid: str, directory: Path) -> None:
    """Make an Ed25519 key pair: KID.private.pem for those who sign, KID.public.pem for the server.

    Prints the settings that let the server take what the key signs. Files that exist are never overwritten.
    """
    from tierstore.process import credentials  # noqa: PLC0415  # because it takes a while, unlike --help

    private, public = plainly(lambda: credentials.generate_keys(kid, directory))
    click.echo(f"{private} signs: keep it secret, the server does not need it", err=True)
    click.echo(
        "auth:\n"
        "  keys:\n"
        f"    {json.dumps(kid)}:\n"
        f"      files: [{json.dumps(str(public.absolute()))}]\n"
        "      max_permissions: [object.read, object.write, object.delete]"
    )


@click.group(epilog=OPERATORS_EXIT_HELP)
def token() -> None:
    """Make tokens, and look at them."""


@token.command(
    epilog=examples(
        "tierstore token mint --key media.private.pem --kid media --usecase attachments --scope org=17",
        "tierstore token mint --key media.private.pem --kid media --usecase attachments --scope 'org=*' --valid 30d",
    )
    + OPERATORS_EXIT_HELP
)
@_PRIVATE_KEY
@_KID
@click.option("--usecase", required=True, metavar="USECASE", help="Whose objects: the first segment of their address.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    metavar="NAME=VALUE",
    help="A scope to grant; NAME=* for all values.  Repeatable.",
)
@click.option(
    "--permission",
    "permissions",
    multiple=True,
    type=click.Choice(["read", "write", "delete"]),
    default=["read"],
    show_default=True,
    help="What to permit.  Repeatable.",
)
@click.option("--valid", default="1h", show_default=True, metavar="DURATION", help="How long, from now: 30s, 1h, 7d.")
@click.option("--audience", metavar="AUD", help="The claim aud; left out unless given.")
@click.option("--issuer", metavar="ISS", help="The claim iss; left out unless given.")
def mint(
    key_file: Path,
    kid: str,
    usecase: str,
    scopes: Sequence[str],
    permissions: Sequence[str],
    valid: str,
    audience: str | None,
    issuer: str | None,
) -> None:
    """Print a token, signed with a private key."""
    from tierstore.process import credentials  # noqa: PLC0415  # because it takes a while, unlike --help

    claims = {name: value for name, value in (("aud", audience), ("iss", issuer)) if value is not None}
    click.echo(
        plainly(lambda: credentials.mint(key_file, kid, usecase, scopes, permissions, valid, claims)),
    )


@token.command(epilog=examples("tierstore token inspect --config /etc/tierstore.yaml < token") + OPERATORS_EXIT_HELP)
@FILE
def inspect(file: Path | None) -> None:
    """Read a token from standard input; print what it says, and whether the server would take it.

    It is not taken from the command line, which other users of a machine can see.
    """
    from tierstore.process import credentials  # noqa: PLC0415  # because it takes a while, unlike --help

    given = sys.stdin.read(_TOKEN_CHARACTERS_MAX).strip()
    settings = load(file).config
    text, taken = plainly(lambda: credentials.inspect(given, settings))
    click.echo(text)
    if not taken:
        raise Failed("the server would not take this token, see above")


@click.command(
    epilog=examples(
        "tierstore presign --key media.private.pem --kid media http://localhost:8888/v1/objects/attachments/org=17/report"
    )
    + OPERATORS_EXIT_HELP
)
@click.argument("url", metavar="URL")
@_PRIVATE_KEY
@_KID
@click.option("--valid", default="1h", show_default=True, metavar="DURATION", help="How long, from now; at most 7d.")
@click.option(
    "--method", type=click.Choice(["GET", "HEAD"]), default="GET", show_default=True, help="Either allows both."
)
def presign(url: str, key_file: Path, kid: str, valid: str, method: str) -> None:
    """Print URL, signed: whoever has it can read that object, without a token, until its time is up.

    Write the key of the object in it as in every URL, percent-encoded where it has to be.
    """
    from tierstore.process import credentials  # noqa: PLC0415  # because it takes a while, unlike --help

    click.echo(plainly(lambda: credentials.presign(key_file, kid, url, method, valid)))
