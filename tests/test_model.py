"""The exhaustive model of the commit protocol holds, every rule in it is needed, and the code names its rules."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "docs" / "model" / "commit_protocol.py"
RULE = re.compile(r"\[([a-z]+(?:-[a-z]+)?)\](?!\()")
NOT_IN_THE_MODEL = {"time", "progress-cas"}
"""It has no clock, and no parts."""
MODULES = ("commit", "settling", "uploads", "resumable")


def _run(*arguments: str) -> str:
    ran = subprocess.run(
        [sys.executable, str(MODEL), *arguments], capture_output=True, text=True, timeout=100, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_help_is_quick() -> None:
    """``--help`` says what the arguments are, and explores nothing."""
    shown = _run("--help")
    assert "--mutate" in shown
    assert "no dangling" in shown
    assert "states, no violation" not in shown


def test_a_wrong_operation_is_refused() -> None:
    """What names no operation is a mistake of the command line, found before anything is explored."""
    for arguments in (["AB", "AQ"], [""], ["AB", "--mutate"]):
        ran = subprocess.run([sys.executable, str(MODEL), *arguments], capture_output=True, text=True, check=False)
        assert (ran.returncode, ran.stdout) == (2, "")


def test_no_interleaving_breaks_what_is_always_true() -> None:
    """All jobs are explored to the end without a violation."""
    jobs = _run().splitlines()
    assert len(jobs) >= 58
    assert all(line.endswith("no violation") for line in jobs)


def test_every_rule_is_needed() -> None:
    """Without any one rule, the model finds a violation."""
    found = _run("--mutate")
    assert "NOT CAUGHT" not in found
    rules = set(re.findall(r"^without (\S+)", found, re.MULTILINE))
    named: set[str] = set()
    for module in MODULES:
        named |= set(RULE.findall((ROOT / f"src/tierstore/tiering/{module}.py").read_text().split('"""')[1]))
    assert named == rules | NOT_IN_THE_MODEL
    page = (ROOT / "docs/protocol.md").read_text()
    assert set(RULE.findall(page)) == named
