"""The key directory, from settings and key files to what admission works with.

Guarantees: a key file is read once, by the process that reads the settings (a server that starts, or its supervisor at
a reload), and its text takes the file's place in the settings: so all workers of a server have the same keys.
Everything that is wrong with any key is reported, with the key's id and the file's name, and never with its text.
"""

import stat
from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import replace

from tierstore.admission.authentication import Access
from tierstore.admission.keys import KeyDirectory, public_key_of, verifying_key
from tierstore.config import Auth, AuthKey, Config
from tierstore.errors import ConfigError, InvalidRequest

_KEY_FILE_BYTES_MAX = 4096
"""As many as a key may have that stands in the settings: its text takes the file's place in them."""


def with_key_files_read(config: Config) -> Config:
    """``config`` with the text of its key files in place of their names. Raises `ConfigError`."""
    problems: list[str] = []
    keys = {kid: _with_files_read(kid, key, problems) for kid, key in config.auth.keys.items()}
    if not problems:
        config = replace(config, auth=replace(config.auth, keys=keys))
        problems += _problems(config.auth)
    if problems:
        raise ConfigError("\n".join(f"auth.keys: {problem}" for problem in problems))
    return config


def access_from(config: Config) -> Access:
    """Who may do what by ``config``, whose key files have been read. Raises `ConfigError`."""
    auth = config.auth
    try:
        keys = [verifying_key(kid, _texts(key), key.max_permissions) for kid, key in auth.keys.items()]
    except InvalidRequest as error:
        raise ConfigError(f"auth.keys: a key {error}") from error
    return Access(
        enforce=auth.enforce,
        keys=KeyDirectory(keys),
        audiences=auth.audiences,
        issuers=auth.issuers,
        leeway_seconds=auth.leeway,
    )


def _texts(key: AuthKey) -> tuple[str, ...]:
    if key.files:
        raise InvalidRequest("is in a file that has not been read")
    return key.public_keys


def _with_files_read(kid: str, key: AuthKey, problems: list[str]) -> AuthKey:
    texts = list(key.public_keys)
    for name in key.files:
        try:
            text = _text_of(Path(name).expanduser())
            public_key_of(text)
        except InvalidRequest as error:
            problems.append(f"{kid}: the file {name} {error}")
        except (OSError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            problems.append(f"{kid}: the file {name} cannot be read: {reason}")
        except ValueError:
            problems.append(f"{kid}: the file {name} is no public key in PEM")
        else:
            texts.append(text)
    return replace(key, files=(), public_keys=tuple(texts))


def _text_of(file: Path) -> str:
    if not stat.S_ISREG(file.stat().st_mode):  # a pipe may keep its reader waiting for ever
        raise InvalidRequest("is no regular file")
    with file.open("rb") as opened:
        content = opened.read(_KEY_FILE_BYTES_MAX + 1)
    if len(content) > _KEY_FILE_BYTES_MAX:
        raise InvalidRequest("is too large for a key")
    return content.decode()


def _problems(auth: Auth) -> Iterator[str]:
    for kid, key in auth.keys.items():
        try:
            verifying_key(kid, key.public_keys, key.max_permissions)
        except InvalidRequest as error:
            yield f"{kid}: {error}"
