"""Payloads that prove themselves: bytes that follow from a name, so that no two of them have a stretch in common."""

import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache

_WINDOW_BYTES = 4096


@lru_cache(maxsize=32)
def payload_of(name: str, size: int) -> bytes:
    """The ``size`` bytes that belong to ``name``; they cannot be compressed."""
    return hashlib.shake_128(name.encode()).digest(size)


def digest_of(payload: bytes) -> str:
    """What tells payloads apart."""
    return hashlib.sha256(payload).hexdigest()


def described(payload: bytes, known: Mapping[str, bytes]) -> str:
    """Of what a payload is made that is none of the ``known`` ones: for each stretch, whose bytes stand there."""
    owners = (_owner(payload[at : at + _WINDOW_BYTES], at, known) for at in range(0, len(payload), _WINDOW_BYTES))
    stretches = ", ".join(
        f"bytes {first * _WINDOW_BYTES} to {min(last * _WINDOW_BYTES, len(payload))} of {owner}"
        for owner, first, last in _runs(owners)
    )
    return f"{len(payload)} bytes: {stretches or 'none'}"


def _owner(window: bytes, at: int, known: Mapping[str, bytes]) -> str:
    for name, payload in known.items():
        if payload[at : at + len(window)] == window:
            return name
    return "nobody"


def _runs(owners: Iterable[str]) -> list[tuple[str, int, int]]:
    runs: list[tuple[str, int, int]] = []
    for number, owner in enumerate(owners):
        if runs and runs[-1][0] == owner:
            runs[-1] = (owner, runs[-1][1], number + 1)
        else:
            runs.append((owner, number, number + 1))
    return runs
