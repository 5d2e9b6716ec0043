"""What ``docs/consistency.md`` shows of the crash matrix is what the code does."""

import re
import subprocess
import sys

import pytest

from tests.crash_matrix.table import PAGE, blocks, crash_table, main, pattern_of


@pytest.mark.parametrize("name", blocks())
def test_the_page_is_as_it_is_now(name: str) -> None:
    """The page shows what is observed; ``python -m tests.crash_matrix.table --write`` brings it up to date."""
    match = pattern_of(name).search(PAGE.read_text())
    assert match is not None
    assert match[2] == blocks()[name]


def test_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """Unless it is told to write, it changes nothing, and prints what the page is to show; ``--help`` says so."""
    before = PAGE.read_bytes(), PAGE.stat().st_mtime_ns
    main([])
    printed = capsys.readouterr().out
    assert [block for block in blocks().values() if block not in printed] == []
    ended = subprocess.run(
        [sys.executable, "-m", "tests.crash_matrix.table", "--help"], capture_output=True, text=True, check=True
    )
    assert "--write" in ended.stdout
    assert (PAGE.read_bytes(), PAGE.stat().st_mtime_ns) == before


def test_no_row_shows_anything_but_old_or_new() -> None:
    """An operation begins with the old state, turns to the new one at most once, and never back."""
    groups: list[list[str]] = []
    for line in crash_table().splitlines()[2:]:
        name, _, seen, _ = [cell.strip() for cell in line.strip("|").split("|")]
        if name:
            groups.append([])
        groups[-1].append(seen)
    assert len(groups) > 20
    for seen_states in groups:
        assert re.fullmatch("(old )+(new )*", "".join(f"{seen} " for seen in seen_states)), seen_states
