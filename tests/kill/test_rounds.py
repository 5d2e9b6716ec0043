"""Twenty rounds of load and faults against real servers, and proof that one which loses something is caught."""

import asyncio
import contextlib
import http.client
from collections import Counter
from pathlib import Path

import pytest

from tests.kill.campaign import FLOORS, Campaign, check_enough_was_done
from tests.kill.history import Violation
from tests.kill.plan import ENGINE_FAULTS, Fault, Plan
from tests.kill.raw_wire import SCOPES, USECASE
from tests.kill.soak import DISK_SIZE, run
from tierstore.testing.mounts import small_disk
from tierstore.testing.process_faults import Act, ProcessFault
from tierstore.testing.server import HOST

ROUNDS = 10
ROUND_SECONDS = 0.7
ACKNOWLEDGED_MIN = 100
SECONDS_MAX = 400
"""Far more than it takes on a machine that has nothing else to do: starting servers is what takes the time."""


def _run(directory: Path, *, seed: int, is_small: bool) -> Counter[str]:
    campaign = Campaign(directory, Plan(seed, is_small, ROUND_SECONDS))
    asyncio.run(campaign.run(lambda done: done < ROUNDS))
    return campaign.counts


@pytest.mark.timeout(SECONDS_MAX)
def test_ten_rounds_of_kills_pauses_and_restarts(tmp_path: Path) -> None:
    """What was acknowledged is there, what was refused is not, nothing is mixed, torn, stale or left over."""
    counts = _run(tmp_path, seed=180, is_small=False)
    assert counts["acknowledged"] > ACKNOWLEDGED_MIN
    for fault in set(Fault) - ENGINE_FAULTS - {Fault.FULL_DISK}:
        assert counts[fault.value], f"no {fault.value}: it tests less than it says"


@pytest.mark.timeout(SECONDS_MAX)
def test_ten_rounds_on_a_disk_that_is_full_now_and_then(tmp_path: Path) -> None:
    """The same with a disk that has no room, also for a server that is killed and started on it.

    Where no small disk can be had, as many rounds are run without, before that is said.
    """
    with contextlib.ExitStack() as stack:
        try:
            disk = stack.enter_context(small_disk(tmp_path / "disk", DISK_SIZE))
        except pytest.skip.Exception:
            _run(tmp_path / "plain", seed=384, is_small=False)
            raise
        counts = _run(disk.path, seed=384, is_small=True)
    assert counts["acknowledged"] > ACKNOWLEDGED_MIN
    for fault in set(Fault) - ENGINE_FAULTS:
        assert counts[fault.value], f"no {fault.value}: it tests less than it says"


def test_a_round_of_the_soak() -> None:
    """The soak does at least one round, however short it is, and tells what it did."""
    counts = run(0, 2)
    assert (counts["rounds"], counts["campaigns"]) == (1, 1)
    assert counts["operations"] >= counts["acknowledged"] > 0


def test_an_object_that_vanishes_is_missed(tmp_path: Path) -> None:
    """A real server that loses an acknowledged object, here by a delete that the ledger does not know of, is caught."""
    campaign = Campaign(tmp_path, Plan(5, False, 0.3))
    deleted: list[str] = []

    def goes_on(done: int) -> bool:
        if deleted or done == ROUNDS:
            return False
        if done and (key := _quiet_key(campaign)):
            deleted.append(key)
            _delete(campaign, key)
        return True

    with pytest.raises(Violation, match="nothing explains it") as caught:
        asyncio.run(campaign.run(goes_on))
    assert f"key {deleted[0]}" in str(caught.value)
    assert "seed 5" in str(caught.value)


def test_a_server_that_never_completes_an_upload_is_caught(tmp_path: Path) -> None:
    """Parts and all else are stored, and an upload that nobody has ended cannot be completed: so it does not pass."""
    never = [ProcessFault("long_term.complete", Act.FAIL_BEFORE, nth=number + 1) for number in range(500)]
    plan = Plan(7, False, 0.3)
    assert plan.retention_seconds() > 60, "none of its uploads ends by itself"
    campaign = Campaign(tmp_path, plan, never, conclude_seconds_max=2.0)

    def goes_on(done: int) -> bool:
        left = any(upload.current() for upload in campaign._shared.open_uploads)
        return done < ROUNDS and not (left and campaign.counts["put_done"])

    with pytest.raises(Violation, match="neither completed nor ended"):
        asyncio.run(campaign.run(goes_on))
    assert campaign.counts["put_done"]
    assert not campaign.counts["complete_done"]


@pytest.mark.parametrize("name", FLOORS)
def test_a_campaign_in_which_nothing_was_done_fails(name: str) -> None:
    """Less than the least of anything, or none of it, is not enough."""
    check_enough_was_done(FLOORS)
    for count in (0, FLOORS[name] - 1):
        with pytest.raises(Violation, match=f"'{name}': {count}"):
            check_enough_was_done({**FLOORS, name: count})


def _quiet_key(campaign: Campaign) -> str | None:
    """The key of an object that is there, does not expire, and will not be written again; None if there is none."""
    ledger = campaign._ledger
    for key in ledger.keys:
        if key.startswith("quiet") and all(write and not write.ttl_seconds for write in ledger.can_hold(key)):
            return key
    return None


def _delete(campaign: Campaign, key: str) -> None:
    port = int(campaign._server.urls[0].rpartition(":")[2])
    with contextlib.closing(http.client.HTTPConnection(HOST, port, timeout=10)) as connection:
        connection.request("DELETE", f"/v1/objects/{USECASE}/{SCOPES}/{key}")
        assert connection.getresponse().status == 204
