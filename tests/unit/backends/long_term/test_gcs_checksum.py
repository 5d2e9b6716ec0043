"""CRC-32C as Google Cloud Storage keeps it."""

from hypothesis import given
from hypothesis import strategies as st

from tierstore.backends.long_term.gcs_checksum import Crc32c


def test_the_checksum_of_the_standard() -> None:
    """The check value of CRC-32C, and the examples of RFC 3720, appendix B.4."""
    for content, value in (
        (b"123456789", "e3069283"),
        (bytes(32), "8a9136aa"),
        (b"\xff" * 32, "62a8ab43"),
        (b"", "0" * 8),
    ):
        checksum = Crc32c()
        checksum.update(content)
        assert checksum.digest().hex() == value


@given(chunks=st.lists(st.binary(max_size=64), max_size=8))
def test_it_does_not_matter_how_bytes_are_cut(chunks: list[bytes]) -> None:
    """Chunk by chunk it is the same as of all of them together."""
    piecemeal, whole = Crc32c(), Crc32c()
    for chunk in chunks:
        piecemeal.update(chunk)
    whole.update(b"".join(chunks))
    assert piecemeal.digest() == whole.digest()
