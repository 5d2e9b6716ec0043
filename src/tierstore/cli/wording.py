"""What commands say in the same words: parts of their help, and how they fail.

Does not: know any command.
"""

from collections.abc import Callable
from typing import IO, Any, TypeVar

import click

from tierstore.errors import StartupError, TierstoreError

T = TypeVar("T")

SETTINGS_HELP = """
Settings come from, the later the stronger: defaults, the YAML file given with --config, the environment, flags. A
variable is named after its key: http.port is TIERSTORE__HTTP__PORT. "tierstore config show" lists all keys.
"""

EXIT_HELP = """
Exit codes: 0 success, 1 a setting, the port or the data directory is at fault (one sentence on standard error says
how), 2 the command line makes no sense.
"""

OPERATORS_EXIT_HELP = """
Exit codes: 0 success, 1 something could not be done or looked at (one sentence on standard error says why), 2 the
command line makes no sense.
"""

OPERATORS_HELP = """
It opens the stores of the server, which may run meanwhile: run it as the same user, with the same release and the same
settings. A REVISION is written as the lists show it, in quotes if the shell would read something into it. That of an
upload id which a client holds is found with "tierstore uploads list --json", which shows both.
"""


def examples(*lines: str) -> str:
    """Command lines to show at the end of a help, as they are."""
    return "\n\n\b\nExamples:\n" + "".join(f"  {line}\n" for line in lines) + "\n"


class Failed(click.ClickException):
    """A command has not done all that it was asked for: exit code 1, and a sentence."""

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"tierstore: {self.message}", file=file, err=file is None)


def plainly(work: Callable[[], T]) -> T:
    """Do ``work``; its mistakes are exit code 1 and one sentence."""
    try:
        return work()
    except StartupError:
        raise
    except TierstoreError as error:
        raise Failed(str(error)) from error
