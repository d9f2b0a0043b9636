"""Keeping leases alive from a thread of their own.

Neither a busy event loop nor a long kernel can make a live worker lose its job: the thread has its own
connection and renews every third of a lease. What it could not renew for a whole lease is lost whether or
not the server says so; that is measured from before the last successful renewal was sent, so this side
never believes longer than the server.
"""

import asyncio
import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from shared.settings import RedisSettings

if TYPE_CHECKING:
    from shared.jobs.claim import Claim
    from shared.jobs.queue import JobQueue

logger = logging.getLogger("llmga.jobs")

RENEWALS_PER_LEASE = 3
RETRIES_PER_RENEWAL = 5  # while the server is away


class LeaseLost(Exception):
    """The attempt token is no longer current: stop, and forget the result."""


class JobCanceled(LeaseLost):
    """The job was canceled."""


@dataclass(slots=True)
class _Held:
    claim: "Claim"
    loop: asyncio.AbstractEventLoop
    renewed_at: float  # monotonic


class LeaseKeeper:
    """Renews the leases of the claims that it holds, until each ends."""

    def __init__(self, queue: "JobQueue", settings: RedisSettings) -> None:
        self._lease_s = queue.settings.lease_ms / 1000
        self._interval_s = self._lease_s / RENEWALS_PER_LEASE
        self._scripts = queue.scripts
        timeout_s = min(settings.socket_timeout_s, self._interval_s)
        self._redis: redis.Redis = redis.Redis.from_url(
            settings.url,
            decode_responses=True,
            protocol=2,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),  # the loop below tries again
        )
        self._renew: Any = self._redis.register_script(self._scripts.source("renew"))
        self._held: dict[str, _Held] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop renewing and end the thread; blocks for one socket timeout at most."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        self._redis.close()

    def hold(self, claim: "Claim", claimed_at: float) -> None:
        """Renew this claim from now on; `claimed_at` is `time.monotonic()` from before the claim was sent.

        Losing it is reported in the calling event loop.
        """
        with self._lock:
            self._held[claim.token] = _Held(claim, asyncio.get_running_loop(), claimed_at)

    def drop(self, claim: "Claim") -> None:
        """Renew this claim no longer."""
        with self._lock:
            self._held.pop(claim.token, None)

    def _run(self) -> None:
        pause_s = self._interval_s
        while not self._closing.wait(pause_s):
            try:
                self._renew_all()
                pause_s = self._interval_s
            except (RedisError, OSError):
                pause_s = self._interval_s / RETRIES_PER_RENEWAL
            except Exception:
                # A bug here must not end renewing for the claims that are fine.
                logger.exception("renewing leases failed")
            self._give_up_expired()

    def _renew_all(self) -> None:
        with self._lock:
            held = list(self._held.values())
        if not held:
            return
        sent_at = time.monotonic()
        pairs = [part for one in held for part in (one.claim.job.id, one.claim.token)]
        answers = self._renew(keys=[self._scripts.base], args=self._scripts.arguments(*pairs))
        for one, answer in zip(held, answers, strict=True):
            if answer == "ok":
                one.renewed_at = sent_at
            elif answer == "canceled":
                self._report(one, JobCanceled(f"job {one.claim.job.id} was canceled"))
            else:
                self._report(one, LeaseLost(f"the lease on job {one.claim.job.id} is no longer ours"))

    def _give_up_expired(self) -> None:
        now = time.monotonic()
        with self._lock:
            held = list(self._held.values())
        for one in held:
            if now - one.renewed_at >= self._lease_s:
                self._report(one, LeaseLost(f"the lease on job {one.claim.job.id} could not be renewed in time"))

    def _report(self, held: _Held, reason: LeaseLost) -> None:
        self.drop(held.claim)
        try:
            held.loop.call_soon_threadsafe(held.claim.lose, reason)
        except RuntimeError:  # the loop is closed: nobody is left to be told
            logger.debug("a lease was lost after its event loop had ended")
