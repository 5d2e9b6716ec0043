"""Damage: what becomes of valid bytes on their way, and what an attacker makes of them."""

from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

_INTERESTING = (
    b"\x00", b"\xff", b"\x7f", b"\x80", b"\r\n", b"\n", b"\r", b"\t", b" ", b"%", b"%00", b"%2F", b"%ff", b"%C0%AF",
    b"/", b"..",
    b"=", b";", b"&", b"?", b"#", b'"', b"\\", b":", b",", b"-", b"+", b"0", b"9" * 25, b"\xc3\x28", b"\xed\xa0\x80",
    b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\xd9\xa3",
)  # fmt: skip
"""Ends, separators and escapes of some grammar; the last: a broken sequence, a surrogate, marks, an Arabic digit."""


@st.composite
def damaged(draw: DrawFn, valid: SearchStrategy[bytes], changes_max: int = 3) -> bytes:
    """Valid bytes with a few changes: bits, bytes, cuts, repetitions, pieces of others."""
    raw = bytearray(draw(valid))
    for _ in range(draw(st.integers(1, changes_max))):
        at = draw(st.integers(0, len(raw)))
        end = min(len(raw), at + draw(st.sampled_from([0, 1, 2, 8, 1_000_000])))
        match draw(st.sampled_from(["flip", "set", "insert", "remove", "repeat", "splice", "truncate"])):
            case "flip" if at < len(raw):
                raw[at] ^= 1 << draw(st.integers(0, 7))
            case "set" if at < len(raw):
                raw[at] = draw(st.integers(0, 255))
            case "insert":
                raw[at:at] = draw(st.sampled_from(_INTERESTING) | st.binary(max_size=4))
            case "remove":
                del raw[at:end]
            case "repeat":
                raw[at:at] = bytes(raw[at:end]) * draw(st.sampled_from([1, 2, 50]))
            case "splice":
                other = draw(valid)
                raw[at:end] = other[draw(st.integers(0, len(other))) :]
            case _:
                del raw[at:]
    return bytes(raw)


def damaged_text(valid: SearchStrategy[str], changes_max: int = 3) -> SearchStrategy[str]:
    """The same for text, as latin-1 reads it: what a header holds."""
    return damaged(valid.map(lambda text: text.encode("utf-8", "surrogatepass")), changes_max).map(
        lambda raw: raw.decode("latin-1")
    )


@dataclass(frozen=True)
class LongText:
    """A piece over and over, between two others."""

    first: str
    piece: str
    last: str
    length: int

    @property
    def text(self) -> str:
        """All of it."""
        return self.first + self.piece * (self.length // len(self.piece)) + self.last


def long_winded(*pieces: str, length: int = 30_000) -> SearchStrategy[LongText]:
    """Long text of few pieces: what a slow parser is slow on."""
    ends = st.sampled_from(["", *pieces])
    units = st.lists(st.sampled_from(pieces), min_size=1, max_size=3).map("".join)
    return st.builds(LongText, ends, units, ends, st.just(length))


def any_text(max_size: int | None = 60) -> SearchStrategy[str]:
    """Any text at all, also what UTF-8 cannot hold."""
    return st.text(max_size=max_size) | st.text(st.characters(), max_size=max_size)
