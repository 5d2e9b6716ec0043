"""The metrics: what alerts watch is there from the start."""

import pytest
from prometheus_client import Counter

from tierstore import telemetry


@pytest.mark.parametrize(
    ("counter", "values"),
    [
        (telemetry.upload_completes, {"completed", "repeated", "no_such_upload", "invalid", "retry", "error"}),
        (telemetry.upload_aborts, {"client", "retention"}),
    ],
)
def test_every_series_of_uploads_exists_before_its_first_event(counter: Counter, values: set[str]) -> None:
    """An increase from nothing to 1 is invisible to `increase()`, so each label has its series at once."""
    (family,) = counter.collect()
    assert {value for sample in family.samples for value in sample.labels.values()} == values
