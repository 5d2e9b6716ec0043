"""CRC-32C (Castagnoli, RFC 3720, appendix B.4), the checksum that Google Cloud Storage keeps of every object."""

import google_crc32c

_BYTES = 4


class Crc32c:
    """The checksum of all bytes that it was updated with."""

    __slots__ = ("_value",)

    def __init__(self) -> None:
        self._value = 0

    def update(self, chunk: bytes, /) -> None:
        """Take in the next bytes."""
        self._value = google_crc32c.extend(self._value, chunk)

    def digest(self) -> bytes:
        """Four bytes, big-endian, as the service writes them."""
        return self._value.to_bytes(_BYTES)
