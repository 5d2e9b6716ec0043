"""The composition root: stores that do not belong together are not served."""

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from tierstore.backends.high_volume.sqlite import SqliteHighVolume
from tierstore.backends.long_term.filesystem import FilesystemLongTerm
from tierstore.build import Stores, open_stores, open_tools
from tierstore.changelog.sqlite import SqliteChangeLog
from tierstore.clock import SystemClock
from tierstore.config import Config
from tierstore.config_loading import Setting, load_config
from tierstore.errors import StartupError
from tierstore.idsource import SystemIds
from tierstore.limits import Limits
from tierstore.testing.laws.long_term import Source
from tierstore.types.ids import ObjectId, Revision

LIMITS = replace(Limits(), identity_wait_seconds_max=0.1)
REVISION = Revision(ObjectId("photos", (), "k"), UUID(int=7))


def config_of(data: Path, **settings: Path) -> Config:
    """The settings of a server below ``data``; each store may be elsewhere (``change_log=…``)."""
    flags = {"data.path": Setting(str(data), "test")}
    flags |= {f"{store}.path": Setting(str(path), "test") for store, path in settings.items()}
    return load_config(None, {}, flags).config


@asynccontextmanager
async def opened(config: Config, limits: Limits = LIMITS) -> AsyncIterator[Stores]:
    """The stores of a server that starts."""
    async with open_stores(config, limits, SystemClock(), SystemIds()) as stores:
        yield stores


async def identities(stores: Stores) -> set[UUID | None]:
    """What the three stores keep."""
    return {await each.identity() for each in (stores.long_term, stores.changelog, stores.high_volume)}


async def begun(config: Config) -> None:
    """Start once, with a blob."""
    async with opened(config) as stores:
        await stores.long_term.put(REVISION, Source([b"kept"]), None)


async def refusal(config: Config) -> str:
    """Why a server does not start."""
    with pytest.raises(StartupError) as raised:
        async with opened(config):
            raise AssertionError("it starts")
    return str(raised.value)


async def test_new_stores_get_one_identity(tmp_path: Path) -> None:
    """The first start gives all three stores one identity; later ones find it."""
    config = config_of(tmp_path)
    async with opened(config) as stores:
        (first,) = await identities(stores)
        assert first is not None
    async with opened(config) as stores:
        assert await identities(stores) == {first}


async def test_many_start_at_once(tmp_path: Path) -> None:
    """Of servers that start on new stores at the same time, all start, and all have the same identity."""
    for number in range(3):
        config = config_of(tmp_path / str(number))
        async with AsyncExitStack() as stack:
            starts = [stack.enter_async_context(opened(config, Limits())) for _ in range(6)]
            kept = [await identities(stores) for stores in await asyncio.gather(*starts)]
            assert len(set.union(*kept)) == 1


async def test_processes_start_at_once(tmp_path: Path) -> None:
    """The same of processes."""
    start = (
        "import sys; from pathlib import Path; from tests.unit.test_build import config_of; "
        "from tierstore.build import check_stores; check_stores(config_of(Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", start, str(tmp_path / "data")]
    processes = [await asyncio.create_subprocess_exec(*command) for _ in range(3)]
    assert [await process.wait() for process in processes] == [0, 0, 0]
    async with opened(config_of(tmp_path / "data")) as stores:
        assert len(await identities(stores)) == 1


async def test_a_start_waits_for_one_that_is_under_way(tmp_path: Path) -> None:
    """A process that finds another half-way through the first start waits for it."""
    config = config_of(tmp_path)
    uuid = UUID(int=5)
    async with AsyncExitStack() as stack:
        under_way = await open_new(stack, config)
        await under_way.long_term.adopt(uuid)
        starting = asyncio.ensure_future(stack.enter_async_context(opened(config, Limits())))
        for store in (under_way.changelog, under_way.high_volume):
            await asyncio.sleep(0.2)
            assert not starting.done()
            await store.adopt(uuid)
        assert await identities(await starting) == {uuid}


async def test_a_missing_mount(tmp_path: Path) -> None:
    """A server whose blobs are not mounted does not start, says what to look for, and starts once they are."""
    config = config_of(tmp_path / "data")
    await begun(config)
    mounted, elsewhere = tmp_path / "data" / "long-term", tmp_path / "elsewhere"
    mounted.rename(elsewhere)
    why = await refusal(config)
    assert f"the long-term store {mounted} has no identity" in why
    assert "is its disk mounted, is long_term.path right" in why
    assert "remove" not in why, "nobody is told to remove anything while objects are elsewhere"
    assert not list(mounted.glob("blobs/*")), "nothing was stored under the mount point"
    shutil.rmtree(mounted)
    elsewhere.rename(mounted)
    async with opened(config) as stores:
        assert await stores.long_term.head(REVISION) is not None


@pytest.mark.parametrize("store", ["high_volume", "change_log"])
async def test_a_missing_database(tmp_path: Path, store: str) -> None:
    """A database that is new beside stores that are not is refused, and named."""
    await begun(config_of(tmp_path / "data"))
    why = await refusal(config_of(tmp_path / "data", **{store: tmp_path / "new"}))
    assert f"{tmp_path / 'new'} has no identity" in why
    assert f"is {store}.path right" in why


@pytest.mark.parametrize("store", ["high_volume", "change_log", "long_term"])
async def test_a_foreign_store(tmp_path: Path, store: str) -> None:
    """A store of another deployment is refused, and all three are shown with what they keep."""
    ours, theirs = config_of(tmp_path / "ours"), config_of(tmp_path / "theirs")
    await begun(ours)
    await begun(theirs)
    foreign = theirs.store_path(store)
    assert foreign is not None
    why = await refusal(config_of(tmp_path / "ours", **{store: foreign}))
    assert "do not belong together" in why
    assert f" {foreign} has " in why
    async with opened(ours) as of_us, opened(theirs) as of_them:
        assert not await identities(of_us) & await identities(of_them), "neither was changed by it"


@pytest.mark.parametrize("given", [1, 2])
async def test_an_interrupted_first_start(tmp_path: Path, given: int) -> None:
    """A first start that was killed half-way is told from nothing by its traces; doing what is said helps."""
    config = config_of(tmp_path)
    async with AsyncExitStack() as stack:
        stores = await open_new(stack, config)
        for store in (stores.long_term, stores.changelog)[:given]:
            await store.adopt(UUID(int=5))
    why = await refusal(config)
    left = [tmp_path / "long-term" / "identity", tmp_path / "change-log.sqlite3"][:given]
    assert f"was interrupted: remove {' and '.join(map(str, left))}, and start again" in why
    for path in left:
        path.unlink()
    async with opened(config) as stores:
        assert len(await identities(stores)) == 1


async def test_a_damaged_identity(tmp_path: Path) -> None:
    """A store that cannot tell its identity is named."""
    config = config_of(tmp_path)
    await begun(config)
    (tmp_path / "long-term" / "identity").write_text("?")
    assert f"the long-term store {tmp_path / 'long-term'} cannot be used" in await refusal(config)


async def open_new(stack: AsyncExitStack, config: Config) -> Stores:
    """New stores as they are before they are given an identity."""
    limits, clock, ids = Limits(), SystemClock(), SystemIds()
    stores = Stores(
        await SqliteHighVolume.open(config.high_volume_path, limits=limits, clock=clock, ids=ids),
        await FilesystemLongTerm.open(config.long_term_path, limits=limits, clock=clock, ids=ids),
        await SqliteChangeLog.open(config.change_log_path, limits=limits, clock=clock),
    )
    for store in (stores.high_volume, stores.long_term, stores.changelog):
        stack.push_async_callback(store.close)
    return stores


@pytest.mark.parametrize("store", ["high_volume", "change_log", "long_term"])
async def test_tools_make_no_store(tmp_path: Path, store: str) -> None:
    """An operator's command on a wrong path makes nothing there, and says what to look for."""
    await begun(config_of(tmp_path / "data"))
    config = config_of(tmp_path / "data", **{store: tmp_path / "wrong"})
    with pytest.raises(StartupError, match=rf"there is no .* at {tmp_path / 'wrong'}: .*{store}\.path"):
        await use_tools(config)
    assert not (tmp_path / "wrong").exists()
    with pytest.raises(StartupError, match="has a server been started on it yet"):
        await use_tools(config_of(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


async def test_tools_do_not_make_an_empty_place_a_store(tmp_path: Path) -> None:
    """A directory whose disk is not mounted, and an empty file, stay as they are."""
    config = config_of(tmp_path / "data")
    await begun(config)
    (tmp_path / "data" / "long-term").rename(tmp_path / "elsewhere")
    (tmp_path / "data" / "long-term").mkdir()
    with pytest.raises(StartupError, match="is its disk mounted"):
        await use_tools(config)
    assert not list((tmp_path / "data" / "long-term").iterdir())
    empty = tmp_path / "empty"
    empty.touch()
    with pytest.raises(StartupError, match="there is no change log"):
        await use_tools(config_of(tmp_path / "data", change_log=empty))
    assert empty.stat().st_size == 0


async def test_tools_open_the_stores_of_a_server_that_runs(tmp_path: Path) -> None:
    """Beside a server that has the stores open, tools see what it has stored, and it goes on."""
    config = config_of(tmp_path)
    async with opened(config) as served:
        await served.long_term.put(REVISION, Source([b"kept"]), None)
        async with open_tools(config) as tools:
            assert await tools.stores.long_term.head(REVISION) is not None
            assert await identities(tools.stores) == await identities(served)
        assert await served.long_term.head(REVISION) is not None
        await served.changelog.check()


async def use_tools(config: Config) -> None:
    """Open the tools of an operator's command, and close them."""
    async with open_tools(config) as tools:
        await tools.stores.changelog.check()
