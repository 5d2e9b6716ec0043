"""The model of ``docs/model/commit_protocol.py``, with types: what it says, and nothing of its own."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PATH = Path(__file__).parents[2] / "docs" / "model" / "commit_protocol.py"

ModelRow = tuple[int, tuple[str, ...], int]
"""Version, content, token."""
ModelEntry = tuple[str, str, str, int, str]
"""Revision, owner, role, epoch, state."""
Locals = tuple[Any, ...]
Outcome = tuple[str, Locals, dict[str, Any]]
"""Next place, locals, changes to the shared state."""


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("commit_protocol", _PATH)
    if spec is None or spec.loader is None:
        raise ImportError(str(_PATH))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_model = _load()

RULES: frozenset[str] = _model.RULES
NO_ROW: ModelRow = (0, ("none",), 0)


def step(kind: str, me: str, rev: str, pc: str, loc: Locals, state: Mapping[str, Any]) -> list[Outcome]:
    """All outcomes of one step, with every rule in force."""
    outcomes: list[Outcome] = _model.step(RULES, kind, me, rev, pc, loc, state)
    return outcomes


def entry_of(log: frozenset[ModelEntry], rev: str, owner: str) -> ModelEntry | None:
    """The entry of ``rev`` and ``owner`` (``U``: the upload's own)."""
    found: ModelEntry | None = _model.entry(log, rev, owner)
    return found


def empty_state() -> dict[str, Any]:
    """The shared state before anything has happened."""
    state: dict[str, Any] = _model.start()
    return state
