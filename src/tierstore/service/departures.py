"""Tells who serves a request of the mutation that it has begun, which may outlive the request.

Guarantees: `tell_of_mutation` holds for the context of one request, and the tasks that are made in it. Does not: keep
anybody waiting, or keep the task.
"""

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

_told: ContextVar[Callable[[asyncio.Task[Any]], None] | None] = ContextVar("told", default=None)


def tell_of_mutation(tell: Callable[[asyncio.Task[Any]], None]) -> None:
    """Call ``tell`` with the task of a mutation that begins in this context."""
    _told.set(tell)


def mutation_has_begun(task: asyncio.Task[Any]) -> None:
    """Tell who wants to know in this context, if anybody does."""
    tell = _told.get()
    if tell is not None:
        tell(task)
