"""The HTTP API does what a dictionary does, over every sequence of requests that is tried."""

import pytest
from hypothesis import seed
from hypothesis.stateful import run_state_machine_as_test

from tests.fuzz.asking import LIMITS
from tests.fuzz.fuzzers import configured
from tests.fuzz.machine import machine_for
from tests.fuzz.planted import PLANTED
from tests.fuzz.serving import FuzzedServer
from tierstore.service.service import ObjectService

EXAMPLES, EXAMPLES_ON_DISK = 30, 6
"""Sequences that are tried."""
REQUESTS_MIN, REQUESTS_ON_DISK_MIN = 20, 4
"""How many requests of each method there have to be in them."""


@pytest.mark.parametrize("run", range(4))
def test_the_api_is_a_dictionary(run: int) -> None:
    """Whatever is asked, in any order, status, headers and bodies are the model's."""
    check(run, EXAMPLES, REQUESTS_MIN, on_disk=False)


@pytest.mark.parametrize("run", range(2))
def test_the_api_is_a_dictionary_on_disk(run: int) -> None:
    """So it is with the embedded stores."""
    check(run, EXAMPLES_ON_DISK, REQUESTS_ON_DISK_MIN, on_disk=True)


def check(run: int, examples: int, requests_min: int, *, on_disk: bool) -> None:
    """Run the machine; see that it has asked enough of each."""
    with FuzzedServer(LIMITS) as server:
        machine = machine_for(server, on_disk=on_disk)
        run_state_machine_as_test(seed(run)(machine), settings=configured(examples))
    assert machine.examples >= examples
    methods = ("GET", "HEAD", "PUT", "POST", "PATCH", "DELETE")
    assert min(machine.steps[method] for method in methods) >= requests_min


@pytest.mark.parametrize("service", PLANTED)
def test_planted_bugs_are_found(service: type[ObjectService]) -> None:
    """A service that is wrong in one way is found out, in as many examples as the right one has to pass."""
    with FuzzedServer(LIMITS, service=service) as server:
        machine = seed(0)(machine_for(server))
        with pytest.raises(Exception) as found:  # noqa: PT011  # because any check may be the one that finds it
            run_state_machine_as_test(machine, settings=configured(4 * EXAMPLES, shrink=False))
    assert "state." in "\n".join(found.value.__notes__)
