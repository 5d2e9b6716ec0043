"""The matrix notices when a rule of the protocol is taken away."""

import re
from pathlib import Path

import pytest

from tests.crash_matrix.faults import BY_NAME
from tests.crash_matrix.operations import OPERATIONS
from tests.crash_matrix.planted import SHOWN
from tests.crash_matrix.runs import Failures, run_all
from tierstore.testing.planted import PLANTED

SHOWN_ELSEWHERE = {"progress-cas"}
"""Rules whose absence no single fault shows: what overtakes an operation here runs to its end, and a session that has
ended is not advanced. Two attempts have to be in the middle of it at once: ``tests/simulation`` has them."""
PROTOCOL = Path(__file__).parents[2] / "docs" / "protocol.md"


@pytest.mark.parametrize("rule", sorted(set(PLANTED) - SHOWN_ELSEWHERE))
def test_a_planted_bug_is_caught(rule: str) -> None:
    """Without the rule, one operation with one kind of fault does what must never happen; with it, it does not."""
    showing = SHOWN[rule]
    operation, kind = OPERATIONS[showing.operation], BY_NAME[showing.fault]
    with pytest.raises(Failures) as caught:
        run_all(operation, kind, PLANTED[rule])
    assert any(showing.violation in failure for failure in caught.value.failures)
    assert run_all(operation, kind) > 0


def test_every_rule_of_the_protocol_is_planted() -> None:
    """The rules that ``docs/protocol.md`` names are all there."""
    rules = re.findall(r"^\| \[([a-z-]+)\]", PROTOCOL.read_text(), re.MULTILINE)
    assert len(rules) > 10
    assert set(rules) <= set(PLANTED)
