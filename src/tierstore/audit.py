"""The audit log: the logger of lines that tell who changed something, or was refused, and the words for how it ended.

Guarantees: what goes through `log` is written whatever the level of other lines is, and in the same way as they are.
Does not: decide what is audited (`tierstore.http.request_log` and the operators' commands do), or keep anything.
"""

import logging
from typing import Literal

import structlog

from tierstore.errors import (
    Broken,
    Busy,
    OutcomeUnknown,
    Overloaded,
    PolicyViolation,
    Refusal,
    TierstoreError,
    UnreadableCredentials,
)

Outcome = Literal["done", "refused", "failed", "unknown", "would_refuse"]
"""How it ended. ``failed``: nothing was changed, or what was is being undone; ``unknown``: it may have been changed."""

log: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
    None, wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET)
)

_REFUSALS = (Refusal, UnreadableCredentials, PolicyViolation, Busy, Overloaded)


def is_refusal(error: BaseException | None) -> bool:
    """Whether ``error`` says that something was not even tried: no permission, against a rule, or beyond a limit."""
    return isinstance(error, _REFUSALS)


def outcome_of(error: BaseException | None) -> Outcome:
    """How a mutation ended that raised ``error``, or nothing."""
    if error is None:
        return "done"
    if is_refusal(error):
        return "refused"
    known = isinstance(error, TierstoreError) and not isinstance(error, OutcomeUnknown | Broken)
    return "failed" if known else "unknown"
