"""The file of API keys as `llmga keys` edits it.

Each change is one step for whoever reads the file at the same time (a new file takes the place of the old one), and
two changes at once come one after the other. The running gateway sees a change within a second.
"""

import contextlib
import fcntl
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import ValidationError

from shared.contracts.keys import Key, Keys, digest_of, token_of

SECRET_BYTES = 32  # 256 bits: nobody guesses one, whatever is known of its hash
ID_BYTES = 6


class KeysError(Exception):
    """The file cannot be used, or does not hold what was asked for; `next_step` says what a person can do."""

    def __init__(self, detail: str, next_step: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.next_step = next_step


class KeysFile:
    """The keys in a file, which is made with the first of them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Keys:
        """Return what the file holds; nothing when it is not there.

        Raises:
            KeysError: it cannot be read, or is no file of keys.
        """
        try:
            return Keys.model_validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return Keys()
        except OSError as error:
            raise self._unusable(error) from error
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in fault["loc"]) or "as a whole"
            raise KeysError(
                f"{self.path} is no file of API keys ({where}: {fault['msg']})", "Correct it, or name another file."
            ) from error

    def create(self, tenant: str, note: str = "") -> tuple[Key, str]:
        """Add a key for the tenant; return it with what its owner sends, which is not kept.

        Raises:
            KeysError: the name or the note is not usable, or the file is not.
        """
        key_id, secret = secrets.token_hex(ID_BYTES), secrets.token_urlsafe(SECRET_BYTES)
        try:
            key = Key(id=key_id, tenant=tenant, sha256=digest_of(secret), created=time.time(), note=note)
        except ValidationError as error:
            raise KeysError(
                "the name or the note is not usable",
                "A tenant's name has up to 64 of the characters A-Z a-z 0-9 . _ @ -, a note up to 200.",
            ) from error
        self._change(lambda keys: keys.model_copy(update={"keys": [*keys.keys, key]}))
        return key, token_of(key_id, secret)

    def revoke(self, key_id: str) -> Key:
        """Revoke a key; one that was revoked before stays as it is.

        Raises:
            KeysError: there is no such key, or the file is not usable.
        """
        found: list[Key] = []

        def revoked(key: Key) -> Key:
            if key.id != key_id:
                return key
            found.append(key if key.revoked is not None else key.model_copy(update={"revoked": time.time()}))
            return found[0]

        def change(keys: Keys) -> Keys:
            changed = keys.model_copy(update={"keys": [revoked(key) for key in keys.keys]})
            if not found:
                raise KeysError(f"there is no key {key_id} in {self.path}", "`llmga keys list` shows their ids.")
            return changed

        self._change(change)
        return found[0]

    def _change(self, change: Callable[[Keys], Keys]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked():
                self._replace(change(self.read()).model_dump_json(indent=2, exclude_unset=True) + "\n")
        except OSError as error:
            raise self._unusable(error) from error

    def _replace(self, text: str) -> None:
        descriptor, fresh = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)  # mode 0600
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                with contextlib.suppress(FileNotFoundError, PermissionError):
                    before = self.path.stat()
                    os.fchown(descriptor, before.st_uid, before.st_gid)  # root edits it for the gateway's user
                os.fsync(descriptor)
            os.replace(fresh, self.path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(fresh)
            raise

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        # Beside the file, which is replaced: a lock on it would be one on the old file.
        descriptor = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _unusable(self, error: OSError) -> KeysError:
        reason = os.strerror(error.errno or 0)
        return KeysError(f"{self.path} cannot be used ({reason})", "Name another file with --keys-file.")
