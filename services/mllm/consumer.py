"""Jobs of the prompt stage: claim, write, tell, advance.

Deltas go out in batches, so that a fast model costs the queue no more than `MAX_DELTAS_PER_S` events a second
per job. A canceled job, or one whose lease is lost, leaves vLLM at once. When the engine dies the attempt
fails, to be tried again, and the process is told to end.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import aclosing

from services.mllm.conversation import Turn
from services.mllm.instructions import question
from services.mllm.writing import Answer, PromptWriter, Sampling
from shared import metrics
from shared.contracts import EventType, GenerationRequest, Lane
from shared.jobs import Claim
from shared.settings import MLLMSettings

MAX_DELTAS_PER_S = 30
# vLLM runs the lowest number first; waiting batch work goes behind all interactive work.
PRIORITIES = {Lane.INTERACTIVE: 0, Lane.BATCH: 10}

_log = logging.getLogger("llmga.mllm")


class PromptJobs:
    """The handler of claims."""

    def __init__(
        self, writer: PromptWriter, settings: MLLMSettings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._writer = writer
        self._settings = settings
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
        started = self._clock()
        parts = self._writer.write(
            [Turn(question(request))],
            self._sampling(request),
            # An attempt of its own for vLLM, which may still hold the last one for a moment.
            request_id=f"{claim.job.id}-{claim.attempt}",
            priority=PRIORITIES[request.lane],
        )
        told_at = 0.0
        waiting = ""
        answer: Answer | None = None
        async with aclosing(parts):
            async for part in parts:
                if isinstance(part, Answer):
                    answer = part
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
        assert answer is not None, "the writer ends with an answer or an error"
        await claim.advance(answer.prompt)

    def _sampling(self, request: GenerationRequest) -> Sampling:
        return Sampling(
            max_tokens=self._settings.max_tokens,
            temperature=self._settings.temperature,
            seed=request.seed,
        )
