"""Whatever becomes of the bytes of a batch: an answer made of parts, or a refusal."""

from tests.fuzz.batches import batch_fuzzers
from tests.fuzz.serving import FuzzedServer
from tests.fuzz.wire import LIMITS

EXAMPLES = 150


def test_batches_of_any_bytes() -> None:
    """Each operation has one result at most, all have one in a whole answer, and no result tells of a fault."""
    with FuzzedServer(LIMITS) as server:
        for fuzzer in batch_fuzzers(server):
            assert fuzzer.run(EXAMPLES, seed=0) > 0
