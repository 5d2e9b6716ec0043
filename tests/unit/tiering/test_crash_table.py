"""The crash table in the docs is the one that the code produces."""

import re
from pathlib import Path

from tests.unit.tiering.crash_table import crash_table

PAGE = Path(__file__).parents[3] / "docs" / "consistency.md"


async def test_the_page_has_the_table_as_it_is_now() -> None:
    """``docs/consistency.md`` shows what is observed; if it does not, print the table and put it there."""
    match = re.search(r"<!-- crash table -->\n(.*?)\n<!-- end of crash table -->", PAGE.read_text(), re.DOTALL)
    assert match is not None
    assert match[1].strip() == await crash_table()


async def test_no_row_shows_anything_but_old_new_or_absent_as_allowed() -> None:
    """A write is old or new, whatever died; an operation on nothing never shows something that was not written."""
    for line in (await crash_table()).splitlines()[2:]:
        name, _, before, after = [cell.strip() for cell in line.strip("|").split("|")]
        was_absent = name.endswith("over nothing") or "expired" in name
        allowed = {"absent", "new"} if was_absent else {"old", "new"}
        if name.startswith("delete"):
            allowed = {"old", "absent"}
        for cell in (before, after):
            assert cell.split(",")[0] in allowed, line
