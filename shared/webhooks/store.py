"""The deliveries, as those who send them see them; each method is one round trip."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast

from shared import metrics
from shared.jobs import JobQueue
from shared.jobs.server import client_errors

FOLDER = Path(__file__).parent / "lua"


@cache
def load_sources() -> Mapping[str, str]:
    """Return the text of every Lua file by its name."""
    return MappingProxyType({path.stem: path.read_text() for path in sorted(FOLDER.glob("*.lua"))})


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event on its way to a webhook, in one of its attempts; `id` is the same in all of them."""

    id: str
    url: str
    tenant: str
    job_id: str
    type: str
    data: str
    time_ms: int
    attempt: int
    token: str
    reason: str = ""


class DeliveryStore:
    """The deliveries of one queue."""

    def __init__(self, queue: JobQueue, *, sources: Mapping[str, str] | None = None) -> None:
        self._queue = queue
        texts = load_sources() if sources is None else sources
        self._scripts = {name: queue.redis.register_script(queue.scripts.compose(text)) for name, text in texts.items()}

    @property
    def channel(self) -> str:
        """The channel on which new deliveries are told."""
        return f"{self._queue.scripts.base}deliveries"

    async def claim(self, *, token: str, lease_ms: int, limit: int) -> list[Delivery]:
        """Take deliveries that are due. They are due again when the lease is over, unless they were settled.

        Raises:
            QueueUnavailable: the server does not answer.
        """
        taken, waiting, dead = await self._call("claim", token, lease_ms, limit)
        metrics.WEBHOOK_QUEUE_DELIVERIES.set(waiting)
        metrics.WEBHOOK_DEAD_DELIVERIES.set(dead)
        return [_delivery(delivery_id, _pairs(flat)) for delivery_id, flat in taken]

    async def settle(
        self,
        delivery: Delivery,
        outcome: Literal["delivered", "again", "dead"],
        *,
        delay_ms: int = 0,
        reason: str = "",
    ) -> bool:
        """End an attempt; return False when it is no longer the caller's.

        Raises:
            QueueUnavailable: the server does not answer.
        """
        answer = await self._call("settle", delivery.id, delivery.token, outcome, delay_ms, reason)
        return bool(answer == "ok")

    async def dead_letters(self) -> list[Delivery]:
        """Return the deliveries that were given up, the latest first.

        Raises:
            QueueUnavailable: the server does not answer.
        """
        base = self._queue.scripts.base
        async with client_errors():
            ids = cast(list[str], await self._queue.redis.zrevrange(f"{base}deliveries:dead", 0, -1))
            async with self._queue.redis.pipeline(transaction=False) as pipeline:
                for delivery_id in ids:
                    pipeline.hgetall(f"{base}delivery:{delivery_id}")
                records: list[dict[str, str]] = await pipeline.execute() if ids else []
        return [_delivery(delivery_id, record) for delivery_id, record in zip(ids, records, strict=True) if record]

    async def replay(self, delivery_id: str) -> bool:
        """Try a dead delivery anew; return whether there was one.

        Raises:
            QueueUnavailable: the server does not answer.
        """
        return bool(await self._call("replay", delivery_id))

    async def _call(self, name: str, *own: str | int) -> Any:
        scripts = self._queue.scripts
        async with client_errors():
            return await self._scripts[name](keys=[scripts.base], args=scripts.arguments(*own))


def _pairs(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _delivery(delivery_id: str, record: Mapping[str, str]) -> Delivery:
    return Delivery(
        id=delivery_id,
        url=record["url"],
        tenant=record["tenant"],
        job_id=record["job"],
        type=record["type"],
        data=record["data"],
        time_ms=int(record["time"]),
        attempt=int(record["attempts"]),
        token=record.get("token", ""),
        reason=record.get("reason", ""),
    )
