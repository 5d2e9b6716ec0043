"""The commands ``tierstore uploads`` and ``tierstore changelog``: what operators do with a server's stores.

What they do is `tierstore.process.operators`'; here is what is asked for, and how it is shown.
"""

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tierstore.cli.options import JSON, load, with_listing, with_stores
from tierstore.cli.wording import OPERATORS_EXIT_HELP, OPERATORS_HELP, Failed, examples, plainly
from tierstore.errors import InvalidRequest

if TYPE_CHECKING:
    from tierstore.build import Tools
    from tierstore.process.operators import EntryReport, Outcome, RevisionReport, UploadReport
    from tierstore.types.ids import Revision

T = TypeVar("T")


@click.group(epilog=OPERATORS_EXIT_HELP)
def uploads() -> None:
    """Look at multipart uploads that are not completed, and abort them."""


@uploads.command(
    "list",
    epilog=examples("tierstore uploads list --data /var/lib/tierstore", "tierstore uploads list --json | jq .bytes")
    + OPERATORS_HELP
    + OPERATORS_EXIT_HELP,
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
    epilog=examples("tierstore uploads abort media/objects/film/0192f0c1-3c5e-8a4b-9d2f-6b1e8c7a5d40")
    + OPERATORS_HELP
    + OPERATORS_EXIT_HELP,
)
@click.argument("revisions", nargs=-1, required=True, metavar="REVISION...")
@JSON
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


@click.group(epilog=OPERATORS_EXIT_HELP)
def changelog() -> None:
    """Look at the change log, the list of blobs that may have to go, and settle what is in it."""


@changelog.command(
    "list",
    epilog=examples(
        "tierstore changelog list --limit 20", "tierstore changelog list --json | jq 'select(.age_seconds > 86400)'"
    )
    + OPERATORS_HELP
    + OPERATORS_EXIT_HELP,
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
    epilog=examples("tierstore changelog show media/objects/film/0192f0c1-3c5e-8a4b-9d2f-6b1e8c7a5d40")
    + OPERATORS_HELP
    + OPERATORS_EXIT_HELP,
)
@click.argument("revision", metavar="REVISION")
@JSON
@with_stores
def show_revision(revision: str, as_json: bool, **options: Any) -> None:
    """Print all that is known of one revision: its entries, the object's row, and the blob or the parts."""
    from tierstore.process import operators  # noqa: PLC0415  # because it takes a while, unlike --help

    (parsed,) = _revisions([revision])
    _shown_as(as_json)(_operate(options, lambda tools: operators.describe(tools, parsed)))


@changelog.command(
    epilog=examples(
        "tierstore changelog settle media/objects/film/0192f0c1-3c5e-7a4b-9d2f-6b1e8c7a5d40",
        "tierstore changelog settle --all-due",
    )
    + OPERATORS_HELP
    + OPERATORS_EXIT_HELP
)
@click.argument("revisions", nargs=-1, metavar="[REVISION]...")
@click.option("--all-due", is_flag=True, help="Settle everything that a sweeper would settle now.")
@JSON
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

    config = load(**options).config
    return plainly(lambda: operators.run(config, work))


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
        raise Failed(f"{failed} of them could not be done, see above")
