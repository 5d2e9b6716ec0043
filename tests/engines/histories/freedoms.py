"""In which points a store may answer something else than the one in memory, and what in the contracts allows it.

This is the only place of such exceptions: everything else must be equal. Each names the sentences that it rests on, and
a test looks that the contracts still have them.
"""

from enum import Enum
from types import ModuleType

from tierstore.backends.high_volume import contract as high_volume
from tierstore.backends.long_term import contract as long_term
from tierstore.changelog import contract as changelog
from tierstore.types import multipart


class Freedom(Enum):
    """One such point: the module that allows it, and the sentence."""

    def __init__(self, module: ModuleType, sentence: str) -> None:
        self.module = module
        self.sentence = sentence

    VERSIONS = (
        high_volume,
        "a *version* (the identity of its content, new with every write of content, never used twice)",
    )
    """What a version is: only which ones are equal counts."""
    FENCES = (
        high_volume,
        "every write that makes the row point to a blob, to another one, or no longer to one. It stays through all",
    )
    """What ``fenced`` is: only which ones of one row are equal counts."""
    UPLOAD_IDS = (long_term, "return the store's own id of it, visible ASCII")
    """What the id is of an upload."""
    ETAGS = (long_term, "from then on only the new one's ETag names it. Parts with other content have other ETags.")
    """What an ETag is. A part that is stored once more may have a new one, also if its content is the same."""
    TIMES_OF_BLOBS = (long_term, "by the store's clock, to the second at least. For people; nothing is decided by it")
    """``stored`` of a blob is not compared."""
    TIMES_OF_PARTS = (multipart, "One part of an upload, as the long-term store has it.")
    """``stored`` of a part is not compared: likewise."""
    CHUNKS = (long_term, "an async iterator of non-empty chunks")
    """Where a stream is cut is not compared; that no chunk is empty, is."""
    ORDER_OF_BLOBS = (long_term, "In an order of the backend's own that does not change")
    """A listing of blobs is read to its end, and compared as a whole."""
    TIES_OF_ROWS = (high_volume, "whose deadline is at or before ``by``, at most ``limit``, earliest first.")
    """Rows with the same deadline come in any order; of those at the end of a full page, it may be any."""
    TIES_OF_ENTRIES = (changelog, "whose ``not_before`` is at or before ``now``, at most ``limit``, earliest first.")
    """Likewise entries with the same ``not_before``."""
    MARKERS = (high_volume, "Physically remove at most ``limit`` `Gone` rows written at or before ``before``")
    """Which ones, where there are more. No recorded history has such a call, for it leaves the stores different."""
    INLINE_ROWS_UNLISTED = (high_volume, "A store that removes inline rows by itself may list only tombstones.")
    """Inline rows may be missing from the expired ones."""
    REPEATS = (
        long_term,
        "What repeating `complete` or `abort` answers, stores differ in: success, or `NoSuchUpload`.",
    )
    """Of an upload that is not in progress."""
    OTHER_PARTS = (
        long_term,
        "one that was completed with other parts is `InvalidPart` or `InvalidPartOrder` where the store can tell.",
    )
    """Likewise."""
    DELETE_ABORTS = (
        long_term,
        "An upload of the revision that is still in progress may be aborted by this, or not",
    )
    """After such a delete, nothing is compared of the upload."""
    DEBRIS = (long_term, "Remove what crashed writers left behind that never became a blob")
    """How much there is: a put that failed may leave something, or not."""
