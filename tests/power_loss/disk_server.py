"""A filesystem in memory that writes down what is done to it: the other end of ``/dev/fuse``.

It answers the kernel's requests (`include/uapi/linux/fuse.h`, protocol 7.31) one after the other, so the order of the
journal is the order in which things happened, whichever process or thread did them. The kernel writes through, so that
every ``write`` is a step of its own, and asks for every ``fsync``; locks and shared memory it does by itself. What is
not needed is answered with "not implemented", which the kernel takes for "there is no need to ask": files and
directories are not opened or closed here.

It can also kill the process that is about to take a given step, so that a process dies between any two of them, or fail
the step (EIO).

Runs as a process of its own, since a process that serves the filesystem it uses can wait for itself for ever. It ends
when the filesystem is unmounted, and then leaves the journal as a pickle.
"""

import errno
import os
import pickle
import signal
import stat
import struct
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.power_loss.journal import (
    CrashState,
    Journal,
    Made,
    Named,
    Resized,
    Step,
    Synced,
    Wrote,
    resize,
    survivors,
    write,
)

_REQUEST = struct.Struct("<IIQQIIIHH")
_REPLY = struct.Struct("<IiQ")
_INIT = struct.Struct("<IIII")
_INIT_REPLY = struct.Struct("<IIIIHHIIHH28x")
_ATTRIBUTES = struct.Struct("<6Q10I")
_ENTRY_REPLY = struct.Struct("<4Q2I")
_ATTRIBUTES_REPLY = struct.Struct("<QII")
_SET_ATTRIBUTES = struct.Struct("<2I6Q8I")
_MAKE = struct.Struct("<II")
_MAKE_NODE = struct.Struct("<IIII")
_RENAME = struct.Struct("<Q")
_RENAME_2 = struct.Struct("<QII")
_LINK = struct.Struct("<Q")
_READ_WRITE = struct.Struct("<QQIIQII")
_WRITE_REPLY = struct.Struct("<II")
_STATISTICS_REPLY = struct.Struct("<5Q4I24x")
_DIRECTORY_ENTRY = struct.Struct("<QQII")

_WRITE_BYTES_MAX = 128 * 1024
_REQUEST_BYTES_MAX = _WRITE_BYTES_MAX + 8192
_BIG_WRITES, _MAX_PAGES = 1 << 5, 1 << 22
_SET_MODE, _SET_SIZE = 1 << 0, 1 << 3
_STEPS = frozenset({4, 8, 9, 10, 11, 12, 13, 16, 20, 30, 45})
"""The operations that the journal has: those that change something, or sync it."""
_VALID_SECONDS = 3600
"""How long the kernel may remember what it was told: nobody else changes it."""
_BLOCK_BYTES = 4096
_FREE_BLOCKS = 1 << 24


@dataclass(slots=True)
class _Node:
    """A file or directory."""

    mode: int
    links: int = 0
    content: bytearray = field(default_factory=bytearray)
    names: dict[str, int] = field(default_factory=dict)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


class DiskServer:
    """The filesystem: its files, and the journal of what was done to them."""

    def __init__(self, before: Journal, fatal: Iterable[int], failing: Iterable[int]) -> None:
        self.journal: list[Step] = list(before)
        self._nodes = _nodes(before)
        self._next_inode = max(self._nodes) + 1
        self._fatal = sorted(fatal, reverse=True)
        """The steps, counted from 0, that their callers do not live to take; the next one is the last."""
        self._failing = sorted(failing, reverse=True)
        """The steps that fail and are not taken, likewise."""
        self._handlers: dict[int, Callable[[int, memoryview], bytes | None]] = {
            1: self._look_up,
            2: self._forget,
            3: self._get_attributes,
            4: self._set_attributes,
            8: self._make_file,
            9: self._make_directory,
            10: self._remove_file,
            11: self._remove_directory,
            12: self._rename,
            13: self._link,
            15: self._read,
            16: self._write,
            17: self._statistics,
            20: self._sync,
            26: self._begin,
            28: self._list,
            30: self._sync,
            36: self._forget,  # an interrupt: every request has been answered by then
            42: self._forget,
            45: self._rename_2,
        }

    def serve(self, device: int) -> None:
        """Answer requests until the filesystem is unmounted."""
        buffer = bytearray(_REQUEST_BYTES_MAX)
        while True:
            try:
                size = os.readv(device, [buffer])
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno in {errno.EINTR, errno.EAGAIN, errno.ENOENT}:  # the request was taken back
                    continue
                raise
            _, operation, unique, inode, _, _, caller, *_ = _REQUEST.unpack_from(buffer)
            if caller and operation in _STEPS and self._is_refused(caller):
                reply: tuple[int, bytes] | None = (errno.EIO, b"")
            else:
                reply = self._answer(operation, inode, memoryview(buffer)[_REQUEST.size : size])
            if reply is not None:
                status, body = reply
                os.writev(device, [_REPLY.pack(_REPLY.size + len(body), -status, unique), body])

    def _is_refused(self, caller: int) -> bool:
        """Whether the next step fails, or its caller is killed here and now."""
        if self._fatal and len(self.journal) >= self._fatal[-1]:
            self._fatal.pop()
            os.kill(caller, signal.SIGKILL)
            return True
        if self._failing and len(self.journal) >= self._failing[-1]:
            self._failing.pop()
            return True
        return False

    def _answer(self, operation: int, inode: int, body: memoryview) -> tuple[int, bytes] | None:
        handler = self._handlers.get(operation)
        if handler is None:
            return errno.ENOSYS, b""
        try:
            reply = handler(inode, body)
        except OSError as error:
            return error.errno or errno.EIO, b""
        return None if reply is None else (0, reply)

    def _begin(self, _: int, body: memoryview) -> bytes:
        major, _, read_ahead, flags = _INIT.unpack_from(body)
        if major != 7:
            raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
        pages = _WRITE_BYTES_MAX // _BLOCK_BYTES
        flags &= _BIG_WRITES | _MAX_PAGES
        return _INIT_REPLY.pack(7, 31, read_ahead, flags, 0, 0, _WRITE_BYTES_MAX, 1, pages, 0)

    def _forget(self, _: int, __: memoryview) -> None:
        """No answer is expected. What has no name any more is kept: it is not much."""

    def _look_up(self, inode: int, body: memoryview) -> bytes:
        return self._entry(self._child(inode, _names(body)[0]))

    def _child(self, inode: int, name: str) -> int:
        child = self._nodes[inode].names.get(name)
        if child is None:
            raise FileNotFoundError(errno.ENOENT, name)
        return child

    def _entry(self, inode: int) -> bytes:
        return _ENTRY_REPLY.pack(inode, 0, _VALID_SECONDS, _VALID_SECONDS, 0, 0) + self._attributes(inode)

    def _attributes(self, inode: int) -> bytes:
        node = self._nodes[inode]
        size = len(node.content)
        links = 2 if node.is_directory else node.links
        blocks = -(-size // 512)
        owner, group = os.getuid(), os.getgid()
        return _ATTRIBUTES.pack(
            inode, size, blocks, 0, 0, 0, 0, 0, 0, node.mode, links, owner, group, 0, _BLOCK_BYTES, 0
        )  # fmt: skip

    def _get_attributes(self, inode: int, _: memoryview) -> bytes:
        return _ATTRIBUTES_REPLY.pack(_VALID_SECONDS, 0, 0) + self._attributes(inode)

    def _set_attributes(self, inode: int, body: memoryview) -> bytes:
        valid, _, _, size, *rest = _SET_ATTRIBUTES.unpack_from(body)
        node = self._nodes[inode]
        if valid & _SET_SIZE:
            resize(node.content, size)
            self.journal.append(Resized(inode, size))
        if valid & _SET_MODE:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(rest[7])
        return self._get_attributes(inode, body)

    def _make_file(self, inode: int, body: memoryview) -> bytes:
        mode, *_ = _MAKE_NODE.unpack_from(body)
        if not stat.S_ISREG(mode):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        return self._make(inode, _names(body[_MAKE_NODE.size :])[0], mode)

    def _make_directory(self, inode: int, body: memoryview) -> bytes:
        mode, _ = _MAKE.unpack_from(body)
        return self._make(inode, _names(body[_MAKE.size :])[0], stat.S_IFDIR | mode)

    def _make(self, directory: int, name: str, mode: int) -> bytes:
        inode = self._next_inode
        self._next_inode += 1
        self._nodes[inode] = _Node(mode)
        self.journal.append(Made(inode, stat.S_ISDIR(mode)))
        self._name((directory, name, inode))
        return self._entry(inode)

    def _name(self, *changes: tuple[int, str, int | None]) -> None:
        for directory, name, inode in changes:
            names = self._nodes[directory].names
            before = names.pop(name, None)
            if before is not None:
                self._nodes[before].links -= 1
            if inode is not None:
                names[name] = inode
                self._nodes[inode].links += 1
        self.journal.append(Named(changes))

    def _remove_file(self, inode: int, body: memoryview) -> bytes:
        name = _names(body)[0]
        self._child(inode, name)
        self._name((inode, name, None))
        return b""

    def _remove_directory(self, inode: int, body: memoryview) -> bytes:
        name = _names(body)[0]
        if self._nodes[self._child(inode, name)].names:
            raise OSError(errno.ENOTEMPTY, name)
        self._name((inode, name, None))
        return b""

    def _rename(self, inode: int, body: memoryview) -> bytes:
        return self._move(inode, _RENAME.unpack_from(body)[0], body[_RENAME.size :])

    def _rename_2(self, inode: int, body: memoryview) -> bytes:
        directory, flags, _ = _RENAME_2.unpack_from(body)
        if flags:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return self._move(inode, directory, body[_RENAME_2.size :])

    def _move(self, from_directory: int, to_directory: int, body: memoryview) -> bytes:
        before, after = _names(body)
        moved = self._child(from_directory, before)
        replaced = self._nodes[to_directory].names.get(after)
        if replaced is not None and self._nodes[replaced].names:
            raise OSError(errno.ENOTEMPTY, after)
        if replaced != moved:  # two names of one file: POSIX says that nothing is done
            self._name((from_directory, before, None), (to_directory, after, moved))
        return b""

    def _link(self, inode: int, body: memoryview) -> bytes:
        (linked,) = _LINK.unpack_from(body)
        self._name((inode, _names(body[_LINK.size :])[0], linked))
        return self._entry(linked)

    def _read(self, inode: int, body: memoryview) -> bytes:
        _, offset, size, *_ = _READ_WRITE.unpack_from(body)
        return bytes(self._nodes[inode].content[offset : offset + size])

    def _write(self, inode: int, body: memoryview) -> bytes:
        _, offset, size, *_ = _READ_WRITE.unpack_from(body)
        content = bytes(body[_READ_WRITE.size : _READ_WRITE.size + size])
        write(self._nodes[inode].content, offset, content)
        self.journal.append(Wrote(inode, offset, content))
        return _WRITE_REPLY.pack(size, 0)

    def _statistics(self, _: int, __: memoryview) -> bytes:
        counts = (_FREE_BLOCKS, _FREE_BLOCKS, _FREE_BLOCKS, _FREE_BLOCKS, _FREE_BLOCKS)
        return _STATISTICS_REPLY.pack(*counts, _BLOCK_BYTES, 255, _BLOCK_BYTES, 0)

    def _sync(self, inode: int, _: memoryview) -> bytes:
        self.journal.append(Synced(inode))
        return b""

    def _list(self, inode: int, body: memoryview) -> bytes:
        _, offset, size, *_ = _READ_WRITE.unpack_from(body)
        listed = bytearray()
        for position, (name, child) in enumerate(self._nodes[inode].names.items(), start=1):
            if position <= offset:
                continue
            raw = name.encode()
            kind = stat.S_IFMT(self._nodes[child].mode) >> 12
            entry = _DIRECTORY_ENTRY.pack(child, position, len(raw), kind) + raw
            entry += bytes(-len(entry) % 8)
            if len(listed) + len(entry) > size:
                break
            listed += entry
        return bytes(listed)


def _nodes(journal: Journal) -> dict[int, _Node]:
    """The files and directories that a journal leaves."""
    tree = survivors(journal, CrashState(len(journal)))
    nodes = {inode: _Node(stat.S_IFDIR | 0o700, names=names) for inode, names in tree.directories.items()}
    nodes |= {inode: _Node(stat.S_IFREG | 0o600, content=content) for inode, content in tree.files.items()}
    for node in list(nodes.values()):
        for child in node.names.values():
            nodes[child].links += 1
    return nodes


def _names(body: memoryview) -> list[str]:
    """The names at the end of a request, each with a zero after it."""
    return [raw.decode() for raw in bytes(body).split(b"\0")[:-1]]


def _steps(text: str) -> list[int]:
    return [int(step) for step in text.split(",") if step]


def main() -> None:
    """Serve the descriptor that the first argument names, on the journal in the file that the second names.

    The file is replaced in the end. Then come the steps that are fatal and those that fail, with commas between.
    """
    device, file, fatal, failing = sys.argv[1:]
    server = DiskServer(pickle.loads(Path(file).read_bytes()), _steps(fatal), _steps(failing))
    try:
        server.serve(int(device))
    finally:
        Path(file).write_bytes(pickle.dumps(server.journal))


if __name__ == "__main__":
    main()
