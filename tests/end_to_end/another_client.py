"""An application that uploads in parts with the public client, in a process of its own.

``python -m tests.end_to_end.another_client begin URL KEY`` begins an upload, sends the parts before `TORN` and half of
that one, prints the upload's id, and waits to be killed. ``… finish URL KEY UPLOAD_ID``, which knows no more than
that, sends the parts that the listing does not have, completes the upload, and prints the numbers that it sent.
"""

import io
import json
import random
import sys
from typing import BinaryIO, cast

import urllib3
from objectstore_client import Client, Session, Usecase

PARTS = 6
TORN = 4
"""The part that the first process is sending when it is killed."""
_PART_BYTES = 300_000


def part(number: int) -> bytes:
    """What the application would read from its file."""
    return random.Random(number).randbytes(_PART_BYTES + number)


def session_at(url: str, org: int = 1, read_seconds: float = 60.0) -> Session:
    """A session of a client that is as patient as a busy machine needs; by default the client is not."""
    timeout = urllib3.Timeout(connect=10, read=read_seconds)
    return Client(url, retries=0, connection_kwargs={"timeout": timeout}).session(Usecase("testing"), org=org)


class _Torn(io.RawIOBase):
    """A file that gives half of a part, then says so and gives nothing more."""

    def __init__(self, content: bytes, upload_id: str) -> None:
        self._half = content[: len(content) // 2]
        self._upload_id = upload_id

    def read(self, size: int = -1) -> bytes:
        if not self._half:
            sys.stdout.write(f"{self._upload_id}\n")
            sys.stdout.flush()
            sys.stdin.read()
        chunk, self._half = (self._half, b"") if size < 0 else (self._half[:size], self._half[size:])
        return chunk


def begin(url: str, key: str) -> None:
    """Send some of the parts, and do not get to the end of one."""
    upload = session_at(url).initiate_multipart_upload(key=key, compression="none")
    for number in range(1, TORN):
        upload.put_part(part(number), part_number=number, content_length=len(part(number)))
    torn = part(TORN)
    upload.put_part(cast("BinaryIO", _Torn(torn, upload.upload_id)), part_number=TORN, content_length=len(torn))


def finish(url: str, key: str, upload_id: str) -> None:
    """Send what is missing, and complete."""
    upload = session_at(url).resume_multipart_upload(key, upload_id)
    listed = upload.list_parts()
    missing = sorted(set(range(1, PARTS + 1)) - {found.part_number for found in listed})
    sent = [upload.put_part(part(each), part_number=each, content_length=len(part(each))) for each in missing]
    upload.complete([*sent, *listed])
    sys.stdout.write(json.dumps(missing))


if __name__ == "__main__":
    command, *words = sys.argv[1:]
    if command == "begin":
        begin(words[0], words[1])
    else:
        finish(words[0], words[1], words[2])
