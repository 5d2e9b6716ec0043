"""The fuzzers and the state machine for as long as is asked, from a seed that is told.

``python -m tests.fuzz.soak SECONDS [SEED]`` does it alone. What it finds is shrunk, and told with the seed.
"""

import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing

from hypothesis import seed as seeded
from hypothesis.stateful import run_state_machine_as_test

from tests.fuzz import batches, configs, files, rows, values, wire
from tests.fuzz.asking import LIMITS
from tests.fuzz.fuzzers import Fuzzer, configured
from tests.fuzz.machine import machine_for
from tests.fuzz.serving import FuzzedServer

_EXAMPLES = 300
"""Inputs of one fuzzer before the next one's turn; after each, the time is looked at."""
_EXAMPLES_OF_MACHINE, _EXAMPLES_OF_MACHINE_ON_DISK = 0.3, 0.05
"""How many examples of the state machine for each input of a fuzzer."""
_MACHINE_STEPS = 50
_SEED_BITS = 32

Turn = tuple[str, Callable[[int], Mapping[str, int]]]
"""A name, and what is done with a seed; it returns what it has counted."""


def turns(examples: int) -> Generator[Turn]:
    """What takes its turn in a round, with ``examples`` inputs each, about. To be closed."""
    for fuzzers in (values.FUZZERS, configs.FUZZERS, files.FUZZERS, rows.FUZZERS):
        yield from (_turn(fuzzer, examples) for fuzzer in fuzzers)
    for enforce, fuzzers_of in (
        (False, wire.open_fuzzers),
        (False, batches.batch_fuzzers),
        (True, wire.guarded_fuzzers),
    ):
        with FuzzedServer(wire.LIMITS, enforce=enforce) as server:
            yield from (_turn(fuzzer, examples) for fuzzer in fuzzers_of(server))
    yield _machine_turn("state machine", round(examples * _EXAMPLES_OF_MACHINE), on_disk=False)
    yield _machine_turn("state machine, embedded", round(examples * _EXAMPLES_OF_MACHINE_ON_DISK), on_disk=True)


def run(
    seconds: float, seed: int, *, examples: int = _EXAMPLES, of: Callable[[int], Generator[Turn]] = turns
) -> Mapping[str, int]:
    """Fuzz for about ``seconds``; return the inputs by fuzzer, and the state machine's examples and requests.

    Every fuzzer has had its turn at least once when this returns. Raises `AssertionError`, with the seed and the shrunk
    example of the first law that does not hold.
    """
    sys.stderr.write(f"fuzzing for {seconds:g} seconds with seed {seed}\n")
    seeds = random.Random(seed)
    ends = time.monotonic() + seconds
    counted: Counter[str] = Counter()
    rounds = 0
    while not rounds or time.monotonic() < ends:
        with closing(of(examples)) as every:
            for name, turn in every:
                if rounds and time.monotonic() >= ends:
                    break
                drawn = seeds.getrandbits(_SEED_BITS)
                try:
                    counted.update(turn(drawn))
                except Exception as error:
                    shown = "".join(traceback.format_exception(error))
                    raise AssertionError(f"{name}, seed {drawn}, of a soak with seed {seed}:\n{shown}") from error
        rounds += 1
    return dict(counted)


def _turn(fuzzer: Fuzzer, examples: int) -> Turn:
    return fuzzer.name, lambda seed: {fuzzer.name: fuzzer.run(examples, seed)}


def _machine_turn(name: str, examples: int, *, on_disk: bool) -> Turn:
    def turn(seed: int) -> Mapping[str, int]:
        with FuzzedServer(LIMITS) as server:
            machine = machine_for(server, on_disk=on_disk)
            run_state_machine_as_test(seeded(seed)(machine), settings=configured(max(2, examples), _MACHINE_STEPS))
            return {f"{name}: examples": machine.examples, f"{name}: requests": machine.steps.total()}

    return name, turn


def main(arguments: Sequence[str]) -> None:
    """Soak for ``arguments[0]`` seconds, with the seed ``arguments[1]`` or a new one, and tell what was done."""
    seed = int(arguments[1]) if len(arguments) > 1 else random.SystemRandom().getrandbits(_SEED_BITS)
    for name, count in run(float(arguments[0]), seed).items():
        sys.stdout.write(f"{count:10,}  {name}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
