"""What an error of PostgreSQL, or of who is between, says about what has happened."""

import asyncpg
import pytest

from tierstore.errors import OutcomeUnknown, Unavailable
from tierstore.postgresql.errors import is_refusal, may_be_repeated, spoils_connection, translated


def said(code: str, severity: str) -> asyncpg.PostgresError:
    """An error as it comes over the wire."""
    return asyncpg.PostgresError.new({"S": severity, "V": severity, "C": code, "M": "said so"})


@pytest.mark.parametrize(
    ("code", "severity", "is_certain"),
    [
        ("40001", "ERROR", True),
        ("57014", "ERROR", True),
        ("57P01", "FATAL", False),
        ("08006", "ERROR", False),  # as poolers say that they have lost the server
        ("08007", "ERROR", False),
        ("08P01", "ERROR", False),
        ("40003", "ERROR", False),
    ],
)
def test_a_write_whose_outcome_is_lost_is_not_said_to_have_failed(code: str, severity: str, is_certain: bool) -> None:
    """A connection that is lost behind a pooler is one, though it calls that an error of the statement."""
    error = said(code, severity)
    assert is_refusal(error) == is_certain
    assert isinstance(translated(error, writes=True, place="x"), OutcomeUnknown) != is_certain
    assert type(translated(error, writes=False, place="x")) is Unavailable
    assert spoils_connection(error) != is_certain
    assert may_be_repeated(error) == (code == "40001")
