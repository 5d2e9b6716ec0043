"""Damaged files of the filesystem store are found out, or what is read of them is right."""

import pytest

from tests.fuzz.files import FUZZERS
from tests.fuzz.fuzzers import Fuzzer

EXAMPLES = 60


@pytest.mark.parametrize("fuzzer", FUZZERS, ids=repr)
def test_files(fuzzer: Fuzzer) -> None:
    """What is read is what was written, or an error says that it is not; damage keeps nothing from being removed."""
    assert fuzzer.run(EXAMPLES, seed=0) > 0
