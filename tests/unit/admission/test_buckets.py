"""Laws of `tierstore.admission.buckets`: what a bucket holds, for one worker and for several at once."""

import fcntl
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore.admission.buckets import TABLE_BYTES, BucketTable, Charge, Region

RATE, DEPTH = 8.0, 16.0
WAYS = 8
KEY = bytes(range(16))

STEPS = st.lists(st.tuples(st.integers(0, 32), st.integers(0, 20), st.booleans()), max_size=60)
"""Eighths of a second that pass, then what is taken or added: multiples of a binary fraction, so nothing rounds."""


def _charge(
    table: BucketTable, cost: float = 1.0, name: str = "name", region: Region = Region.SCOPE_REQUESTS
) -> Charge:
    return Charge(table.named(region, name), RATE, DEPTH, cost)


@contextmanager
def shared_tables(count: int) -> Iterator[list[BucketTable]]:
    """Tables over one file, as so many workers have them."""
    with TemporaryDirectory(prefix="tierstore-test-") as directory:
        file = Path(directory, "buckets")
        BucketTable.create(file, KEY)
        tables = [BucketTable.shared(file, lambda: None) for _ in range(count)]
        try:
            yield tables
        finally:
            for table in tables:
                table.close()


def _follow(tables: list[BucketTable], steps: list[tuple[int, int, bool]], seed: int) -> None:
    """Take and add as ``steps`` say, each at another table, and compare with exact arithmetic."""
    used, now = Fraction(0), Fraction(100)
    for number, (eighths, cost, only_add) in enumerate(steps):
        now += Fraction(eighths, 8)
        used = max(Fraction(0), used - Fraction(RATE) * Fraction(eighths, 8))
        table = tables[(seed >> number) % len(tables)]
        charge = _charge(table, cost)
        assert table.used(charge.bucket, RATE, float(now)) == float(used)
        if only_add:
            table.add([charge], float(now))
            used += cost
            continue
        waits = table.take([charge], float(now))
        missing = max(Fraction(0), used + cost - Fraction(DEPTH))
        assert waits == ((float(missing / Fraction(RATE)),) if missing else ())
        used += 0 if missing else cost


@given(STEPS)
def test_a_bucket_is_exact(steps: list[tuple[int, int, bool]]) -> None:
    """What is used drains at the rate; a take fits or tells how long it is until it does; an add always counts."""
    _follow([BucketTable.private(KEY)], steps, 0)


@given(STEPS, st.integers(0, 2**60))
def test_workers_share_a_bucket(steps: list[tuple[int, int, bool]], seed: int) -> None:
    """Whichever worker asks, the bucket is the same one."""
    with shared_tables(3) as tables:
        _follow(tables, steps, seed)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 10)), min_size=1, max_size=40))
def test_all_buckets_are_charged_or_none(takes: list[tuple[int, int]]) -> None:
    """If one of several has no room, the others have lost nothing."""
    table = BucketTable.private(KEY)
    buckets = [table.named(Region.RULE_REQUESTS, str(number)) for number in range(4)]
    for pair, cost in takes:
        charges = [Charge(buckets[pair], RATE, DEPTH, cost), Charge(buckets[(pair + 1) % 4], RATE, DEPTH / 2, cost)]
        before = [table.used(bucket, RATE, 5.0) for bucket in buckets]
        waits = table.take(charges, 5.0)
        after = [table.used(bucket, RATE, 5.0) for bucket in buckets]
        grown = [now - then for now, then in zip(after, before, strict=True)]
        if waits:
            assert not any(grown)
            fits = [before[pair] + cost <= DEPTH, before[(pair + 1) % 4] + cost <= DEPTH / 2]
            assert [wait == 0 for wait in waits] == fits
        else:
            assert sorted(grown) == [0, 0, cost, cost]


def test_time_that_seems_to_go_back_drains_nothing_twice() -> None:
    """A worker that looked at the clock before another, and comes after it, gives back none of what has drained."""
    table = BucketTable.private(KEY)
    table.add([_charge(table, DEPTH)], 10.0)
    for _ in range(100):
        table.take([_charge(table, 0)], 11.0)
        table.take([_charge(table, 0)], 10.5)
    assert table.used(_charge(table).bucket, RATE, 11.0) == DEPTH - RATE


@pytest.mark.parametrize("region", [region for region in Region if region is not Region.FIXED])
def test_invented_names_admit_no_more_than_the_table_has(region: Region) -> None:
    """However many names there are, together they get what the region's buckets hold, and the table stays as it is."""
    table = BucketTable.private(KEY)
    invented = region.slots * 3 // 2
    admitted = sum(
        not table.take([Charge(table.named(region, f"invented {n}"), RATE, 1.0, 1.0)], 7.0) for n in range(invented)
    )
    assert region.slots * 0.9 < admitted <= region.slots


def test_inventing_names_frees_nobody_of_a_debt() -> None:
    """A name that takes over a bucket takes over its use, so a set that is used up stays so, whatever it is called."""
    table = BucketTable.private(KEY)
    wanted = table.named(Region.SCOPE_REQUESTS, "0").offset
    names = (str(n) for n in itertools.count())
    colliding = list(
        itertools.islice((n for n in names if table.named(Region.SCOPE_REQUESTS, n).offset == wanted), WAYS + 3)
    )
    for name in colliding[:WAYS]:
        assert not table.take([_charge(table, DEPTH, name)], 1.0)
    for name in colliding * 3:
        assert table.take([_charge(table, 1.0, name)], 1.0)
    # The least used bucket is the one that is taken over.
    table.take([_charge(table, 0, colliding[0])], 1.5)
    admitted = sum(not table.take([_charge(table, 1.0, name)], 1.5) for name in colliding[WAYS:] * 100)
    assert 0 < admitted <= WAYS * RATE * 0.5


def test_buckets_that_are_charged_together_are_not_mistaken_for_each_other() -> None:
    """A name that needs a bucket never takes one that another charge of the same request means, though it be idle."""
    table = BucketTable.private(KEY)
    idle, new = (table.named(Region.RULE_REQUESTS, name) for name in ("idle", "new"))
    table.add([Charge(idle, RATE, DEPTH, 1.0)], 0.0)
    for now in (100.0, 200.0):
        assert not table.take([Charge(new, RATE / 1024, DEPTH, 4.0), Charge(idle, RATE, DEPTH, 2.0)], now)
        assert table.used(idle, RATE, now) == 2.0
    assert table.used(new, RATE / 1024, 200.0) == 8.0 - RATE / 1024 * 100


def test_regions_do_not_meet() -> None:
    """The same name in another region is another bucket, and no bucket lies in two regions."""
    table = BucketTable.private(KEY)
    named = [region for region in Region if region is not Region.FIXED]
    for region in named:
        table.add([_charge(table, 5.0, region=region)], 1.0)
    assert [table.used(table.named(region, "name"), RATE, 1.0) for region in named] == [5.0] * len(named)
    last = table.fixed(Region.FIXED.slots - 1)
    table.add([Charge(last, RATE, DEPTH, 3.0)], 1.0)
    assert table.used(last, RATE, 1.0) == 3.0
    assert table.used(table.fixed(0), RATE, 1.0) == 0.0


def test_where_names_lie_depends_on_the_key() -> None:
    """Who does not know the key cannot choose names that collide."""
    one, other = BucketTable.private(KEY), BucketTable.private(bytes(16))
    names = [str(n) for n in range(100)]
    same = [n for n in names if one.named(Region.SCOPE_REQUESTS, n) == other.named(Region.SCOPE_REQUESTS, n)]
    assert not same
    with shared_tables(2) as (here, there):
        assert [here.named(Region.SCOPE_REQUESTS, n) for n in names] == [
            there.named(Region.SCOPE_REQUESTS, n) for n in names
        ]


def test_a_new_rate_counts_for_what_is_used_already() -> None:
    """A limit that is raised drains a debt faster, from the next look on; one that is lowered, as fast as before."""
    table = BucketTable.private(KEY)
    bucket = table.fixed(0)
    table.add([Charge(bucket, 1.0, 1.0, 1000.0)], 0.0)
    assert table.take([Charge(bucket, 1.0, 1.0, 1.0)], 10.0) == (990.0,)
    assert table.take([Charge(bucket, 0.25, 0.25, 0.25)], 10.0) == (990.0,)
    assert table.take([Charge(bucket, 1000.0, 1000.0, 1.0)], 10.0) == ()


def test_a_worker_that_stops_in_a_change_stops_nobody(tmp_path: Path) -> None:
    """While the lock cannot be had, each worker limits by itself, and pays in when it can again."""
    file = tmp_path / "buckets"
    BucketTable.create(file, KEY)
    apart: list[None] = []
    table = BucketTable.shared(file, lambda: apart.append(None))
    held = os.open(file, os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    admitted = sum(not table.take([_charge(table)], 1.0) for _ in range(50))
    table.add([_charge(table, 2.0)], 1.0)
    assert admitted == len(apart) == DEPTH
    assert table.used(_charge(table).bucket, RATE, 1.0) == 0.0
    os.close(held)
    assert table.take([_charge(table, 1.0)], 1.0) == (3.0 / RATE,)
    assert table.used(_charge(table).bucket, RATE, 1.0) == DEPTH + 2.0
    table.close()


_DYING = """
import fcntl, os, sys
held = os.open(sys.argv[1], os.O_RDWR)
fcntl.flock(held, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_worker_that_dies_in_a_change_gives_up_the_lock(tmp_path: Path) -> None:
    """Killed while it holds the lock, it leaves the buckets to the others, with what is used of them."""
    file = tmp_path / "buckets"
    BucketTable.create(file, KEY)
    apart: list[None] = []
    table = BucketTable.shared(file, lambda: apart.append(None))
    assert not table.take([_charge(table, 5.0)], 1.0)
    with subprocess.Popen(
        [sys.executable, "-c", _DYING, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as dying:
        assert dying.stdout is not None
        assert dying.stdout.readline() == b"held\n"
        assert not table.take([_charge(table, 1.0)], 1.0)
        assert len(apart) == 1
        dying.kill()
    assert not table.take([_charge(table, 1.0)], 1.0)
    assert len(apart) == 1
    assert table.used(_charge(table).bucket, RATE, 1.0) == 7.0
    table.close()


def test_the_file_has_all_its_blocks(tmp_path: Path) -> None:
    """Nothing that is written into the mapped file can fail for want of space, and there is one file only once."""
    file = tmp_path / "buckets"
    BucketTable.create(file, KEY)
    assert file.stat().st_size == TABLE_BYTES
    assert file.stat().st_blocks * 512 >= TABLE_BYTES
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        BucketTable.create(file, KEY)


_HAMMER = """
import sys, time
from pathlib import Path
from tierstore.admission.buckets import BucketTable, Charge
apart = []
table = BucketTable.shared(Path(sys.argv[1]), lambda: apart.append(None))
rate, depth, wanted = float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
charge = Charge(table.fixed(0), rate, depth, 1.0)
sys.stdin.readline()
admitted, first, last = 0, 0.0, 0.0
while admitted < wanted:
    now = time.monotonic()
    if not table.take([charge], now):
        admitted, first, last = admitted + 1, first or now, now
table.close()
print(first, last, len(apart))
"""


def test_processes_that_hammer_hold_the_limit(tmp_path: Path) -> None:
    """Three processes take all they can get: together the burst and what the rate gives, however busy the machine is.

    No more than that by their last take, but for what each admits by itself while another has been stopped within a
    change; and no less in the end, for each gets what it wants.
    """
    file = tmp_path / "buckets"
    BucketTable.create(file, KEY)
    rate, depth, wanted = 2000.0, 100.0, 600
    command = [sys.executable, "-c", _HAMMER, str(file), str(rate), str(depth), str(wanted)]
    workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    ended = [[float(text) for text in worker.communicate(timeout=60)[0].split()] for worker in workers]
    seconds = max(last for _, last, _ in ended) - min(first for first, _, _ in ended)
    apart = sum(apart for _, _, apart in ended)
    assert len(workers) * wanted <= depth + rate * seconds + apart + 1e-6
