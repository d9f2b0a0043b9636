"""The artifact store: pictures by id, kept for a limited time.

An id is derived from the tenant and the bytes, so that the same picture of one tenant is stored once,
whoever finishes it, and one tenant's ids say nothing about another's. `FolderStore` keeps each artifact as
two files, the bytes and a JSON sidecar. Both are written beside their final place, synced and renamed, the
bytes last: an artifact is there completely or not at all, and a crash, a full disk or two writers at once
cannot change that.

Beside the artifacts it holds *states*: what a worker keeps of unfinished work under a name, for whoever goes on with
it. A state is overwritten, dropped, or lost with the machine; its bytes are whole or it is not there.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from shared.errors import NotFound, StoreUnavailable
from shared.settings import Settings, SettingsError

_ID = re.compile(r"img_([0-9a-f]{2})[0-9a-f]{38}")
_STATE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MEDIA_TYPE = re.compile(r"[a-z]+/[a-z0-9][a-z0-9.+-]*")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_STATES = "states"
_TEMPORARY = ".partial-"
_TEMPORARY_S = 3_600  # far longer than any write; what is older was left by a process that died
_RETRY_AFTER_S = 30  # a full disk is freed by the next sweep or by a person

_log = logging.getLogger("llmga.artifacts")


@dataclass(frozen=True, slots=True)
class Stored:
    """What the store knows of an artifact; `created_at` is Unix time in seconds."""

    id: str
    sha256: str
    bytes: int
    media_type: str
    created_at: float
    metadata: Mapping[str, Any] = field(default_factory=dict)


class ArtifactStore(Protocol):
    """Where artifacts are. All calls block: from a coroutine, use `asyncio.to_thread`."""

    def put(self, data: bytes, media_type: str, *, tenant: str, metadata: Mapping[str, Any] | None = None) -> Stored:
        """Keep the data and return only when they are safe; the same data again count as used now.

        Raises:
            StoreUnavailable: they could not be written; nothing of them is left.
        """

    def get(self, artifact_id: str, *, tenant: str) -> tuple[bytes, Stored]:
        """Return the data and what is known of them.

        Raises:
            NotFound: there is no such artifact of this tenant, or it is damaged.
        """

    def touch(self, artifact_id: str, *, tenant: str) -> Stored:
        """Count an artifact as used now, so that its retention starts again; return what is known of it.

        Raises:
            NotFound: there is no such artifact of this tenant.
        """

    def save_state(self, name: str, data: bytes) -> None:
        """Keep a state in the place of the last one of this name, without waiting for the disk.

        Raises:
            StoreUnavailable: it could not be written; the last one is still there.
        """

    def load_state(self, name: str) -> bytes | None:
        """Return the state of this name, None when there is none."""

    def drop_state(self, name: str) -> None:
        """Forget the state of this name, if there is one."""

    def sweep(self, now: float | None = None) -> int:
        """Delete what is older than the retention at `now` (Unix time in seconds); return how many."""


def id_of(data: bytes, tenant: str) -> str:
    """Return the id that these bytes have for this tenant."""
    digest = hashlib.sha256(tenant.encode() + b"\x00")
    digest.update(data)
    return f"img_{digest.hexdigest()[:40]}"


class FolderStore:
    """An `ArtifactStore` in a folder, which several processes and hosts may share."""

    def __init__(self, root: Path, *, retention_s: float) -> None:
        self.root = root
        self._retention_s = retention_s

    def put(self, data: bytes, media_type: str, *, tenant: str, metadata: Mapping[str, Any] | None = None) -> Stored:
        """Keep the data and return when they are on disk (`ArtifactStore.put`)."""
        if not _MEDIA_TYPE.fullmatch(media_type):
            raise ValueError(f"not a media type: {media_type!r}")
        stored = Stored(
            id=id_of(data, tenant),
            sha256=hashlib.sha256(data).hexdigest(),
            bytes=len(data),
            media_type=media_type,
            created_at=time.time(),
            metadata=dict(metadata or {}),
        )
        path = self._path(stored.id)
        try:
            with self._locked(fcntl.LOCK_SH):
                present = self._touch(path, stored, tenant)
                if present is not None:
                    return present
                if not path.parent.exists():
                    path.parent.mkdir(exist_ok=True)
                    _sync(self.root)
                _write(_sidecar(path), json.dumps(_record(stored, tenant)).encode())
                _write(path, data)
        except OSError as error:
            _log.error("an artifact could not be written: %s", os.strerror(error.errno or 0))
            raise StoreUnavailable("The picture could not be stored.", retry_after_s=_RETRY_AFTER_S) from error
        return stored

    def get(self, artifact_id: str, *, tenant: str) -> tuple[bytes, Stored]:
        """Return the data and what is known of them (`ArtifactStore.get`)."""
        missing = NotFound("There is no such artifact.")
        if not _ID.fullmatch(artifact_id):
            raise missing
        path = self._path(artifact_id)
        stored = self._read(path, tenant)
        if stored is None:
            raise missing
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise missing from None
        if id_of(data, tenant) != artifact_id:
            _log.error("an artifact is damaged", extra={"artifact_id": artifact_id})
            raise missing
        return data, stored

    def touch(self, artifact_id: str, *, tenant: str) -> Stored:
        """Count an artifact as used now (`ArtifactStore.touch`)."""
        missing = NotFound("There is no such artifact.")
        if not _ID.fullmatch(artifact_id):
            raise missing
        path = self._path(artifact_id)
        with self._locked(fcntl.LOCK_SH):
            stored = self._read(path, tenant)
            if stored is None:
                raise missing
            try:
                os.utime(path)
            except FileNotFoundError:
                raise missing from None
        return stored

    def save_state(self, name: str, data: bytes) -> None:
        """Keep a state (`ArtifactStore.save_state`)."""
        path = self._state(name)
        try:
            path.parent.mkdir(exist_ok=True)
            _write(path, data, synced=False)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise StoreUnavailable(f"A state could not be kept: {reason}.", retry_after_s=_RETRY_AFTER_S) from error

    def load_state(self, name: str) -> bytes | None:
        """Return a state (`ArtifactStore.load_state`)."""
        try:
            return self._state(name).read_bytes()
        except OSError:
            return None

    def drop_state(self, name: str) -> None:
        """Forget a state (`ArtifactStore.drop_state`)."""
        with suppress(OSError):
            self._state(name).unlink()

    def sweep(self, now: float | None = None) -> int:
        """Delete what is older than the retention, and what writers that died left behind."""
        now = time.time() if now is None else now
        removed = 0
        for path in sorted(self.root.glob("[0-9a-f][0-9a-f]/*")):
            is_temporary = path.name.startswith(_TEMPORARY)
            if not is_temporary and path.suffix == ".json" and path.with_suffix("").exists():
                continue  # it goes with its artifact
            if self._remove_if_older(path, now - (_TEMPORARY_S if is_temporary else self._retention_s)):
                removed += not is_temporary and path.suffix != ".json"
        for path in (self.root / _STATES).glob("*"):
            self._remove_if_older(path, now - self._retention_s)
        return removed

    def _remove_if_older(self, path: Path, time_s: float) -> bool:
        # Alone: a writer that has just found the artifact present must not lose it.
        with self._locked(fcntl.LOCK_EX), suppress(FileNotFoundError):
            if path.stat().st_mtime >= time_s:
                return False
            path.unlink()
            if _ID.fullmatch(path.name):
                _sidecar(path).unlink()
            return True
        return False

    def _state(self, name: str) -> Path:
        if not _STATE_NAME.fullmatch(name):
            raise ValueError(f"not a name of a state: {name!r}")
        return self.root / _STATES / name

    def _path(self, valid_id: str) -> Path:
        return self.root / valid_id[4:6] / valid_id

    def _touch(self, path: Path, stored: Stored, tenant: str) -> Stored | None:
        present = self._read(path, tenant)
        try:
            if present is None or id_of(path.read_bytes(), tenant) != stored.id:
                return None
            os.utime(path)
        except FileNotFoundError:
            return None
        return present

    def _read(self, path: Path, tenant: str) -> Stored | None:
        try:
            record = json.loads(_sidecar(path).read_bytes())
            owner = record.pop("tenant")
            stored = Stored(**record)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError):
            _log.error("an artifact's sidecar is damaged", extra={"artifact_id": path.name})
            return None
        return stored if owner == tenant and stored.id == path.name else None

    @contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        # The kernel lets go of the lock when its holder dies.
        descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, kind)
            yield
        finally:
            os.close(descriptor)


def open_store(settings: Settings) -> ArtifactStore:
    """Open the store that the settings name, making its folder where it is missing.

    Raises:
        SettingsError: the URL is of a kind that is not served, or the folder cannot be used.
    """
    root = _folder(settings)
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise SettingsError(
            [f"LLMGA_ARTIFACTS__URL: the folder {root} cannot be written ({os.strerror(error.errno or 0)})"]
        ) from error
    return FolderStore(root, retention_s=settings.artifacts.retention_s)


def _folder(settings: Settings) -> Path:
    url = settings.artifacts.url
    if not url:
        return settings.home / "artifacts"
    scheme = _SCHEME.match(url)
    if scheme is None:
        return Path(url).expanduser()
    if scheme[1].lower() != "file":
        raise SettingsError(
            [f"LLMGA_ARTIFACTS__URL: {scheme[1]}:// is not served; give a folder as a path or a file:// URL"]
        )
    parts = urlsplit(url)
    if parts.netloc not in {"", "localhost"} or not parts.path.startswith("/") or parts.query or parts.fragment:
        raise SettingsError(["LLMGA_ARTIFACTS__URL: a file:// URL has three slashes: file:///var/lib/llmga"])
    return Path(unquote(parts.path))


def _record(stored: Stored, tenant: str) -> dict[str, Any]:
    return {
        "id": stored.id,
        "sha256": stored.sha256,
        "bytes": stored.bytes,
        "media_type": stored.media_type,
        "created_at": stored.created_at,
        "metadata": dict(stored.metadata),
        "tenant": tenant,
    }


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _write(path: Path, data: bytes, *, synced: bool = True) -> None:
    """Write a file so that it is there with all its bytes, or not at all; `synced`: also after a loss of power."""
    descriptor, temporary = tempfile.mkstemp(prefix=_TEMPORARY, dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            if synced:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    if synced:
        _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
