"""Requests to Bigtable stay within what the service takes, where its emulator takes more."""

import pytest
from google.cloud.bigtable_v2.types import RowSet

from tierstore.bigtable.table import in_requests
from tierstore.limits import MIB


@pytest.mark.parametrize(("count", "key_bytes"), [(0, 1), (1, 4_096), (500, 4_096), (500, 40), (70_000, 1)])
def test_keys_of_one_request_are_few_enough(count: int, key_bytes: int) -> None:
    """The service refuses a row set of more than 1 MiB: one page of long keys would be twice that."""
    keys = [number.to_bytes(4).rjust(key_bytes, b"k")[-max(key_bytes, 4) :] for number in range(count)]
    requests = list(in_requests(keys))
    assert [key for request in requests for key in request] == keys
    assert all(requests)
    for request in requests:
        assert RowSet(row_keys=request)._pb.ByteSize() <= MIB  # because only the library knows how it is written
    assert len(requests) <= 1 + sum(map(len, keys)) // (MIB // 8)
