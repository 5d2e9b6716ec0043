"""What comes after a fault."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.crash_matrix.operations import Operation
from tests.crash_matrix.scene import LIMITS, Scene
from tierstore.errors import NoSuchUpload, Unavailable


@dataclass(frozen=True)
class Aftermath:
    """What comes after."""

    name: str
    follow: Callable[[Scene, Operation], Awaitable[object]]
    meanwhile: bool = False
    """Whether it begins with the fault, and runs while the operation goes on; else when that has ended."""
    sweeps: bool = False
    """Whether a sweeper comes in it when the time has come."""


async def _nothing(scene: Scene, _operation: Operation) -> None:
    await scene.read(scene.client_process)


async def _retry(scene: Scene, operation: Operation) -> None:
    """The client asks for the same again. That has to succeed, unless others have taken its upload over."""
    may_fail = operation.retry_may_fail(scene)
    try:
        await operation.act(scene, scene.client_process)
    except (NoSuchUpload, Unavailable):
        if not may_fail:
            raise


async def _small_write(scene: Scene, _operation: Operation) -> None:
    await scene.put(scene.client_process, scene.small())


async def _large_write(scene: Scene, _operation: Operation) -> None:
    await scene.put(scene.client_process, scene.large())


async def _another_upload(scene: Scene, _operation: Operation) -> None:
    await scene.complete(scene.client_process, await scene.begin_upload(scene.client_process))


async def _delete(scene: Scene, _operation: Operation) -> None:
    await scene.delete(scene.client_process)


async def _sweep(scene: Scene, operation: Operation) -> None:
    """A sweeper comes when the operation's entries are due, and then the client tries again."""
    await scene.pass_time(LIMITS.entry_grace_seconds + 1)
    await scene.sweep()
    await _retry(scene, operation)


async def _settle(scene: Scene, _operation: Operation) -> None:
    await scene.settle_now()


AFTERMATHS = (
    Aftermath("nothing", _nothing),
    Aftermath("retry", _retry),
    Aftermath("small write", _small_write),
    Aftermath("large write", _large_write),
    Aftermath("another upload", _another_upload),
    Aftermath("delete", _delete),
    Aftermath("sweep, then retry", _sweep, sweeps=True),
    Aftermath("swept while it goes on", _settle, meanwhile=True),
)
