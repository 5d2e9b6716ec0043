"""Laws of `tierstore.admission.killswitches`."""

import pytest

from tierstore.admission.conditions import Condition
from tierstore.admission.killswitches import Killswitches
from tierstore.errors import Forbidden
from tierstore.types.ids import Scope

ORG = Scope("org", "17")


def test_without_killswitches_nothing_is_stopped() -> None:
    """The default stops nobody."""
    Killswitches().check("attachments", (ORG,), "relay")


def test_one_killswitch_that_holds_is_enough() -> None:
    """Each is tried; that others do not mean the request changes nothing."""
    switches = Killswitches((Condition(usecase="profiles"), Condition(usecase="attachments", scopes=(ORG,))))
    with pytest.raises(Forbidden):
        switches.check("attachments", (ORG,), None)
    with pytest.raises(Forbidden):
        switches.check("profiles", (), None)
    switches.check("attachments", (Scope("org", "18"),), None)
    switches.check("replays", (ORG,), None)


def test_the_caller_does_not_learn_which() -> None:
    """The answer names neither the condition nor another tenant."""
    with pytest.raises(Forbidden) as refused:
        Killswitches((Condition(service="secret-*"),)).check("attachments", (ORG,), "secret-service")
    assert "secret" not in str(refused.value)
