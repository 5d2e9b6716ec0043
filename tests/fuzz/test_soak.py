"""The soak tells what it did, and what it found."""

from collections.abc import Generator

import pytest
from hypothesis import strategies as st

from tests.fuzz import configs, files, rows, soak, values
from tests.fuzz.fuzzers import Fuzzer, parsed
from tests.fuzz.soak import Turn
from tierstore.errors import InvalidRequest


def test_everything_has_its_turn() -> None:
    """However short the soak, each fuzzer and both state machines have tried something."""
    counted = soak.run(0, seed=1, examples=5)
    names = {fuzzer.name for fuzzer in (*values.FUZZERS, *configs.FUZZERS, *files.FUZZERS, *rows.FUZZERS)}
    names |= {"any bytes", "any bytes, one by one", "pipelines", "credentials", "batches", "batches, byte by byte"}
    names |= {
        f"{name}: {what}" for name in ("state machine", "state machine, embedded") for what in ("examples", "requests")
    }
    assert set(counted) == names
    assert min(counted.values()) > 0


def test_what_is_found_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """A law that does not hold ends the soak with the smallest input that breaks it, and the seed to find it again."""

    def law(number: int) -> None:
        assert number < 1_000

    def turns(examples: int) -> Generator[Turn]:
        fuzzer = Fuzzer("numbers", st.integers(0, 10**9), law)
        yield fuzzer.name, lambda seed: {fuzzer.name: fuzzer.run(examples, seed)}

    told = []
    for _ in range(2):
        with pytest.raises(AssertionError) as failed:
            soak.run(60, seed=7, examples=300, of=turns)
        told.append(str(failed.value).splitlines()[0])
        assert "example=1_000" in str(failed.value) or "example=1000" in str(failed.value)
    assert told[0] == told[1]
    assert told[0].startswith("numbers, seed ")
    assert "with seed 7" in capsys.readouterr().err


def test_a_slow_parser_is_found() -> None:
    """What takes long fails, though it ends and says something sensible."""
    with pytest.raises(AssertionError, match="it took"):
        parsed(lambda: sum(range(1_000_000)), InvalidRequest, seconds_max=0.0001)


def test_a_silent_refusal_is_found() -> None:
    """A refusal that does not say why fails, and so does an exception that is none."""

    def refuse(error: Exception) -> None:
        raise error

    assert parsed(lambda: refuse(InvalidRequest("because"))) is None
    with pytest.raises(AssertionError, match="does not say why"):
        parsed(lambda: refuse(InvalidRequest("")))
    with pytest.raises(KeyError):
        parsed(lambda: refuse(KeyError("x")))
