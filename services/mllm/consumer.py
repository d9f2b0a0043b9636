"""Jobs of the prompt stage: claim, look at the picture, write, tell, advance.

Deltas go out in batches: a fast model costs the queue no more than `MAX_DELTAS_PER_S` events a second per job, and many
jobs together `DELTAS_PER_S_IN_ALL`, as long as each has `MIN_DELTAS_PER_S`. A canceled job, or one whose lease is lost,
leaves vLLM at once. When the engine dies the attempt fails, to be tried again, and the process is told to end.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Self

from services.mllm.pictures import Picture, Pixels, picture_of
from services.mllm.tasks import Written, carry_out, work_of
from services.mllm.writing import PromptWriter, Sampling
from shared import metrics
from shared.artifacts import ArtifactStore
from shared.contracts import EventType, GenerationPrompt, GenerationRequest, Lane, Task
from shared.errors import Gone, NotFound
from shared.jobs import Claim
from shared.media import decode_image, extended, mask_of
from shared.settings import MLLMSettings

MAX_DELTAS_PER_S = 20  # enough to read along; each is a call of the queue
MIN_DELTAS_PER_S = 5
DELTAS_PER_S_IN_ALL = 150
# vLLM runs the lowest number first; waiting batch work goes behind all interactive work.
PRIORITIES = {Lane.INTERACTIVE: 0, Lane.BATCH: 10}
DECODED_AT_ONCE = 2  # pictures; the largest takes 50 MB twice, before and after it is squared

_log = logging.getLogger("llmga.mllm")


class PromptJobs:
    """The handler of claims."""

    def __init__(
        self,
        writer: PromptWriter,
        settings: MLLMSettings,
        artifacts: ArtifactStore,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._writer = writer
        self._settings = settings
        self._artifacts = artifacts
        self._decoding = asyncio.Semaphore(DECODED_AT_ONCE)
        self._clock = clock
        self._under_way = 0
        self.finishing = 0  # jobs that vLLM is done with, and the queue not yet

    async def handle(self, claim: Claim) -> None:
        """Write the prompt of one job.

        Raises:
            LeaseLost: the claim was lost on the way; the request has left vLLM.
        """
        writing = asyncio.create_task(self._write(claim))

        def stop_writing() -> None:
            writing.cancel()

        claim.on_lost(stop_writing)
        self._under_way += 1
        try:
            await writing
        except asyncio.CancelledError:
            if not claim.lost.is_set():
                raise  # this worker is ending
            _log.info("the job was given up on the way")
        finally:
            self._under_way -= 1
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def _write(self, claim: Claim) -> None:
        request = claim.job.request
        picture = await self._picture(claim)
        started = self._clock()
        parts = carry_out(
            self._writer,
            work_of(request, picture),
            self._sampling(request),
            # An attempt of its own for vLLM, which may still hold the last one for a moment.
            request_id=f"{claim.job.id}-{claim.attempt}",
            priority=PRIORITIES[request.lane],
        )
        told_at = 0.0
        waiting = ""
        written: Written | None = None
        async with aclosing(parts), _Teller(claim) as teller:
            async for part in parts:
                if isinstance(part, Written):
                    written = part
                    break
                waiting += part
                now = self._clock()
                if teller.is_busy or now - told_at < self._pause_s():
                    continue
                is_first, told_at = not told_at, now
                if is_first:
                    metrics.TIME_TO_FIRST_DELTA_SECONDS.observe(now - started)
                    # A task would begin behind the tokens of all other jobs of this step. vLLM goes on meanwhile.
                    await claim.emit(EventType.PROMPT_DELTA, {"text": waiting})
                else:
                    teller.tell(waiting)
                waiting = ""
            with self._finishing_one():
                await teller.done()
                if waiting:
                    await claim.emit(EventType.PROMPT_DELTA, {"text": waiting})
                assert written is not None, "the work ends with an answer or an error"
                await claim.advance(_prompt(written))

    def _pause_s(self) -> float:
        """Return the least time between two deltas of a job."""
        rate = DELTAS_PER_S_IN_ALL / max(1, self._under_way)
        return 1 / min(MAX_DELTAS_PER_S, max(MIN_DELTAS_PER_S, rate))

    @contextmanager
    def _finishing_one(self) -> Iterator[None]:
        self.finishing += 1
        try:
            yield
        finally:
            self.finishing -= 1

    async def _picture(self, claim: Claim) -> Picture | None:
        request = claim.job.request
        if request.image is None:
            return None
        async with self._decoding:
            return await asyncio.to_thread(self._look_at, request, request.image, claim.tenant)

    def _look_at(self, request: GenerationRequest, image_id: str, tenant: str) -> Picture:
        pixels = self._load(image_id, tenant)
        if request.outpaint is not None:
            pixels, _ = extended(pixels, request.outpaint)  # black around the picture
        if request.mask is None or request.task is Task.EDIT:  # whose mask says what may change, not what is missing
            return picture_of(pixels)
        return picture_of(pixels, mask=mask_of(self._load(request.mask, tenant)))

    def _load(self, image_id: str, tenant: str) -> Pixels:
        try:
            data, _ = self._artifacts.get(image_id, tenant=tenant)
        except NotFound:
            raise Gone(
                "The request's picture is no longer kept.",
                next_step="Upload the picture again and submit the request with its new id.",
            ) from None
        return decode_image(data)

    def _sampling(self, request: GenerationRequest) -> Sampling:
        return Sampling(
            max_tokens=self._settings.max_tokens,
            temperature=self._settings.temperature,
            seed=request.seed,
            opens=self._settings.opening_tag == "given",
        )


class _Teller:
    """Tells all deltas but the first beside the writing, one at a time: a slow queue makes them fewer."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._task: asyncio.Task[None] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether the last delta is still on its way."""
        return self._task is not None and not self._task.done()

    def tell(self, text: str) -> None:
        """Begin to tell a delta; raises what telling the last one did."""
        if self._task is not None:
            self._task.result()
        self._task = asyncio.create_task(self._claim.emit(EventType.PROMPT_DELTA, {"text": text}))

    async def done(self) -> None:
        """Wait until the last delta was told; raises what telling it did."""
        if self._task is not None:
            await self._task

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


def _prompt(written: Written) -> GenerationPrompt:
    """Return the first prompt, with the texts of the others and the caption before an edit in it."""
    first, *others = written.answer.prompts
    more = [other.text for other in others] or None
    caption = None if written.source is None else written.source.text
    return first.model_copy(update={"more": more, "source_caption": caption})
