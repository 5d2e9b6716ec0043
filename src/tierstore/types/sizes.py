"""Sizes in bytes as people write them: ``4096``, ``64 KiB``, ``1.5MiB``, ``10 MB``.

Guarantees: `parse_size` of what `format_size` wrote is the same number of bytes. Unit names are read in any case; those
with an ``i`` are powers of 1024, those without are powers of 1000. Does not: know negative sizes, or a bare ``K``.
"""

import re
from decimal import Decimal

from tierstore.errors import InvalidRequest
from tierstore.limits import GIB, KIB, MIB, TIB

SIZE_PATTERN = r"([0-9]{1,20}(?:\.[0-9]{1,20})?) *([A-Za-z]*)"
_BINARY_UNITS = {"TiB": TIB, "GiB": GIB, "MiB": MIB, "KiB": KIB}
_UNITS = {name.lower(): factor for name, factor in _BINARY_UNITS.items()} | {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}


def parse_size(text: str) -> int:
    """Return the whole bytes that ``text`` stands for. Raises `InvalidRequest`."""
    match = re.fullmatch(SIZE_PATTERN, text.strip(" \t"), re.ASCII)
    if match is None or (factor := _UNITS.get(match[2].lower())) is None:
        raise InvalidRequest("a size is a number and a unit: 4096, 64 KiB, 1.5 MiB or 10 MB")
    size = Decimal(match[1]) * factor
    if size != int(size):
        raise InvalidRequest("a size is a whole number of bytes")
    return int(size)


def format_size(size: int) -> str:
    """Write ``size`` bytes in the largest binary unit that is exact."""
    for name, factor in _BINARY_UNITS.items():
        if size and size % factor == 0:
            return f"{size // factor} {name}"
    return f"{size} B"
