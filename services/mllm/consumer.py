"""Jobs of the prompt stage: claim, look at the picture, write, tell, advance.

Deltas go out in batches, so that a fast model costs the queue no more than `MAX_DELTAS_PER_S` events a second
per job. A canceled job, or one whose lease is lost, leaves vLLM at once. When the engine dies the attempt
fails, to be tried again, and the process is told to end.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import aclosing

from services.mllm.pictures import Picture, picture_of
from services.mllm.tasks import Written, carry_out, work_of
from services.mllm.writing import PromptWriter, Sampling
from shared import metrics
from shared.artifacts import ArtifactStore
from shared.contracts import EventType, GenerationPrompt, GenerationRequest, Lane
from shared.errors import Gone, NotFound
from shared.jobs import Claim
from shared.media import decode_image
from shared.settings import MLLMSettings

MAX_DELTAS_PER_S = 30
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

    async def handle(self, claim: Claim) -> None:
        """Write the prompt of one job.

        Raises:
            LeaseLost: the claim was lost on the way; the request has left vLLM.
        """
        writing = asyncio.create_task(self._write(claim))

        def stop_writing() -> None:
            writing.cancel()

        claim.on_lost(stop_writing)
        try:
            await writing
        except asyncio.CancelledError:
            if not claim.lost.is_set():
                raise  # this worker is ending
            _log.info("the job was given up on the way")
        finally:
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
        async with aclosing(parts):
            async for part in parts:
                if isinstance(part, Written):
                    written = part
                    break
                waiting += part
                now = self._clock()
                if now - told_at < 1 / MAX_DELTAS_PER_S:
                    continue
                if not told_at:
                    metrics.TIME_TO_FIRST_DELTA_SECONDS.observe(now - started)
                told_at = now
                await claim.emit(EventType.PROMPT_DELTA, {"text": waiting})
                waiting = ""
        if waiting:
            await claim.emit(EventType.PROMPT_DELTA, {"text": waiting})
        assert written is not None, "the work ends with an answer or an error"
        await claim.advance(_prompt(written))

    async def _picture(self, claim: Claim) -> Picture | None:
        image_id = claim.job.request.image
        if image_id is None:
            return None
        async with self._decoding:
            return await asyncio.to_thread(self._look_at, image_id, claim.tenant)

    def _look_at(self, image_id: str, tenant: str) -> Picture:
        try:
            data, _ = self._artifacts.get(image_id, tenant=tenant)
        except NotFound:
            raise Gone(
                "The request's picture is no longer kept.",
                next_step="Upload the picture again and submit the request with its new id.",
            ) from None
        return picture_of(decode_image(data))

    def _sampling(self, request: GenerationRequest) -> Sampling:
        return Sampling(
            max_tokens=self._settings.max_tokens,
            temperature=self._settings.temperature,
            seed=request.seed,
        )


def _prompt(written: Written) -> GenerationPrompt:
    """Return the first prompt, with the texts of the others in it."""
    first, *others = written.answer.prompts
    return first.model_copy(update={"more": [other.text for other in others]}) if others else first
