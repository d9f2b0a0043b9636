"""The supervised loop of a worker: claim, handle, keep the lease, end.

Nothing that the server does ends it: restarts, flushes, fail-overs and forgotten scripts are waited out. It
is woken by messages and looks every second without them. On stop it claims nothing more, lets running jobs
end, and gives back what does not end in time without counting the attempt.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence

from redis.exceptions import RedisError

from shared.contracts import Announcement, Stage
from shared.errors import InternalError, JobError, LLMGAError, QueueUnavailable, RequestError
from shared.jobs.cancellation import raise_if_canceled
from shared.jobs.claim import Claim
from shared.jobs.leases import JobCanceled, LeaseKeeper, LeaseLost
from shared.jobs.listener import Listener
from shared.jobs.queue import JobQueue
from shared.logs import bind
from shared.settings import RedisSettings

logger = logging.getLogger("llmga.jobs")

POLL_S = 1.0  # looks for work this often without being woken
REAP_S = 1.0
PAUSE_S = 0.3  # after an error of the server
CLAIMS_AT_ONCE = 8  # while jobs are queued: a way to the server and back takes long on a busy machine
CANCEL_S = 10.0  # for a handler to end after it was told to
STALLED_AFTER_S = 60.0  # longer than every time-out of one turn of the loop together

Handler = Callable[[Claim], Awaitable[None]]


class Consumer:
    """One worker's loop over one stage."""

    def __init__(
        self,
        queue: JobQueue,
        settings: RedisSettings,
        *,
        stage: Stage,
        worker: str,
        handle: Handler,
        capacity: int,
        announcement: Callable[[], Announcement],
        batch_keys: Callable[[], Sequence[Collection[str]]] | None = None,
        room: Callable[[], int] | None = None,
    ) -> None:
        """Make the loop of one worker; `run` starts it.

        `capacity`: the most jobs in hand; `room`: how many more there is a place for now, if that varies;
        `batch_keys`: what to take, in order of preference: the next set of keys when no job of the one before waits.
        """
        self._queue = queue
        self._settings = settings
        self._stage = stage
        self._worker = worker
        self._handle = handle
        self._capacity = capacity
        self._announcement = announcement
        self._batch_keys = batch_keys
        self._room = room
        self._running: dict[asyncio.Task[None], Claim] = {}
        self._wake = asyncio.Event()
        self._turned_at: float | None = None
        self._leaves_work = False  # whether the last look left jobs in the queue, or did not look for want of room
        self._giving_back = False  # what does not succeed now was told to stop: no attempt is counted

    @property
    def running(self) -> int:
        """Number of jobs in hand."""
        return len(self._running)

    def free(self) -> int:
        """Return how many jobs would be taken now."""
        free = self._capacity - len(self._running)
        return free if self._room is None else max(min(free, self._room()), 0)

    def progressing(self) -> bool:
        """Whether the loop turns (or has not started, or has ended); for `/livez`."""
        return self._turned_at is None or time.monotonic() - self._turned_at < STALLED_AFTER_S

    def wake(self) -> None:
        """Look for work now; for workers whose batch keys or room have changed."""
        self._wake.set()

    async def run(self, stop: asyncio.Event, *, drain_s: float) -> None:
        """Work until `stop` is set, then drain."""
        self._giving_back = False
        keeper = LeaseKeeper(self._queue, self._settings)
        listener = Listener(self._queue.redis)
        keeper.start()
        helpers: list[asyncio.Task[None]] = []
        try:
            await listener.subscribe(self._queue.wake_channel(self._stage), self._told_of_work)
            await listener.subscribe(self._queue.canceled_channel(self._worker), self._told_of_cancel)
            helpers = [
                asyncio.create_task(self._repeat(self._reap, REAP_S), name="reap"),
                asyncio.create_task(self._repeat(self._announce, self._lease_s / 3), name="announce"),
                asyncio.create_task(self._wake_on(stop), name="stop"),
            ]
            await self._loop(stop, keeper)
            await self._drain(drain_s)
        finally:
            self._turned_at = None
            self._giving_back = True
            for task in (*helpers, *self._running):
                task.cancel()
            await asyncio.gather(*helpers, *self._running, return_exceptions=True)
            await listener.aclose()
            await asyncio.to_thread(keeper.close)
            with contextlib.suppress(QueueUnavailable):
                await self._queue.withdraw(self._worker)

    @property
    def _lease_s(self) -> float:
        return self._queue.settings.lease_ms / 1000

    def _told_of_work(self, _: str | None) -> None:
        self._wake.set()

    def _told_of_cancel(self, token: str | None) -> None:
        for claim in tuple(self._running.values()):
            if claim.token == token:
                claim.lose(JobCanceled(f"job {claim.job.id} was canceled"))

    async def _loop(self, stop: asyncio.Event, keeper: LeaseKeeper) -> None:
        wanted = 1
        while not stop.is_set():
            raise_if_canceled()
            self._turned_at = time.monotonic()
            self._wake.clear()
            free = self.free()
            self._leaves_work = free <= 0
            try:
                if free > 0 and (left := await self._take_several(min(free, wanted), keeper)):
                    self._leaves_work = True
                    wanted = min(left, CLAIMS_AT_ONCE)
                    continue
            except (QueueUnavailable, RedisError, OSError) as error:
                logger.warning("cannot claim jobs now", extra={"error": type(error).__name__})
                await asyncio.sleep(PAUSE_S)
                continue
            except Exception:
                logger.exception("claiming failed")
                await asyncio.sleep(PAUSE_S)
                continue
            wanted = 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._wake.wait()

    async def _take_several(self, count: int, keeper: LeaseKeeper) -> int:
        """Claim that many jobs at once; return how many are left, 0 also when there were not so many to take."""
        lefts = await asyncio.gather(*(self._take(keeper) for _ in range(count)), return_exceptions=True)
        for left in lefts:
            if isinstance(left, BaseException):
                raise left
        return min(left for left in lefts if isinstance(left, int))

    async def _take(self, keeper: LeaseKeeper) -> int:
        """Claim one job; return how many are left, 0 also when there was none to take."""
        for batch_keys in [None] if self._batch_keys is None else self._batch_keys():
            claimed_at = time.monotonic()
            claim = await self._queue.claim(self._stage, worker=self._worker, batch_keys=batch_keys)
            if claim is not None:
                break
        else:
            return 0
        keeper.hold(claim, claimed_at)
        task = asyncio.create_task(self._work(claim, keeper), name=f"job {claim.job.id}")
        self._running[task] = claim
        task.add_done_callback(self._forget)
        return claim.left

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._running.pop(task, None)
        if self._leaves_work or self._batch_keys is not None:
            self._wake.set()

    async def _work(self, claim: Claim, keeper: LeaseKeeper) -> None:
        with bind(job_id=claim.job.id, worker=self._worker):
            try:
                await self._attempt(claim)
            except LeaseLost as reason:
                logger.info("claim lost", extra={"reason": str(reason)})
            except (RedisError, OSError, LLMGAError):
                logger.exception("the end of the attempt could not be told; its lease will end")
            finally:
                keeper.drop(claim)

    async def _attempt(self, claim: Claim) -> None:
        """Run the handler, and bring the claim to the end that its outcome asks for."""
        error: LLMGAError = InternalError("The worker stopped without a result.")
        retry = True
        try:
            await self._handle(claim)
            if not claim.ended and not claim.lost.is_set() and not self._giving_back:
                logger.error("the handler returned without ending its claim")
        except LeaseLost:
            raise
        except asyncio.CancelledError:
            await self._give_back(claim)
            raise
        except (JobError, RequestError) as refusal:
            error, retry = refusal, False
        except Exception as failure:
            if claim.lost.is_set():
                logger.debug("the handler of a lost claim failed", exc_info=True)
            else:
                logger.exception("the attempt failed", extra={"attempt": claim.attempt})
            error = failure if isinstance(failure, LLMGAError) else InternalError("The worker met a fault.")
        if claim.ended or claim.lost.is_set():
            return
        if retry and self._giving_back:
            await self._give_back(claim)
        else:
            await claim.fail(error, retry=retry)

    async def _give_back(self, claim: Claim) -> None:
        if not claim.ended and not claim.lost.is_set():
            await claim.release()

    async def _drain(self, drain_s: float) -> None:
        if self._running:
            logger.info("draining", extra={"jobs": len(self._running), "drain_s": drain_s})
            await asyncio.wait(self._running, timeout=drain_s)
        self._giving_back = True
        for task in tuple(self._running):
            task.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=CANCEL_S)

    async def _wake_on(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._wake.set()

    async def _reap(self) -> None:
        await self._queue.reap()

    async def _announce(self) -> None:
        await self._queue.announce(self._announcement())

    async def _repeat(self, action: Callable[[], Awaitable[None]], every_s: float) -> None:
        while True:
            raise_if_canceled()
            try:
                await action()
            except (QueueUnavailable, RedisError, OSError) as error:
                logger.debug("the queue's server is away", extra={"error": type(error).__name__})
            except Exception:
                logger.exception("an action beside the loop failed")
            await asyncio.sleep(every_s)
