"""No combination vanishes quietly."""

import ast
from pathlib import Path

from tests.crash_matrix.aftermath import AFTERMATHS
from tests.crash_matrix.combinations import EXCLUSIONS
from tests.crash_matrix.faults import KINDS, has_effect
from tests.crash_matrix.operations import OPERATIONS
from tests.crash_matrix.runs import stores_of
from tests.crash_matrix.table import MEANING, size

TIERING = Path(__file__).parents[2] / "src" / "tierstore" / "tiering"
STORES = {"_high_volume", "_long_term", "_changelog"}


def _calls_in_tiering() -> set[str]:
    """What the tiering layer asks of the stores, as its source has it."""
    return {
        f"{node.value.attr.removeprefix('_')}.{node.attr}"
        for file in TIERING.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr in STORES
    }


def test_every_call_of_the_tiering_layer_is_a_step() -> None:
    """Whatever the tiering layer asks of a store, some operation asks it where every fault happens."""
    steps = {step for steps in size().steps.values() for step in steps}
    calls = _calls_in_tiering()
    assert len(calls) > 20
    assert calls <= steps


def test_every_step_with_an_effect_has_a_meaning() -> None:
    """The words of the table are those of the steps that there are, and no others."""
    named = {step for steps in size().steps.values() for step in steps if has_effect(step)}
    assert set(MEANING) | {"changelog.record_again", "changelog.expedite"} == named


def test_all_combinations_are_run_or_excluded_for_a_reason() -> None:
    """Operations × steps × faults × aftermaths, no more and no less; the page has the numbers."""
    found = size()
    product = sum(
        len(found.steps[operation.name]) * len(KINDS) * len(AFTERMATHS) * len(stores_of(operation))
        for operation in OPERATIONS.values()
    )
    assert found.included.total() + found.excluded.total() == product
    assert set(found.excluded) == {each.reason for each in EXCLUSIONS}


def test_every_operation_meets_every_kind_of_fault() -> None:
    """Save where a kind needs an upload in progress, or an effect, and the operation has none."""
    found = size()
    for operation in OPERATIONS.values():
        effects = any(has_effect(step) for step in found.steps[operation.name])
        for kind in KINDS:
            makes_sense = (effects or not kind.of_effects) and (operation.upload or not kind.of_uploads)
            assert (found.included[operation.name, kind.name] > 0) == makes_sense, (operation.name, kind.name)
