"""How many files a process may have open, which connections share with the stores.

Guarantees: connections alone never use up what there is. A server that cannot open another file can read no large
object, which is worse than one that ends connections on which nothing happens.
"""

import resource

import structlog

_OWN = 128
"""Files that the process has open whatever it does: databases, their threads, the log, the loop."""

log = structlog.get_logger(__name__)


def connections_that_fit(wanted: int) -> int:
    """``wanted``, or as many connections as leave an open file to the store for each; says so if that is less."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return wanted
    fit = max(1, (allowed - _OWN) // 2)
    if fit < wanted:
        log.info(
            "fewer connections than http.connections_max are taken: the limit on open files is too low for them",
            connections_max=fit,
            open_files_max=allowed,
            open_files_wanted=2 * wanted + _OWN,
        )
    return min(wanted, fit)
