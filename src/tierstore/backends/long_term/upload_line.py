"""The operations of one process that change one upload of the filesystem's store: who is next, and what they share.

Guarantees: one of them at a time has the turn, in the order in which they came; so they do not poll for the upload's
lock against each other. Parts that are finished meanwhile are published together, by whichever of them has its turn
first, and one sync makes durable all that were published before it began: so a thousand parts at once wait for two
locks and two syncs, not for a thousand of each. A part that has been taken to be published is known to be, so that its
caller, who may be cancelled, knows whether there is something to be withdrawn.

Does not: keep other processes out, which the lock does; run anything by itself.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from functools import partial

from tierstore.backends.long_term.part_file import PartWriter
from tierstore.errors import NoSuchUpload, Unavailable


class FinishedPart:
    """A part that is whole and durable, and waits for its name."""

    def __init__(self, writer: PartWriter) -> None:
        self.writer = writer
        self.is_taken = False
        """Whether somebody publishes it, or has done so, or has failed."""
        self.error: OSError | Unavailable | None = Unavailable("the part was not stored; try again")
        """Why it is not published; None once it is."""
        self.syncs_before = 0
        """How many syncs had begun when it was published, which need not have made it durable."""
        self.failures_before = 0
        """How many of them had failed."""


class UploadLine:
    """The line of one upload. For one event loop; `publish` runs in a thread."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        """To be held by whoever changes the upload."""
        self._finished: list[FinishedPart] = []
        self._finished_lock = threading.Lock()
        self._syncing = asyncio.Lock()
        self._syncs_begun = 0
        self._syncs_failed = 0
        self._sync_done = 0
        """The last sync that did not fail, by its number from 1 on."""

    def join(self, writer: PartWriter) -> FinishedPart:
        """Have a finished part published by the next one who does that."""
        part = FinishedPart(writer)
        with self._finished_lock:
            self._finished.append(part)
        return part

    def leave(self, part: FinishedPart) -> bool:
        """Have it published by nobody, unless somebody has taken it to do so; return whether it was not taken."""
        with self._finished_lock:
            if not part.is_taken:
                self._finished.remove(part)
            return not part.is_taken

    def publish(self) -> None:
        """Publish the parts that wait. While the upload is locked. Blocking; what fails is kept with its part."""
        with self._finished_lock:  # those that come from now on are left to the next one, for this to end
            parts = list(self._finished)
            self._finished.clear()
            for part in parts:
                part.is_taken = True
        for part in parts:
            try:
                part.writer.publish()
            except OSError as error:
                part.error = error
                continue
            part.error = None
            # After that: a sync with a higher number begins when it has its name.
            part.syncs_before, part.failures_before = self._syncs_begun, self._syncs_failed

    async def make_durable(
        self, part: FinishedPart, in_thread: Callable[[Callable[[], None]], Awaitable[None]]
    ) -> None:
        """Return when a sync that began after ``part`` was published has ended; make one if nobody else does.

        Raises as `PartWriter.make_durable`, and `Unavailable` if that of another part has failed since ``part`` was
        published: the next one's success says nothing of what was to be synced before, for the kernel reports an error
        once.
        """
        async with self._syncing:
            if self._syncs_failed > part.failures_before:
                raise Unavailable("the blob store could not make a part durable")
            if self._sync_done <= part.syncs_before:
                self._syncs_begun += 1
                await in_thread(partial(self._sync, part.writer, self._syncs_begun))

    def _sync(self, writer: PartWriter, number: int) -> None:
        # Noted here, because whoever waits for it may be cancelled, and the others have to know.
        try:
            writer.make_durable()
        except NoSuchUpload:  # nothing has failed; the others find the same
            raise
        except BaseException:
            self._syncs_failed += 1
            raise
        self._sync_done = number
