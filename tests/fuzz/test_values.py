"""Nothing that a client or a store hands over does worse than to be refused."""

import pytest

from tests.fuzz.fuzzers import Fuzzer
from tests.fuzz.values import FUZZERS

EXAMPLES = 80


@pytest.mark.parametrize("fuzzer", FUZZERS, ids=repr)
def test_values(fuzzer: Fuzzer) -> None:
    """Any input becomes a value of ours or a documented refusal, at once; what is written is read back."""
    assert fuzzer.run(EXAMPLES, seed=0) > 0
