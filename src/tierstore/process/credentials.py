"""What operators' commands do with keys and tokens: make them, and look at them.

Guarantees: a private key is written to a new file that its owner alone can read, never over another and never to the
screen. Does not: talk to a server.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from tierstore.admission.authentication import Access
from tierstore.admission.keys import KID_CHARACTERS_MAX, new_key_pair, private_key_of
from tierstore.admission.signing import mint_token, presign_url, read_token
from tierstore.admission.tokens import Grant, TokenVerifier
from tierstore.clock import SystemClock
from tierstore.config import Config
from tierstore.errors import ClientMistake, InvalidRequest, Refusal, StartupError
from tierstore.limits import Limits
from tierstore.process.access import access_from, with_key_files_read
from tierstore.types.durations import parse_duration
from tierstore.types.ids import parse_scopes, parse_usecase
from tierstore.types.permissions import Permission

_KID = re.compile(rf"[A-Za-z0-9_-][A-Za-z0-9._-]{{0,{KID_CHARACTERS_MAX - 1}}}")
_ANY = "*"
_STAND_IN = "_"
"""Takes the place of ``*`` where a scope's value is checked."""


def generate_keys(kid: str, directory: Path) -> tuple[Path, Path]:
    """Make a key pair in two new files, the private one first. Raises `InvalidRequest`, `StartupError`."""
    if _KID.fullmatch(kid) is None:
        raise InvalidRequest(f"a KID has at most {KID_CHARACTERS_MAX} characters of A-Z a-z 0-9 . _ - and no dot first")
    private, public = directory / f"{kid}.private.pem", directory / f"{kid}.public.pem"
    private_pem, public_pem = new_key_pair()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file in (private, public):
            if file.exists():
                raise StartupError(f"{file} is there already: choose another KID, or another directory")
        _write_new(private, private_pem, 0o600)
        _write_new(public, public_pem, 0o644)
    except OSError as error:
        raise StartupError(f"no keys can be written to {directory}: {error.strerror}") from error
    return private, public


def _write_new(file: Path, content: bytes, mode: int) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(descriptor)


def mint(
    key_file: Path,
    kid: str,
    usecase: str,
    scopes: Sequence[str],
    permissions: Sequence[str],
    valid: str,
    claims: dict[str, str],
) -> str:
    """A token. Raises `InvalidRequest`, `StartupError`."""
    return mint_token(
        private_key_of(_bytes_of(key_file)),
        kid,
        usecase=parse_usecase(usecase),
        scopes=_scopes(scopes),
        permissions=[Permission(f"object.{name}") for name in permissions],
        now=SystemClock().now(),
        valid_seconds=parse_duration(valid, Limits()),
        claims=claims,
    )


def presign(key_file: Path, kid: str, url: str, method: str, valid: str) -> str:
    """A pre-signed URL. Raises `InvalidRequest`, `StartupError`."""
    limits = Limits()
    return presign_url(
        private_key_of(_bytes_of(key_file)),
        kid,
        url,
        method=method,
        now=SystemClock().now(),
        valid_seconds=parse_duration(valid, limits),
        limits=limits,
    )


def inspect(token: str, config: Config) -> tuple[str, bool]:
    """What a token says and what this server would make of it, as lines; and whether it would take it.

    Raises `UnreadableCredentials` for what is no token, and `StartupError`.
    """
    header, claims = read_token(token)
    lines = [f"header: {json.dumps(header)}", f"claims: {json.dumps(claims)}"]
    access = access_from(with_key_files_read(config))
    if not access.keys:
        return "\n".join(
            [*lines, "not verified: the settings have no keys (auth.keys); give them with --config"]
        ), False
    try:
        grant = _verified(token, access)
    except (Refusal, ClientMistake) as error:
        return "\n".join([*lines, f"refused: {error}"]), False
    return "\n".join([*lines, f"valid: grants {_listed(grant)}"]), True


def _verified(token: str, access: Access) -> Grant:
    return TokenVerifier(
        access.keys,
        audiences=access.audiences,
        issuers=access.issuers,
        leeway_seconds=access.leeway_seconds,
        clock=SystemClock(),
        limits=Limits(),
    ).verify(token)


def _listed(grant: Grant) -> str:
    scopes = ";".join(f"{name}={value}" for name, value in grant.scopes.items()) or "no scopes"
    permissions = ", ".join(sorted(grant.permissions)) or "nothing"
    return f"{permissions} in {grant.usecase}, {scopes}"


def _scopes(given: Sequence[str]) -> dict[str, str]:
    """Scopes, written name=value or name=*. Raises `InvalidRequest`."""
    scopes: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        parse_scopes(f"{name}{equals}{_STAND_IN if value == _ANY else value}")
        if not equals:
            raise InvalidRequest("a scope is written name=value, or name=* for all values")
        if name in scopes:
            raise InvalidRequest(f"the scope {name} is given twice")
        scopes[name] = value
    return scopes


def _bytes_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise StartupError(f"the key {file} cannot be read: {error.strerror}") from error
