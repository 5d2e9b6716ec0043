"""A service account and the endpoint that exchanges its signed assertions for bearer tokens, as Google's does.

So that what the code under test does with application default credentials is done by google-auth itself, over a socket.
"""

import json
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from urllib.parse import parse_qs

import jwt
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

ACCOUNT = "tests@tierstore.example"
_AUDIENCE = "https://oauth2.googleapis.com/token"
"""What google-auth signs for, wherever the endpoint is."""
_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"


@cache
def private_key() -> rsa.RSAPrivateKey:
    """The account's key, made once for a process: making it takes a while."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def credentials_file(directory: Path, token_uri: str) -> Path:
    """Write what ``GOOGLE_APPLICATION_CREDENTIALS`` may name."""
    pem = private_key().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = directory / "service-account.json"
    file.write_text(
        json.dumps(
            {
                "type": "service_account",
                "project_id": "tests",
                "private_key_id": "1",
                "private_key": pem.decode(),
                "client_email": ACCOUNT,
                "client_id": "1",
                "token_uri": token_uri,
            }
        )
    )
    file.chmod(0o600)
    return file


class Tokens:
    """The tokens that were issued, and until when they are good."""

    def __init__(self, lifetime_seconds: float = 3600.0) -> None:
        self.lifetime_seconds = lifetime_seconds
        self.issued = 0
        self.refuses = False
        """Whether the endpoint refuses every assertion, as for an account that was disabled."""
        self._good_until: dict[str, float] = {}

    @property
    def all_issued(self) -> list[str]:
        """Every token that is known, for tests that look for them in logs."""
        return list(self._good_until)

    def revoke_all(self) -> None:
        """No token that was issued so far is good any more."""
        self._good_until = dict.fromkeys(self._good_until, 0.0)

    def is_good(self, headers: Mapping[str, str]) -> bool:
        """Whether a request bears a token that is good now."""
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        return scheme == "Bearer" and self._good_until.get(token, 0.0) > time.monotonic()

    async def grant(self, request: web.BaseRequest) -> web.Response:
        """Answer a request of the token endpoint."""
        form = {name: values[0] for name, values in parse_qs(await request.text()).items()}
        try:
            claims = jwt.decode(
                form.get("assertion", ""),
                private_key().public_key(),
                algorithms=["RS256"],
                audience=_AUDIENCE,
                issuer=ACCOUNT,
            )
        except jwt.InvalidTokenError as error:
            return _denied(str(error))
        if self.refuses or form.get("grant_type") != _GRANT or "devstorage" not in claims.get("scope", ""):
            return _denied("the account may not do this")
        self.issued += 1
        token = f"ya29.test-{self.issued}"
        self._good_until[token] = time.monotonic() + self.lifetime_seconds
        return web.json_response({
            "access_token": token, "expires_in": max(1, round(self.lifetime_seconds)), "token_type": "Bearer",
        })  # fmt: skip


def _denied(text: str) -> web.Response:
    return web.json_response({"error": "invalid_grant", "error_description": text}, status=400)
