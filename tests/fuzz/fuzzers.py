"""What a fuzzer is, and how one is run.

A fuzzer is a strategy of inputs and a law that holds for each of them. The same one runs in the tests, with a fixed
seed and few inputs, and in the soak, with other seeds for as long as is asked.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis.strategies import SearchStrategy

from tierstore.errors import ClientMistake

PARSE_SECONDS_MAX = 0.5
"""Of a thread's own time, for one input. What is linear takes milliseconds; what is quadratic takes minutes."""


@dataclass(frozen=True)
class Fuzzer:
    """Inputs, and the law that holds for each of them."""

    name: str
    inputs: SearchStrategy[Any]
    law: Callable[[Any], None]
    weight: float = 1.0
    """How many inputs, compared to other fuzzers: fewer where one costs more."""

    def __repr__(self) -> str:
        return self.name

    def run(self, examples: int, seed: int) -> int:
        """Try ``examples`` inputs, about; return how many were tried. Raises what the law raises, with the input."""
        tried = 0

        def law(example: Any) -> None:
            nonlocal tried
            tried += 1
            self.law(example)

        wanted = max(1, round(examples * self.weight))
        seeded(seed)(configured(wanted)(given(self.inputs)(law)))()
        return tried


def configured(examples: int, steps: int = 30, *, shrink: bool = True) -> settings:
    """Settings that repeat exactly by their seed, and shrink what they find."""
    return settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, database=None, print_blob=False,
        report_multiple_bugs=False, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, *([Phase.shrink] if shrink else [])],
    )  # fmt: skip


def parsed(
    parse: Callable[[], Any],
    refusals: type[Exception] | tuple[type[Exception], ...] = ClientMistake,
    seconds_max: float = PARSE_SECONDS_MAX,
) -> Any:
    """What ``parse`` returns, or None if it refuses as it may. Fails if it takes long, whatever it does."""
    begun = time.thread_time()
    try:
        return parse()
    except refusals as error:
        if not str(error):
            raise AssertionError("a refusal does not say why") from error
        return None
    finally:
        seconds = time.thread_time() - begun
        assert seconds < seconds_max, f"it took {seconds:.2f} s"
