"""Every operation × every step × every fault × what comes after, judged by what is always true."""

import pytest

from tests.crash_matrix.faults import BY_NAME, KINDS
from tests.crash_matrix.operations import OPERATIONS
from tests.crash_matrix.runs import run_all
from tests.crash_matrix.table import size


@pytest.mark.parametrize(
    ("operation", "fault"),
    [
        pytest.param(operation.name, kind.name, id=f"{operation.name} | {kind.name}")
        for operation in OPERATIONS.values()
        for kind in KINDS
        if operation.upload or not kind.of_uploads
    ],
)
def test_whatever_happens_in_any_step_what_is_always_true_stays_true(operation: str, fault: str) -> None:
    """Nothing dangles and nothing is lost in any state, every answer is true, and sweeps leave no orphan."""
    assert run_all(OPERATIONS[operation], BY_NAME[fault]) == size().included[operation, fault]
