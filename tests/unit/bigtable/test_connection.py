"""What is looked at before a table of Bigtable is used: the application profile, which the emulator lacks, and the
rules.
"""

from typing import Any

import pytest
from google.cloud.bigtable_admin_v2.types import ColumnFamily
from structlog.testing import capture_logs

from tierstore.bigtable.connection import Family, Place, check_families, check_routing
from tierstore.errors import StartupError

PLACE = Place(project="project", instance="instance", table="objects", app_profile="profile")
DAY = 86_400


def test_a_profile_with_one_cluster_and_transactions_will_do() -> None:
    """No error."""
    check_routing(PLACE, single_cluster=True, transactions=True)


@pytest.mark.parametrize(
    ("single_cluster", "transactions", "words"),
    [
        (False, False, "routes to any cluster, so that reads could be old"),
        (False, True, "routes to any cluster, so that reads could be old"),
        (True, False, "does not allow single-row transactions"),
    ],
)
def test_any_other_profile_stops_the_start(words: str, *, single_cluster: bool, transactions: bool) -> None:
    """With a sentence that names it, and what it lacks."""
    with pytest.raises(StartupError, match=f"application profile profile of the Bigtable instance instance {words}"):
        check_routing(PLACE, single_cluster=single_cluster, transactions=transactions)


def aged(days: int) -> dict[str, Any]:
    """A rule that collects what is older."""
    return {"max_age": {"seconds": days * DAY}}


ONE_VERSION = {"max_num_versions": 1}


@pytest.mark.parametrize(
    "rule",
    [
        aged(2),
        aged(30),
        {"union": {"rules": [ONE_VERSION, aged(2)]}},
        {"union": {"rules": [aged(9), aged(2)]}},
        {"intersection": {"rules": [aged(1), aged(2)]}},
    ],
)
def test_rules_that_keep_long_enough(rule: dict[str, Any]) -> None:
    """A union collects what any of its rules does, an intersection what all of them do."""
    with capture_logs() as logs:
        check_families(PLACE, [Family("row", 2.0 * DAY)], {"row": ColumnFamily(gc_rule=rule)})
    assert logs == []


@pytest.mark.parametrize(
    "rule",
    [
        aged(1),
        {"union": {"rules": [ONE_VERSION, aged(1)]}},
        {"union": {"rules": [aged(9), aged(1)]}},
        {"intersection": {"rules": [aged(1), aged(1)]}},
        {"union": {"rules": [aged(9), {"intersection": {"rules": [aged(1), aged(1)]}}]}},
    ],
)
def test_rules_that_collect_too_soon(rule: dict[str, Any]) -> None:
    """They stop the start: objects would be lost."""
    with pytest.raises(StartupError, match="would lose objects"):
        check_families(PLACE, [Family("row", 2.0 * DAY)], {"row": ColumnFamily(gc_rule=rule)})


@pytest.mark.parametrize("rule", [{}, ONE_VERSION, {"intersection": {"rules": [ONE_VERSION, aged(1)]}}])
def test_rules_that_never_collect_by_age(rule: dict[str, Any]) -> None:
    """They are right where nothing may be collected, and worth a line in the log where something should be."""
    found = {"row": ColumnFamily(gc_rule=rule)}
    with capture_logs() as logs:
        check_families(PLACE, [Family("row")], found)
    assert logs == []
    with capture_logs() as logs:
        check_families(PLACE, [Family("row", 2.0 * DAY)], found)
    assert [line["log_level"] for line in logs] == ["warning"]


def test_where_nothing_may_be_collected_no_age_is_long_enough() -> None:
    """Not even a hundred years."""
    with pytest.raises(StartupError, match="never by age"):
        check_families(PLACE, [Family("index")], {"index": ColumnFamily(gc_rule=aged(36_600))})
