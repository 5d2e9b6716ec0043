#!/usr/bin/env python3
"""Explicit-state model of tierstore's commit protocol (docs/protocol.md), multipart uploads included.

One object, one row in the high-volume store (HV), a long-term store (LT), the change log. Each step of an operation is
one atomic access to one store. Every interleaving is explored, with one crash at any step (a crashed process's last
compare-and-write or assembly may still arrive later), and these are checked in every state:

  no dangling   a tombstone in HV always points to a blob that exists
  at most once  a revision is committed at most once
  exactly once  an attempt to complete an upload fails only if the upload was never committed
  no orphan     when all is over and the log has been settled, every blob in LT is the one HV points to

Operations: A = one attempt to complete multipart upload r1 (several A: retries, also concurrent ones), Z = the same for
another upload of the object, r2; I = begin upload r1, which is begun from the start otherwise; N = bring what upload r1
has made inline; B = large put (its own revision), C = small put, D = delete, E = settle an expired object; a, b, i = A, B, I that may also end before their last
step, certain that nothing is under way, and undo what they have done (i leaves it to a sweeper); P = sweeper on entries
of dead operations, S = adversarial sweeper: settles any entry at any time, even under live operations (then only orphans
are excused).

`tests/model` walks traces of the implementation through `step`: what it does must be among the outcomes.
"""

import argparse
import sys
from collections import deque

# row  (version, content, token); content: ("none",) | ("inline", n) | ("tomb", revision) | ("gone",)
#      A version is never used twice: deletes leave "gone"; only a row that never existed has version 0. The token is new
#      with the row, with every fence, and with every write that begins or ends pointing to a blob; else it stays.
# lt   blobs that exist; open: the revisions of uploads in progress in LT
# log  set of (revision, owner, role, epoch, state): role new|old; owner "U" = the entry that all attempts to complete
#      one upload share; state open|condemned|swept (condemned, and visited once)|done; the epoch grows at every change
RULES = frozenset({"old-check", "gone-marker", "condemned-check", "fence", "abort-first", "revalidate", "record-old",
                   "version-cas", "mark-done", "token", "pointer"})
JOBS = ("AB AC AD AE AZ AA BB BD BE BCD AAB AAC AAD ABD ACD AAA AP BP ABP ACP ADP BBP BDP BCP APP BPP AAP AEP BEP "
        "AZP AS BS CS DS ABS ACS ADS AAS BDS BCS BBS ASS BSS IP IS IAP IAS iP iS iAP aB bA bD aS bS aBP bDP ABDP "
        "AN AAN ABN ACN ADN AEN ANP ANS ANN aN AANP ABNP ADNP").split()
LONG_JOBS = "AANS ABNS ADNS AAAN AZN AABC AABD AACD AAAD AABS AABP AADS AADP ABDS ABBS ABBP AAAS ACDS ABE AZD AAZ AZB AZS ABEP bAP bAS".split()


class Violation(Exception):
    pass


def without(log, **want):
    keys = ("rev", "owner", "role")
    return frozenset(e for e in log if any(e[keys.index(k)] != v for k, v in want.items()))


def entry(log, rev, owner):
    return next((e for e in log if e[0] == rev and e[1] == owner), None)


def become(log, e, state):
    """The entry changes hands."""
    return (log - {e}) | {(*e[:3], e[3] + 1, state)}


def done(log, rev):
    """The entry of the upload that made `rev`, if one did, remembers that it was committed; done is final."""
    e = entry(log, rev, "U")
    return log if e is None or e[4] == "done" else become(log, e, "done")


def record_old(log, me, old):
    """`old` (None: nothing) takes the place of what `me` has recorded as old, and is open, whatever it was."""
    held = entry(log, old, me)
    log = without(log, owner=me, role="old")
    return log if old is None else log | {(old, me, "old", held[3] + 1 if held else 0, "open")}


def by_upload(rev):
    """Whether an upload made `rev`: it is in the name."""
    return rev[1:].isdigit()


def step(rules, kind, me, rev, pc, loc, st):
    """All outcomes of one atomic step of `me`, which is to commit `rev`: (next pc, locals, changes to the shared state)."""
    row, lt, log = st["row"], st["lt"], st["log"]
    go = lambda pc, loc=(), **changes: [(pc, loc, changes)]
    keeps = lambda content: row[2] and ("pointer" not in rules or "tomb" not in (row[1][0], content[0]))
    write = lambda content, fence=False: {"row": (st["next"], content, row[2] if keeps(content) and not fence else st["next"]), "next": st["next"] + 1}
    erase = write(("gone",)) if "gone-marker" in rules else {"row": (0, ("none",), 0)}
    matches = lambda base: row[0] == base or "version-cas" not in rules
    free = lambda base: row[2] == base[2] or "token" not in rules
    old = loc[1][1] if len(loc) > 1 and loc[1][0] == "tomb" else None
    recorded = old if "record-old" in rules else None
    after = "forget" if old is None else "mark" if by_upload(old) else "delete-old"

    if kind == "I":
        if pc == "read":
            return go("initiate", log=log | {(rev, "U", "new", 0, "open")})
        if pc == "initiate":
            return go("begun", open=st["open"] | {rev})
        if pc == "begun":
            return go("ok")

    if kind == "A":  # locals: base version, base content, base token, whether the blob has been seen
        if pc == "read":
            return go("forget" if loc else "ok") if row[1] == ("tomb", rev) else go("old?", (*row, loc == ("seen",)))
        if pc == "old?":  # somebody has swapped this revision out: it was committed before
            swapped = any(e[0] == rev and e[2] == "old" for e in log)
            return go("forget" if loc[3] else "ok") if swapped and "old-check" in rules else go("claim", loc)
        if pc == "claim":
            e = entry(log, rev, "U")
            if e and e[4] == "done":
                return go("forget" if loc[3] else "ok")
            if e is None or e[4] == "swept" and "condemned-check" in rules:
                return go("gone?")  # it was begun (an initiated upload has its entry), so it has been swept
            if e[4] == "condemned" and "condemned-check" in rules:
                return go("old?", loc)  # a sweeper is at work: look again (an implementation answers "retry" at last)
            return go("swap" if loc[3] else "assemble", loc, log=record_old(become(log, e, "open"), me, recorded))
        if pc == "gone?":
            return go("ok" if row[1] == ("tomb", rev) else "failed")
        if pc == "assemble":  # LT completes at most once; a repeat may answer anything, so its answer is not used
            done_now = go("head", loc, open=st["open"] - {rev}, lt=lt | {rev}) if rev in st["open"] else []
            return done_now + go("head", loc)  # or it fails, or comes too late to have an effect
        if pc == "head":
            if rev not in lt:
                return go("why?", loc)
            return go("swap", loc) + go("row?", loc)  # LT may have said that these are not the parts it was made of
        if pc == "row?":
            return go("forget") if row[1] == ("tomb", rev) else go("why?", loc)
        if pc == "why?":  # the blob was never made, or it is gone: then it was listed as old, and marked, before that
            e = entry(log, rev, "U")
            if e and e[4] == "done" or any(o[0] == rev and o[2] == "old" for o in log):
                return go("forget")
            assembled = rev not in lt and rev not in st["open"]  # and gone: LT knows no such upload
            return go("failed" if e is None or e[4] == "swept" or e[4] == "open" and assembled else "undo")
        if pc == "swap":
            if not free(loc):  # or the answer was lost, and it looks: another attempt has committed its revision
                return go("read", ("seen",)) + (go("done", loc) if row[1] == ("tomb", rev) else [])
            return go("done", loc, commits=(*st["commits"], rev), **write(("tomb", rev)))
        if pc == "done":
            return go(after, loc, log=done(log, rev))

    if kind in "BCDEN":  # locals: base version, base content, base token
        if pc == "read":
            if kind == "N" and row[1] != ("tomb", rev):
                return go("ok")
            if row[1][0] == "tomb" or kind == "B":
                return go("record", row)
            if kind == "E":
                return go("swap", row) if row[1][0] == "inline" else go("ok")
            small = write(("inline", me)) if kind == "C" else erase if row[1][0] == "inline" else {}
            return go("forget" if loc else "ok", **small)
        if pc == "record":
            e = entry(log, rev, me)
            log = record_old(log, me, recorded)
            if kind != "B":
                return go("swap", loc, log=log)
            if me not in st["uploaded"]:
                return go("upload", loc, log=log | {(rev, me, "new", 0, "open")})
            if (e is None or e[4] != "open") and "revalidate" in rules:
                return go("discard")  # settled by a sweeper meanwhile: this write has been given up
            return go("swap", loc, log=become(log, e or (rev, me, "new", 0), "open"))
        if pc == "upload":
            return go("swap", loc, lt=lt | {rev}, uploaded=st["uploaded"] | {me})
        if pc == "swap":
            if not (free(loc) if kind == "B" else matches(loc[0])):
                return go("forget") if kind in "EN" else go("read", ("again",))
            commits = (*st["commits"], rev) if kind == "B" else st["commits"]
            content = {"B": ("tomb", rev), "C": ("inline", me), "N": ("inline", me)}
            return go(after, loc, commits=commits, **write(content[kind]) if kind in content else erase)
        if pc == "discard":
            return go("undo", lt=lt - {rev})

    if pc == "mark":
        return go("delete-old", loc, log=done(log, old) if "mark-done" in rules else log)
    if pc == "delete-old":
        return go("forget", loc, lt=lt - {old})
    if pc in ("forget", "undo"):
        return go("ok" if pc == "forget" else "dead", log=without(log, owner=me))

    if kind in "SP":  # locals: the entry being settled
        if pc == "read":
            busy = lambda e: any(n == e[1] or (e[1] == "U" and n[0] in "AaIiZ") for n in st["live"])
            picks = [e for e in log if e[4] != "done" and (kind == "S" or not busy(e))]
            condemned = lambda e: (*e[:3], e[3] + 1, "swept" if e[4] == "swept" else "condemned")
            return [("fence", (condemned(e),), {"log": (log - {e}) | {condemned(e)}}) for e in picks] + go("ok")
        (rev, owner, role, _, state), e = loc[0], loc[0]
        visit = "look" if state == "swept" else "drop" if role == "old" and by_upload(rev) else "delete"
        if pc == "fence":  # changes only the version: compare-and-writes based on older versions die
            content = ("gone",) if row[1][0] == "none" else row[1]
            fenced = write(content, fence=True) if "fence" in rules else {}
            aborts = role == "new" and by_upload(rev) and "abort-first" in rules
            after = "keep" if row[1] == ("tomb", rev) else "old?" if owner == "U" else "abort" if aborts else visit
            return go(after, loc, **fenced)
        if pc == "old?":  # was committed, then swapped out: the other entry deletes it
            swapped = any(e[0] == rev and e[2] == "old" for e in log)
            return go("keep" if swapped else "abort" if "abort-first" in rules else visit, loc)
        if pc == "abort":
            return go(visit, loc, open=st["open"] - {rev})
        if pc == "look":  # a second visit: has the blob stayed away?
            return go(("drop" if role == "old" and by_upload(rev) else "delete") if rev in lt else "clear", loc)
        if pc == "drop":
            return go("delete", loc, log=done(log, rev) if "mark-done" in rules else log)
        if pc == "delete":
            return go("resume", loc, lt=lt - {rev})
        if pc == "resume":  # for a second visit, by which a store must have finished what it was told before
            return go("ok", log=become(log, e, "swept") if e in log else log)
        if pc == "keep":
            return go("ok", log=done(log, rev) if owner == "U" else log - {e})
        if pc == "clear":
            return go("ok", log=log - {e})
    raise AssertionError((kind, pc))


def start(begun=frozenset()):
    """The shared state in which nothing has happened but the beginning of some uploads."""
    log = frozenset((rev, "U", "new", 0, "open") for rev in begun)
    return {"row": (0, ("none",), 0), "lt": frozenset(), "log": log, "open": frozenset(begun), "next": 1, "commits": (),
            "uploaded": frozenset()}


def settle(st):
    """What the sweeper leaves once nothing is live: the blobs that remain."""
    held = st["row"][1][1] if st["row"][1][0] == "tomb" else None
    return frozenset(b for b in st["lt"] if b == held or not any(e[0] == b and e[4] != "done" for e in st["log"]))


def explore(ops, rules=RULES, crashes=1):
    names, ops = [f"{k}{i}" for i, k in enumerate(ops)], ops.upper().replace("Z", "A")
    revs = ["r2" if n[0] == "Z" else "r1" if k in "AIN" else f"r{n}" for k, n in zip(ops, names)]
    begun = frozenset(r for r in revs if by_upload(r) and "I" not in ops)
    first = (tuple(start(begun).items()), tuple(("read", ()) for _ in names), crashes)
    parent, queue = {first: None}, deque([first])

    def fail(what, key):
        trail = []
        while parent[key]:
            st, (key, move) = dict(key[0]), parent[key]
            trail.append(f"{move}: row={st['row']} lt={sorted(st['lt'])} log={sorted(st['log'])} open={sorted(st['open'])}")
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
            if pc in over or ops[i] == "A" and any(k == "I" and t[0] != "ok" for k, t in zip(ops, threads)):
                continue  # or its client has not been told of the upload yet
            seen = dict(st, live=live)
            if pc == "ghost":  # the process is gone; its compare-and-write or its assembly arrives late, or never
                late = step(rules, ops[i], names[i], revs[i], *loc, seen)
                nexts = [("dead", (), ch) for _, _, ch in late if "row" in ch or "open" in ch]
                nexts.append(("dead", (), {}))
            else:
                nexts = step(rules, ops[i], names[i], revs[i], pc, loc, seen)
                if ops[i] == "A" and revs[i] in st["commits"] and any(n == "failed" for n, _, _ in nexts):
                    fail("attempt failed although the upload had been committed", key)
                if left:
                    nexts = [*nexts, ("ghost", (pc, loc), {}) if pc in {"swap", "assemble"} else ("dead", (), {})]
                if names[i][0] in "abi" and pc in {"assemble", "head", "swap", "initiate", "begun"}:
                    nexts = [*nexts, ({"A": "undo", "B": "discard", "I": "failed"}[ops[i]], (), {})]
            for npc, nloc, changes in nexts:
                ns = dict(st, **changes)
                died = pc not in ("ghost", "undo", "discard") and npc in ("dead", "ghost")
                nkey = (tuple(ns.items()), threads[:i] + ((npc, nloc),) + threads[i + 1:], left - died)
                if nkey not in parent:
                    parent[nkey] = (key, f"{names[i]} {pc} -> {npc}")
                    queue.append(nkey)
        if all(pc in over for pc, _ in threads) and "S" not in ops:
            held = st["row"][1]
            orphans = [b for b in settle(st) if held != ("tomb", b)]
            if orphans:
                fail(f"orphans {orphans} after settling", key)
    return len(parent)


def main(args):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", metavar="OPS", nargs="*", help="operations side by side, such as AAB; else a list of these")
    parser.add_argument("--mutate", action="store_true", help="take every rule away in turn: each must be missed")
    chosen = parser.parse_args(args)
    if chosen.mutate and chosen.ops or any(not ops or set(ops) - set("AZIBCDENPSabi") for ops in chosen.ops):
        parser.error("OPS are letters of the operations above, and --mutate has its own list")
    if chosen.mutate:
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
    for ops in chosen.ops or JOBS:
        try:
            print(f"{ops:6s} {explore(ops):8d} states, no violation", flush=True)
        except Violation as v:
            bad += 1
            print(f"{ops:6s} VIOLATION: {v}", flush=True)
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
