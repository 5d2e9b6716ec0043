"""Settings that change while a server runs: read again on SIGHUP, and put in force as a whole or not at all.

These change: ``auth``, ``admission``, ``usecases``, ``throughput``, ``bandwidth``, and the files of ``tls``. Others
wait for a restart, and the log names those that differ. The process that was started reads and checks everything, key
files too; of several workers, each is then told to take over what was read, so all get the same, within moments of each
other, and a worker that starts later begins with it. The files of ``tls`` alone are read by each worker itself.

Guarantees: if anything is wrong, the settings before stay in force, all of them, and the log says what is wrong.
"""

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from tierstore.clock import SystemClock
from tierstore.config import Config, Section, Tls, rules_from
from tierstore.errors import ConfigError, StartupError
from tierstore.invariants import invariant
from tierstore.process.access import access_from, with_key_files_read
from tierstore.process.metrics_directory import VARIABLE
from tierstore.process.tls import check_tls, reloadable

RELOADED = ("tls", "auth", "admission", "usecases", "throughput", "bandwidth")
"""The sections that can change while a server runs."""

_HANDED_OVER = "settings"

log = structlog.get_logger(__name__)


class Reloads:
    """Passes new settings on to what is in force, in one process."""

    def __init__(self) -> None:
        self._take_over: Callable[[Config], None] | None = None
        self._latest: Config | None = None

    def subscribe(self, take_over: Callable[[Config], None] | None) -> None:
        """Call ``take_over`` with the settings from each reload, the latest one before included; None to end that."""
        self._take_over = take_over
        if take_over is not None and self._latest is not None:
            take_over(self._latest)

    def publish(self, config: Config) -> None:
        """Put ``config`` in force, as soon as anything is served."""
        self._latest = config
        if self._take_over is not None:
            self._take_over(config)


def settings_again(reread: Callable[[], Config] | None, running: Config) -> Config | None:
    """What is to be in force from now on: ``running``, with the sections that may change as they are read now.

    None if ``running`` stays in force; the log says why.
    """
    if reread is None:
        log.error("reload refused", reason="this server was started without a way to read its settings again")
        return None
    try:
        config, tls = _checked(reread(), running)
    except StartupError as error:
        log.error("reload refused; the settings before stay in force", reason=str(error))  # noqa: TRY400  # because the sentence says it all
        return None
    except Exception:  # no fault in reading may end a server that runs
        log.exception("reload failed; the settings before stay in force")
        return None
    others = [
        name for name in Config.__struct_fields__ if name not in RELOADED or (name == "tls" and config.tls != tls)
    ]
    if differing := [name for name in others if getattr(config, name) != getattr(running, name)]:
        log.warning("some settings that have changed need a restart", sections=differing)
    config = msgspec.structs.replace(running, **{name: getattr(config, name) for name in RELOADED} | {"tls": tls})
    log.info("settings read again", auth="enforced" if config.auth.enforce else "off", keys=len(config.auth.keys))
    return config


def _checked(read: Config, running: Config) -> tuple[Config, Tls]:
    """``read`` with its key files, and the ``tls`` that may follow ``running``'s. Raises `StartupError`."""
    config = with_key_files_read(read)
    access_from(config)
    rules_from(config)
    tls = config.tls if reloadable(running.tls, config.tls) else running.tls
    if tls.certificate:
        check_tls(tls, SystemClock())
    try:
        unpacked = _unpacked(_packed(config))
    except msgspec.MsgspecError as error:
        raise ConfigError(f"these settings cannot be passed on to workers: {error}") from error
    invariant(unpacked == {name: getattr(config, name) for name in RELOADED}, "workers take over what has been read")
    return config, tls


def _packed(config: Config) -> bytes:
    """The sections that may change, what differs from the defaults in them, for `_unpacked`."""
    return msgspec.json.encode({name: _given(getattr(config, name)) for name in RELOADED})


def _given(section: Section) -> dict[str, object]:
    default = type(section)()
    values = {name: getattr(section, name) for name in section.__struct_fields__}
    return {name: value for name, value in values.items() if value != getattr(default, name)}


def _unpacked(raw: bytes) -> dict[str, Section]:
    """Raises `msgspec.MsgspecError`, `KeyError`."""
    sections = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    return {name: msgspec.json.decode(sections[name], type=type(getattr(Config(), name))) for name in RELOADED}


def hand_over(config: Config) -> None:
    """Leave ``config`` where this server's workers find it. Raises `OSError`."""
    file = Path(os.environ[VARIABLE], _HANDED_OVER)
    written = file.with_suffix(".new")
    written.write_bytes(_packed(config))
    written.replace(file)


def handed_over(running: Config) -> Config | None:
    """``running`` with what the supervisor has left; None, and a line in the log, if that cannot be had."""
    file = Path(os.environ.get(VARIABLE, ""), _HANDED_OVER)
    try:
        changed = _unpacked(file.read_bytes())
    except FileNotFoundError:
        return running  # a signal that the supervisor did not send: it has read nothing yet
    except (OSError, KeyError, msgspec.MsgspecError) as error:
        log.error("reload failed in this worker; the settings before stay in force", reason=str(error))  # noqa: TRY400  # because the reason is all
        return None
    config = msgspec.structs.replace(running, **changed)
    log.info("settings taken over", keys=len(config.auth.keys))
    return config
