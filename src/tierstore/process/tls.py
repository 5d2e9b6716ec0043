"""Encrypted connections: the certificate and the key, from their files to what serves new connections.

Guarantees: what is wrong with a file is said with the setting, the file's name and the reason, and never with the
file's text. `ServerTls.reload` is all or nothing: whole handshakes see either the files before or those of now; a
connection keeps what it began with. Each worker reads the files by itself, so that the key is in no place but its own.

Does not: choose ciphers (Python's and OpenSSL's defaults hold, which leave out what is broken), fetch or renew
certificates, or look up revocations.
"""

import ssl
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from tierstore.clock import MICROS_PER_SECOND, Clock
from tierstore.config import Tls
from tierstore.errors import ConfigError

_FILE_BYTES_MAX = 1024 * 1024
_VERSIONS: Final = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}

log = structlog.get_logger(__name__)


class ServerTls:
    """What serves new connections: `context`, for the listener, with the files as they were read last."""

    def __init__(self, tls: Tls) -> None:
        """Raises `ConfigError`."""
        self._current = _new_context(tls)
        self.context = _new_context(tls)
        self.context.sni_callback = self._use_current

    def reload(self, tls: Tls) -> None:
        """Read the files again, for the connections that come from now on. Raises `ConfigError`, with no effect."""
        self._current = _new_context(tls)

    def _use_current(self, connection: ssl.SSLObject, _name: str | None, _first: ssl.SSLContext) -> None:
        """Called in every handshake, also where the client names no server (RFC 6066, section 3)."""
        connection.context = self._current


def check_tls(tls: Tls, clock: Clock) -> None:
    """Raise `ConfigError` unless connections can be served with these files; log what is dangerous about them."""
    _new_context(tls)
    if Path(tls.key).stat().st_mode & stat.S_IROTH:
        log.warning("other users of this machine can read the private key: chmod 600", file=tls.key)
    now = datetime.fromtimestamp(clock.now() / MICROS_PER_SECOND, UTC)
    certificate = _certificates(tls)[0]
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        log.warning(
            "the certificate is not valid now: clients will refuse it",
            file=tls.certificate,
            valid_from=certificate.not_valid_before_utc.isoformat(),
            valid_to=certificate.not_valid_after_utc.isoformat(),
        )


def reloadable(running: Tls, changed: Tls) -> bool:
    """Whether a running server can take over ``changed``: other files, but neither with nor without TLS instead."""

    def kept(tls: Tls) -> tuple[bool, bool, str]:
        return bool(tls.certificate), bool(tls.client_ca), tls.minimum_version

    return kept(running) == kept(changed)


def _new_context(tls: Tls) -> ssl.SSLContext:
    problems = list(_problems(tls))
    if problems:
        raise ConfigError("\n".join(problems))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[tls.minimum_version]
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(tls.certificate, tls.key, password=_no_password)
    except OSError as error:
        raise ConfigError(f"tls.certificate, tls.key: OpenSSL does not take them: {error}") from error
    if tls.client_ca:
        try:
            context.load_verify_locations(tls.client_ca)
        except OSError as error:
            raise ConfigError(f"tls.client_ca: OpenSSL does not take {tls.client_ca}: {error}") from error
        context.verify_mode = ssl.CERT_REQUIRED
        # A session that is resumed is not checked again: an authority that is taken out would live on in it. TLS 1.3
        # resumes by tickets alone; before, OpenSSL also keeps sessions itself, and Python has no way to forbid it.
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0
    return context


def _no_password() -> str:
    """Never asked for, as such keys are refused before; and if it is, not by a prompt in the operator's terminal."""
    return ""


def _problems(tls: Tls) -> Iterator[str]:
    try:
        certificate = _certificates(tls)[0]
    except ConfigError as error:
        yield str(error)
        certificate = None
    try:
        key = _public_half_of_key(tls)
    except ConfigError as error:
        yield str(error)
        key = None
    if certificate is not None and key is not None and _public_half_of(certificate) != key:
        yield f"tls.key: the key in {tls.key} is not that of the certificate in {tls.certificate}"
    if tls.client_ca:
        try:
            _certificates_in("tls.client_ca", tls.client_ca)
        except ConfigError as error:
            yield str(error)


def _certificates(tls: Tls) -> list[x509.Certificate]:
    return _certificates_in("tls.certificate", tls.certificate)


def _certificates_in(setting: str, name: str) -> list[x509.Certificate]:
    content = _content(setting, name)
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError:
        raise ConfigError(f"{setting}: the file {name} holds no certificate in PEM") from None


def _public_half_of(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _public_half_of_key(tls: Tls) -> bytes:
    content = _content("tls.key", tls.key)
    try:
        key = load_pem_private_key(content, password=None)
    except TypeError:
        raise ConfigError(
            f"tls.key: the key in {tls.key} is encrypted; the server takes one without a password, "
            "in a file that its user alone can read"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"tls.key: the file {tls.key} holds no private key in PEM") from None
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _content(setting: str, name: str) -> bytes:
    try:
        if not stat.S_ISREG(Path(name).stat().st_mode):  # a pipe may keep its reader waiting for ever
            raise ConfigError(f"{setting}: {name} is no regular file")
        with Path(name).open("rb") as opened:
            content = opened.read(_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{setting}: the file {name} cannot be read: {error.strerror}") from error
    if len(content) > _FILE_BYTES_MAX:
        raise ConfigError(f"{setting}: the file {name} is too large for certificates and keys")
    return content
