"""Whatever bytes arrive, in whatever pieces: answers that make sense, no fault, nothing left under way."""

from dataclasses import replace

import pytest

from tests.fuzz.credentials import MARK, Credentials
from tests.fuzz.raw_client import Cut
from tests.fuzz.serving import FuzzedServer
from tests.fuzz.wire import LIMITS, guarded_fuzzers, open_fuzzers
from tests.http.harness import head
from tierstore.service.service import ObjectService
from tierstore.tiering.objects import OpenObject
from tierstore.types.ids import ObjectId
from tierstore.types.ranges import ByteRange

EXAMPLES = 100


def test_bytes_of_any_kind() -> None:
    """Each request in the bytes gets one answer, the same however the bytes are cut; no answer tells of a fault."""
    with FuzzedServer(LIMITS) as server:
        for fuzzer in open_fuzzers(server):
            assert fuzzer.run(EXAMPLES, seed=0) > 0


def test_credentials() -> None:
    """While authentication is enforced, credentials are refused, and never written to a log or an answer."""
    with FuzzedServer(LIMITS, enforce=True) as server:
        for fuzzer in guarded_fuzzers(server):
            assert fuzzer.run(EXAMPLES, seed=0) > 0


class _Faulty(ObjectService):
    """A service whose reads fail in a way that nobody expected."""

    async def get(self, object_id: ObjectId, byte_range: ByteRange | None) -> OpenObject:
        raise KeyError(object_id.key)


def test_a_fault_is_found() -> None:
    """An exception that nobody handles breaks the law of any bytes, though the server answers and goes on."""
    request = head("GET", "/v1/objects/testing/_/k")
    with FuzzedServer(LIMITS, service=_Faulty) as server:
        law = open_fuzzers(server)[0].law
        law(Cut(head("HEAD", "/v1/objects/testing/_/k"), (), one_by_one=False))
        with pytest.raises(AssertionError, match="500"):
            law(Cut(request, (), one_by_one=False))


def test_a_credential_that_is_written_down_is_found() -> None:
    """What is logged breaks the law of credentials: as a path would, which is."""
    plain = Credentials("GET", "/v1/objects/testing/_/k", f"Bearer {MARK}", None, None)
    with FuzzedServer(LIMITS, enforce=True) as server:
        law = guarded_fuzzers(server)[0].law
        law(plain)
        with pytest.raises(AssertionError, match=MARK):
            law(replace(plain, target=f"/v1/objects/testing/_/{MARK}"))
