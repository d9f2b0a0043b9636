"""Who calls: told by an API key, or nobody in particular where no keys are asked for."""

import asyncio
import hmac
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from shared.contracts import Lane
from shared.contracts.keys import MAX_FILE_BYTES, Key, Keys, digest_of, split_token
from shared.contracts.limits import UNBOUNDED, UNLIMITED, Limits, Standing
from shared.errors import Unauthenticated
from shared.jobs import DEFAULT_TENANT
from shared.settings import Settings, SettingsError

LOOK_S = 0.3  # a revoked key must have lost its power within a second

_log = logging.getLogger("llmga.gateway")


@dataclass(slots=True)
class Caller:
    """The tenant for whom a request is served; one object per request.

    `standing`: what is left of the limits, once this request has been counted against them.
    """

    tenant: str = DEFAULT_TENANT
    key_id: str | None = None
    limits: Limits = UNLIMITED
    lane: Lane | None = None
    standing: Standing = UNBOUNDED


class Callers(Protocol):
    """Tells who calls."""

    def identify(self, authorization: str | None) -> Caller:
        """Return the caller who sent this `Authorization` header.

        Raises:
            Unauthenticated: there is no key in it, or none that is good.
        """

    async def tend(self) -> None:
        """Keep up with the keys until canceled."""


class Anyone:
    """Lets everybody in, as one and the same tenant without limits."""

    def identify(self, authorization: str | None) -> Caller:
        """Return the only tenant that there is."""
        return Caller()

    async def tend(self) -> None:
        """Return: there is nothing to keep up with."""


class KeyHolders:
    """Lets in who holds a key of the file, which is read again when it has changed.

    What cannot be read changes nothing: the keys that were read last stay good, and the log says why.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        self._path = path
        self._limits = limits
        self._file = Keys()
        self._good: Mapping[str, Key] = {}
        self._seen: _Signature | None = None

    def load(self) -> None:
        """Read the file for the first time; one that is not there yet lets nobody in until it is.

        Raises:
            SettingsError: it cannot be read, or is not a file of keys.
        """
        try:
            self._seen = _signature(self._path)
            self._take(_read(self._path))
        except FileNotFoundError:
            _log.warning("there are no API keys yet: every request is refused", extra={"file": str(self._path)})
        except (OSError, ValueError) as error:
            advice = "correct it, or name another file with LLMGA_AUTH__KEYS_FILE"
            raise SettingsError([f"the file of API keys {self._path}: {_reason(error)}; {advice}"]) from error

    def identify(self, authorization: str | None) -> Caller:
        """Return the holder of the key (`Callers.identify`; RFC 6750 §2.1)."""
        scheme, _, token = (authorization or "").strip().partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthenticated("The request carries no API key.")
        parts = split_token(token.strip())
        key = None if parts is None else self._good.get(parts[0])
        # The id is public and may be looked up; of the secret's hash no prefix may be told apart from another.
        if parts is None or key is None or not hmac.compare_digest(digest_of(parts[1]), key.sha256):
            raise Unauthenticated("The API key is not known, or was revoked.")
        tenant = self._file.tenants.get(key.tenant)
        if tenant is None:
            return Caller(key.tenant, key.id, self._limits)
        return Caller(key.tenant, key.id, tenant.limits_over(self._limits), tenant.lane)

    async def tend(self) -> None:
        """Look at the file again and again (`Callers.tend`)."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await asyncio.to_thread(self._look_again)
            except Exception:
                _log.exception("looking after the API keys failed")

    def _look_again(self) -> None:
        try:
            seen = _signature(self._path)
        except OSError:
            seen = None
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._take(_read(self._path))
        except (OSError, ValueError) as error:
            extra = {"file": str(self._path), "reason": _reason(error)}
            _log.error("the file of API keys cannot be used; the keys that were read last stay good", extra=extra)

    def _take(self, file: Keys) -> None:
        self._file = file
        self._good = {key.id: key for key in file.keys if key.revoked is None}
        _log.info("API keys were read", extra={"good": len(self._good), "revoked": len(file.keys) - len(self._good)})


def open_callers(settings: Settings) -> Callers:
    """Return what tells the callers apart by the settings.

    Raises:
        SettingsError: the file of keys cannot be used.
    """
    if settings.auth.mode == "none":
        _log.warning(
            "AUTHENTICATION IS OFF (LLMGA_AUTH__MODE=none): whoever reaches this server may use it, without limits"
        )
        return Anyone()
    holders = KeyHolders(settings.keys_path, settings.limits)
    holders.load()
    return holders


_Signature = tuple[int, int, int, int]


def _signature(path: Path) -> _Signature:
    """Return what changes when the file is replaced or written to."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _read(path: Path) -> Keys:
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError("too large")
    return Keys.model_validate_json(data)


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in fault["loc"])
        return f"{where or 'as a whole'}: {fault['msg'].removeprefix('Value error, ')}"
    if isinstance(error, OSError):
        return os.strerror(error.errno or 0)
    return str(error)
