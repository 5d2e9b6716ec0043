#!/usr/bin/env python3
"""Explicit-state model of tierstore's commit protocol (docs/protocol.md), multipart uploads included.

One object, one row in the high-volume store (HV), a long-term store (LT), the change log. Each step of an operation is
one atomic access to one store. Every interleaving is explored, with one crash at any step (a crashed process's last
compare-and-write or assembly may still arrive later), and these are checked in every state:

  no dangling   a tombstone in HV always points to a blob that exists
  at most once  a revision is committed at most once
  exactly once  an attempt to complete an upload fails only if the upload was never committed
  no orphan     when all is over and the log has been settled, every blob in LT is the one HV points to

Operations: A = one attempt to complete multipart upload r1 (several A: retries, also concurrent ones),
B = large put (its own revision), C = small put, D = delete, P = sweeper on entries of dead operations,
S = adversarial sweeper: settles any entry at any time, even under live operations (then only orphans are excused).

Usage: commit_protocol.py [OPS ...]     e.g. commit_protocol.py AAB AABS
       commit_protocol.py --mutate      every rule taken away in turn must be caught
"""

import sys
from collections import deque

# row  (version, content, token); content: ("none",) | ("inline", n) | ("tomb", revision) | ("gone",)
#      A version is never used twice: deletes leave "gone"; only a row that never existed has version 0. The token is new
#      with the row, with every fence, and with every write that begins or ends pointing to a blob; else it stays.
# log  set of (revision, owner, role, epoch, state): role new|old; owner "U" = the entry that all attempts to complete
#      one upload share; state open|condemned|done
RULES = frozenset({"old-check", "gone-marker", "condemned-check", "fence", "abort-first", "revalidate", "record-old",
                   "version-cas", "mark-done", "token", "pointer"})
JOBS = ("AB AC AD AA BB BD BCD AAB AAC AAD ABD ACD AAA AP BP ABP ACP ADP BBP BDP BCP APP BPP AAP "
        "AS BS CS DS ABS ACS ADS AAS BDS BCS BBS ASS BSS ABDP").split()
LONG_JOBS = "AABC AABD AACD AAAD AABS AABP AADS AADP ABDS ABBS ABBP AAAS ACDS".split()


class Violation(Exception):
    pass


def without(log, **want):
    keys = ("rev", "owner", "role")
    return frozenset(e for e in log if any(e[keys.index(k)] != v for k, v in want.items()))


def entry(log, rev, owner):
    return next((e for e in log if e[0] == rev and e[1] == owner), None)


def mark(log, rev, state):
    """Set the state of an upload's shared entry, if it has one; done is final."""
    e = entry(log, rev, "U")
    return log if e is None or e[4] == "done" else (log - {e}) | {e[:4] + (state,)}


def step(rules, kind, me, pc, loc, st):
    """All outcomes of one atomic step of operation `me`: (next pc, locals, changes to the shared state)."""
    row, lt, log = st["row"], st["lt"], st["log"]
    go = lambda pc, loc=(), **changes: [(pc, loc, changes)]
    keeps = lambda content: row[2] and ("pointer" not in rules or "tomb" not in (row[1][0], content[0]))
    write = lambda content, fence=False: {"row": (st["next"], content, row[2] if keeps(content) and not fence else st["next"]), "next": st["next"] + 1}
    gone = ("gone",) if "gone-marker" in rules else None
    erase = {"row": (0, ("none",), 0)} if gone is None else write(gone)
    matches = lambda base: row[0] == base or "version-cas" not in rules
    free = lambda base: row[2] == base[2] or "token" not in rules

    if kind == "A":  # locals: base version, base content, base token, whether the blob has been seen, epoch
        rev = "r1"
        if pc == "read":
            return go("ok") if row[1] == ("tomb", rev) else go("old?", (*row, loc == ("seen",)))
        if pc == "old?":  # somebody has swapped this revision out: it was committed before
            swapped = any(e[0] == rev and e[2] == "old" for e in log)
            return go("ok") if swapped and "old-check" in rules else go("claim", loc)
        if pc == "claim":
            e = entry(log, rev, "U")
            if e and e[4] == "done":
                return go("ok")
            if e is None:
                return go("failed")  # unknown: it was begun (an initiated upload has its entry), so it has been swept
            if e[4] == "condemned" and "condemned-check" in rules:
                # A sweeper is at work: look again (an implementation waits, then answers "retry").
                return go("read", ("seen",) if loc[3] else ())
            epoch = e[3] + 1
            new = (log - {e}) | {(rev, "U", "new", epoch, "open")}
            if loc[1][0] == "tomb" and "record-old" in rules:
                new |= {(loc[1][1], me, "old", 0, "open")}
            return go("swap" if loc[3] else "assemble", (*loc, epoch), log=frozenset(new))
        if pc == "assemble":  # LT completes at most once; a repeat may answer anything, so its answer is not used
            return go("head", loc, upload="used", lt=lt | {rev}) if st["upload"] == "open" else go("head", loc)
        if pc == "head":
            return go("swap", loc) if rev in lt else go("why?")
        if pc == "why?":  # the blob was never made, or it is gone: then it was marked before it was deleted
            e = entry(log, rev, "U")
            return go("ok") if e and e[4] == "done" else go("failed")
        if pc == "swap":
            if not free(loc):
                return go("again", loc)
            return go("done", loc, commits=(*st["commits"], rev), **write(("tomb", rev)))
        if pc == "again":
            return go("read", ("seen",), log=without(log, owner=me))
        if pc == "done":
            return go("delete-old" if loc[1][0] == "tomb" else "ok", loc, log=mark(log, rev, "done"))

    if kind in "BCD":  # locals: base version, base content, base token
        rev = "r" + me
        if pc == "read":
            if kind == "C" and row[1][0] != "tomb":
                return go("ok", **write(("inline", me)))
            if kind == "D" and row[1][0] != "tomb":
                return go("ok", **erase)
            return go("record", row)
        if pc == "record":
            mine = frozenset(e for e in log if e[1] == me)
            old = {(loc[1][1], me, "old", 0, "open")} if loc[1][0] == "tomb" and "record-old" in rules else set()
            new = {(rev, me, "new", 0, "open")} if kind == "B" else set()
            if kind == "B" and me not in st["uploaded"]:
                return go("upload", loc, log=log | new | old)
            if kind == "B" and not new <= mine and "revalidate" in rules:
                return go("failed")  # settled by a sweeper meanwhile: this write has been given up
            return go("swap", loc, log=(log - mine) | new | old)
        if pc == "upload":
            return go("swap", loc, lt=lt | {rev}, uploaded=st["uploaded"] | {me})
        if pc == "swap":
            if not (free(loc) if kind == "B" else matches(loc[0])):
                return go("read")
            after = "mark" if loc[1][0] == "tomb" else "forget"
            if kind == "D":
                return go(after, loc, **erase)
            commits = (*st["commits"], rev) if kind == "B" else st["commits"]
            return go(after, loc, commits=commits, **write(("tomb", rev) if kind == "B" else ("inline", me)))
        if pc == "mark":
            return go("delete-old", loc, log=mark(log, loc[1][1], "done") if "mark-done" in rules else log)

    if pc == "delete-old":
        return go("forget", loc, lt=lt - {loc[1][1]})
    if pc == "forget":
        return go("ok", log=without(log, owner=me))

    if kind in "SP":  # locals: the entry being settled
        if pc == "read":
            busy = lambda e: any(n == e[1] or (e[1] == "U" and n[0] == "A") for n in st["live"])
            picks = [e for e in log if e[4] != "done" and (kind == "S" or not busy(e))]
            return [("fence", (e,), {"log": (log - {e}) | {(*e[:4], "condemned")}}) for e in picks] + go("ok")
        (rev, owner, role, epoch, _), = loc
        if pc == "fence":  # changes only the version: compare-and-writes based on older versions die
            content = ("gone",) if row[1][0] == "none" else row[1]
            fenced = write(content, fence=True) if "fence" in rules else {}
            if row[1] == ("tomb", rev):
                return go("keep", loc, **fenced)
            if owner == "U" and any(e[0] == rev and e[2] == "old" for e in log):
                return go("keep", loc, **fenced)  # was committed, then swapped out: the other entry deletes it
            return go("abort" if owner == "U" and "abort-first" in rules else "drop", loc, **fenced)
        if pc == "abort":
            return go("drop", loc, upload="used")
        if pc == "drop":
            return go("delete", loc, log=mark(log, rev, "done") if role == "old" and "mark-done" in rules else log)
        if pc == "delete":
            return go("clear", loc, lt=lt - {rev})
        if pc == "keep":
            return go("ok", log=mark(log, rev, "done") if owner == "U" else log - {(rev, owner, role, epoch, "condemned")})
        if pc == "clear":
            return go("ok", log=log - {(rev, owner, role, epoch, "condemned")})
    raise AssertionError((kind, pc))


def settle(st):
    """What the sweeper leaves once nothing is live: the blobs that remain."""
    held = st["row"][1][1] if st["row"][1][0] == "tomb" else None
    return frozenset(b for b in st["lt"] if b == held or not any(e[0] == b and e[4] != "done" for e in st["log"]))


def explore(ops, rules=RULES, crashes=1):
    names = [f"{k}{i}" for i, k in enumerate(ops)]
    begun = frozenset({("r1", "U", "new", 0, "open")} if "A" in ops else ())
    st0 = {"row": (0, ("none",), 0), "lt": frozenset(), "log": begun, "upload": "open", "next": 1, "commits": (),
           "uploaded": frozenset()}
    first = (tuple(sorted(st0.items())), tuple(("read", ()) for _ in names), crashes)
    parent, queue = {first: None}, deque([first])

    def fail(what, key):
        trail = []
        while parent[key]:
            key, line = parent[key]
            trail.append(line)
        raise Violation(what + "".join("\n    " + t for t in reversed(trail)))

    over = ("ok", "failed", "dead")
    while queue:
        key = queue.popleft()
        st, threads, left = dict(key[0]), key[1], key[2]
        if st["row"][1][0] == "tomb" and st["row"][1][1] not in st["lt"]:
            fail("dangling tombstone", key)
        if len(set(st["commits"])) < len(st["commits"]):
            fail("revision committed twice", key)
        live = frozenset(n for n, (pc, _) in zip(names, threads) if pc not in (*over, "ghost"))
        for i, (pc, loc) in enumerate(threads):
            if pc in over:
                continue
            seen = dict(st, live=live)
            if pc == "ghost":  # the process is gone; its compare-and-write or its assembly arrives late, or never
                late = step(rules, ops[i], names[i], *loc, seen)
                nexts = [("dead", (), ch) for _, _, ch in late if "row" in ch or "upload" in ch]
                nexts.append(("dead", (), {}))
            else:
                nexts = step(rules, ops[i], names[i], pc, loc, seen)
                if ops[i] == "A" and "r1" in st["commits"] and any(n == "failed" for n, _, _ in nexts):
                    fail("attempt failed although the upload had been committed", key)
                if left:
                    nexts = [*nexts, ("ghost", (pc, loc), {}) if pc in {"swap", "assemble"} else ("dead", (), {})]
            for npc, nloc, changes in nexts:
                ns = dict(st, **changes)
                died = pc != "ghost" and npc in ("dead", "ghost")
                nkey = (tuple(sorted(ns.items())), threads[:i] + ((npc, nloc),) + threads[i + 1:], left - died)
                if nkey not in parent:
                    parent[nkey] = (key, f"{names[i]} {pc} -> {npc}: row={ns['row']} lt={sorted(ns['lt'])} "
                                         f"log={sorted(ns['log'])} upload={ns['upload']}")
                    queue.append(nkey)
        if all(pc in over for pc, _ in threads) and "S" not in ops:
            held = st["row"][1]
            orphans = [b for b in settle(st) if held != ("tomb", b)]
            if orphans:
                fail(f"orphans {orphans} after settling", key)
    return len(parent)


def main(args):
    if args == ["--mutate"]:
        survivors = []
        for rule in sorted(RULES):
            caught = ""
            for ops in JOBS:
                try:
                    explore(ops, RULES - {rule})
                except Violation as v:
                    caught = f"{ops}: {str(v).splitlines()[0]}"
                    break
            print(f"without {rule:16s} {caught or 'NOT CAUGHT'}", flush=True)
            survivors += [rule] * (not caught)
        return bool(survivors)
    bad = 0
    for ops in args or JOBS:
        try:
            print(f"{ops:6s} {explore(ops):8d} states, no violation", flush=True)
        except Violation as v:
            bad += 1
            print(f"{ops:6s} VIOLATION: {v}", flush=True)
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
