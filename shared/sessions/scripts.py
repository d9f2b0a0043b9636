"""The Lua scripts of sessions and their typed signatures; turns are added by the queue's own `submit`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from redis.asyncio import Redis

from shared.jobs.scripts import SESSIONS, Scripts

FOLDER = Path(__file__).parent / "lua"


@cache
def load_sources() -> Mapping[str, str]:
    """Return the text of every Lua file by its name."""
    return MappingProxyType({path.stem: path.read_text() for path in sorted(FOLDER.glob("*.lua"))})


@dataclass(frozen=True, slots=True)
class SessionView:
    """A session's hash."""

    id: str
    record: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TurnView:
    """A turn as the server keeps it; `state` is None when nothing is known of its job."""

    number: int
    record: str
    job_id: str
    created_ms: int
    state: str | None


class SessionScripts:
    """The scripts of one namespace, put together with those of its queue."""

    def __init__(self, redis: Redis, queue: Scripts, sources: Mapping[str, str]) -> None:
        self._queue = queue
        fragment = queue.sources[SESSIONS]
        self._scripts = {name: redis.register_script(queue.compose(text, fragment)) for name, text in sources.items()}

    async def _call(self, name: str, *own: str | int) -> Any:
        return await self._scripts[name](keys=[self._queue.base], args=self._queue.arguments(*own))

    async def create(
        self,
        *,
        session_id: str,
        tenant: str,
        name: str,
        body_hash: str,
        idempotency_key: str,
        max_sessions: int,
        retention_s: int,
    ) -> tuple[str, SessionView | None]:
        """Make a session: `created`, `known` (by its idempotency key), `conflict`, `gone` or `full`."""
        outcome, *rest = await self._call(
            "create", session_id, tenant, name, body_hash, idempotency_key, max_sessions, retention_s
        )
        return outcome, _view(*rest) if rest else None

    async def read(self, *, session_id: str, tenant: str) -> tuple[SessionView, list[TurnView]] | None:
        """Read a session with its turns."""
        reply = await self._call("read", session_id, tenant)
        if reply is None:
            return None
        record, turns = reply
        return _view(session_id, record), [_turn(turn) for turn in turns]

    async def list_sessions(self, *, tenant: str, after: str, limit: int) -> tuple[list[SessionView], str]:
        """Read a page of a tenant's sessions, and the place after which the next one goes on ('': none)."""
        page, last = await self._call("list", tenant, after, limit)
        return [_view(*one) for one in page], last

    async def delete(self, *, session_id: str, tenant: str) -> bool:
        """Forget a session; return whether there was one."""
        return bool(await self._call("delete", session_id, tenant))


def _view(session_id: str, flat: Sequence[str]) -> SessionView:
    return SessionView(session_id, dict(zip(flat[::2], flat[1::2], strict=True)))


def _turn(reply: Sequence[Any]) -> TurnView:
    number, record, job_id, created_ms, *state = reply  # a missing state ends the array (Lua's nil)
    return TurnView(number, record, job_id, int(created_ms), state[0] if state else None)
