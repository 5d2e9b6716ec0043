"""The command ``tierstore``.

Guarantees: exit code 0 for success, 1 with one plain sentence on standard error for what the operator can mend
(`StartupError`) or what a store refused, 2 for a command line that makes no sense. ``--help`` answers quickly: what a
command needs is imported when it runs, and the metrics library not before `tierstore.process.server` has chosen their
directory.
"""

import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, TypeVar

import click

from tierstore import __version__
from tierstore.errors import InvalidRequest, StartupError, TierstoreError

if TYPE_CHECKING:
    from tierstore.build import Tools
    from tierstore.config import LoadedConfig
    from tierstore.process.operators import EntryReport, Outcome, RevisionReport, UploadReport
    from tierstore.types.ids import Revision

Command = TypeVar("Command", bound=Callable[..., Any])
T = TypeVar("T")

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

_OPERATORS_EXIT_HELP = """
Exit codes: 0 success, 1 something could not be done or looked at (one sentence on standard error says why), 2 the
command line makes no sense.
"""

_OPERATORS_HELP = """
It opens the stores of the server, which may run meanwhile: run it as the same user, with the same release and the same
settings. A REVISION is written as the lists show it, in quotes if the shell would read something into it. That of an
upload id which a client holds is found with "tierstore uploads list --json", which shows both.
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


class _Failed(click.ClickException):
    """A command has not done all that it was asked for: exit code 1, and a sentence."""

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"tierstore: {self.message}", file=file, err=file is None)


@click.group(
    help=f"tierstore {__version__} stores objects, small ones in a fast tier and large ones in a cheap one.",
    epilog=_EXIT_HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="tierstore %(version)s")
def cli() -> None:
    """All commands."""


_FILE = click.option(
    "--config", "file", type=click.Path(path_type=Path), metavar="FILE", help="Read settings from a YAML file."
)
_DATA = click.option("--data", metavar="DIR", help="Directory of the embedded stores.  [data.path, default ./data]")
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")
_LOGS = (
    click.option("--log-level", metavar="LEVEL", help="debug, info, warning, error, critical.  [log.level]"),
    click.option("--log-format", metavar="FORMAT", help="auto, json, console.  [log.format]"),
)


def with_settings(command: Command) -> Command:
    """Give ``command`` the options that change settings; it gets them as keyword arguments for `_load`."""
    options = (
        _FILE,
        click.option("--host", metavar="ADDRESS", help="Address to listen on.  [http.host, default 127.0.0.1]"),
        click.option("--port", type=int, metavar="N", help="Port; 0 takes a free one.  [http.port, default 8888]"),
        _DATA,
        click.option("--workers", type=int, metavar="N", help="Server processes.  [http.workers, default 1]"),
        click.option("--no-auth", is_flag=True, help="Let everybody read and write.  [auth.enforce: false]"),
        *_LOGS,
    )
    return _with(options, command)


def with_stores(command: Command) -> Command:
    """Give ``command`` the options that say which stores it opens; it gets them as keyword arguments for `_load`."""
    return _with((_FILE, _DATA, *_LOGS), command)


def with_listing(command: Command) -> Command:
    """Give ``command`` the options of a listing, ``limit`` and ``as_json``."""
    options = (
        click.option(
            "--limit", type=click.IntRange(min=1), default=1000, show_default=True, metavar="N", help="Show at most N."
        ),
        _JSON,
    )
    return _with(options, command)


def _with(options: Sequence[Callable[[Command], Command]], command: Command) -> Command:
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


@cli.group(epilog=_OPERATORS_EXIT_HELP)
def uploads() -> None:
    """Look at multipart uploads that are not completed, and abort them."""


@uploads.command(
    "list",
    epilog=_examples("tierstore uploads list --data /var/lib/tierstore", "tierstore uploads list --json | jq .bytes")
    + _OPERATORS_HELP
    + _OPERATORS_EXIT_HELP,
)
@click.option("--all", "ended", is_flag=True, help="Also uploads that were aborted, and wait for a second look.")
@with_listing
@with_stores
def list_uploads(ended: bool, limit: int, as_json: bool, **options: Any) -> None:
    """Print the uploads that can still be completed or are being settled, the oldest first.

    For each: its object and revision, its age, the parts and bytes that are stored, how often it was claimed to be
    completed, and when it will be aborted.
    """
    from tierstore.process import operators  # noqa: PLC0415  # because it takes a while, unlike --help

    show = _shown_as(as_json)
    _tell_of_more(limit, _operate(options, lambda tools: operators.list_uploads(tools, limit, show, ended=ended)))


@uploads.command(
    "abort",
    epilog=_examples("tierstore uploads abort media/objects/film/0192f0c1-3c5e-8a4b-9d2f-6b1e8c7a5d40")
    + _OPERATORS_HELP
    + _OPERATORS_EXIT_HELP,
)
@click.argument("revisions", nargs=-1, required=True, metavar="REVISION...")
@_JSON
@with_stores
def abort_uploads(revisions: Sequence[str], as_json: bool, **options: Any) -> None:
    """Abort uploads: their parts are removed, and their clients are told that there is no such upload.

    An attempt to complete one that is under way either succeeds before that, and then nothing is aborted, or fails
    cleanly. An object that is already there is not touched. Safe to repeat.
    """
    from tierstore.process import operators  # noqa: PLC0415  # because it takes a while, unlike --help

    parsed = _revisions(revisions)
    for revision in parsed:
        if not revision.is_upload:
            raise click.UsageError(f"{operators.name_of(revision)} is no upload; changelog settle settles it")

    async def work(tools: "Tools") -> int:
        failed = 0
        for revision in parsed:
            failed += _show_outcome(await operators.abort(tools, revision), as_json)
        return failed

    _check_failed(_operate(options, work))


@cli.group(epilog=_OPERATORS_EXIT_HELP)
def changelog() -> None:
    """Look at the change log, the list of blobs that may have to go, and settle what is in it."""


@changelog.command(
    "list",
    epilog=_examples(
        "tierstore changelog list --limit 20", "tierstore changelog list --json | jq 'select(.age_seconds > 86400)'"
    )
    + _OPERATORS_HELP
    + _OPERATORS_EXIT_HELP,
)
@click.option("--all", "every", is_flag=True, help="Also outcomes of uploads, which are merely remembered (done).")
@click.option(
    "--state",
    "names",
    multiple=True,
    type=click.Choice(["open", "condemned", "done"]),
    help="Only entries in this state; may be given several times.  [default: open, condemned]",
)
@with_listing
@with_stores
def list_entries(every: bool, names: Sequence[str], limit: int, as_json: bool, **options: Any) -> None:
    """Print the entries of the change log, the oldest first: what each is about, why it is there, what comes next."""
    from tierstore.changelog.entries import State  # noqa: PLC0415  # because it takes a while, unlike --help
    from tierstore.process import operators  # noqa: PLC0415  # because it takes a while, unlike --help

    if every and names:
        raise click.UsageError("give either --all or --state")
    states = tuple(State) if every else [State(name) for name in names] or operators.UNSETTLED
    show = _shown_as(as_json)
    _tell_of_more(limit, _operate(options, lambda tools: operators.list_entries(tools, limit, show, states)))


@changelog.command(
    "show",
    epilog=_examples("tierstore changelog show media/objects/film/0192f0c1-3c5e-8a4b-9d2f-6b1e8c7a5d40")
    + _OPERATORS_HELP
    + _OPERATORS_EXIT_HELP,
)
@click.argument("revision", metavar="REVISION")
@_JSON
@with_stores
def show_revision(revision: str, as_json: bool, **options: Any) -> None:
    """Print all that is known of one revision: its entries, the object's row, and the blob or the parts."""
    from tierstore.process import operators  # noqa: PLC0415  # because it takes a while, unlike --help

    (parsed,) = _revisions([revision])
    _shown_as(as_json)(_operate(options, lambda tools: operators.describe(tools, parsed)))


@changelog.command(
    epilog=_examples(
        "tierstore changelog settle media/objects/film/0192f0c1-3c5e-7a4b-9d2f-6b1e8c7a5d40",
        "tierstore changelog settle --all-due",
    )
    + _OPERATORS_HELP
    + _OPERATORS_EXIT_HELP
)
@click.argument("revisions", nargs=-1, metavar="[REVISION]...")
@click.option("--all-due", is_flag=True, help="Settle everything that a sweeper would settle now.")
@_JSON
@with_stores
def settle(revisions: Sequence[str], all_due: bool, as_json: bool, **options: Any) -> None:
    """Settle entries now, by the steps of the sweeper.

    No object is lost by it, and servers may run meanwhile. But a REVISION is settled even while the write or upload
    that it belongs to is under way: that operation then fails cleanly, and an upload is aborted. So look at "tierstore
    changelog show" first. What only time makes safe is left as it is: outcomes that are remembered, and entries whose
    blob was deleted, until they are due.
    """
    from tierstore.process import operators  # noqa: PLC0415  # because it takes a while, unlike --help

    if all_due == bool(revisions):
        raise click.UsageError("give either one REVISION or more, or --all-due")
    parsed = _revisions(revisions)

    shown = 0

    def show(outcome: "Outcome") -> bool:
        nonlocal shown
        shown += 1
        return _show_outcome(outcome, as_json)

    async def work(tools: "Tools") -> int:
        if all_due:
            return await operators.settle_all_due(tools, show)
        failed = 0
        for revision in parsed:
            for outcome in await operators.settle(tools, revision):
                failed += show(outcome)
        return failed

    failed = _operate(options, work)
    if not shown and not as_json:
        click.echo("nothing is due")
    _check_failed(failed)


def _operate(options: dict[str, Any], work: Callable[["Tools"], Awaitable[T]]) -> T:
    """Do ``work`` with the stores that ``options`` name."""
    from tierstore.process import operators  # noqa: PLC0415  # because it takes a while, unlike --help

    config = _load(**options).config
    try:
        return operators.run(config, work)
    except StartupError:
        raise
    except TierstoreError as error:
        raise _Failed(str(error)) from error


def _revisions(names: Sequence[str]) -> Sequence["Revision"]:
    from tierstore.process import operators  # noqa: PLC0415  # because it takes a while, unlike --help

    parsed = []
    for name in names:
        try:
            parsed.append(operators.revision_of(name))
        except InvalidRequest as error:
            raise click.UsageError(f"{name!a} is no REVISION: {error}") from error
    return parsed


def _shown_as(as_json: bool) -> Callable[["UploadReport | EntryReport | RevisionReport"], None]:
    def show(report: "UploadReport | EntryReport | RevisionReport") -> None:
        click.echo(json.dumps(report.fields()) if as_json else report.text())

    return show


def _show_outcome(outcome: "Outcome", as_json: bool) -> bool:
    """Print what became of something; return whether it failed."""
    click.echo(json.dumps(outcome.fields()) if as_json else f"{outcome.name}: {outcome.text}")
    return outcome.failed


def _tell_of_more(limit: int, more: bool) -> None:
    if more:
        click.echo(f"tierstore: there are more than {limit}; a larger --limit shows them", err=True)


def _check_failed(failed: int) -> None:
    if failed:
        raise _Failed(f"{failed} of them could not be done, see above")


def _load(file: Path | None, no_auth: bool = False, **values: Any) -> "LoadedConfig":
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
