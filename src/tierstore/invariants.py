"""Checks of what is always true, which stay on under ``python -O``.

A broken invariant fails the operation that met it with `InvariantBroken` (500 to its caller, loud in the log) and
leaves the server running.
"""

from tierstore.errors import InvariantBroken


def invariant(holds: bool, what: str) -> None:
    """Raise `InvariantBroken` with ``what`` unless ``holds``."""
    if not holds:
        raise InvariantBroken(what)
