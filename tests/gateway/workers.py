"""Small workers that claim through the real queue: words for prompts, plain colors for pictures."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np

from shared.artifacts import ArtifactStore
from shared.contracts import (
    Announcement,
    EventType,
    GenerationPrompt,
    ImageResult,
    OutputFormat,
    Phase,
    Scheduler,
    ServedModel,
    Stage,
    Task,
)
from shared.contracts.generation import PromptEncoding, parse_size
from shared.jobs import Claim, Consumer, JobQueue
from shared.media import encode_image
from shared.settings import RedisSettings

PROMPT_MODEL = ServedModel(name="writer", default=True, kind="llama", tasks=list(Task))
RENDER_MODEL = ServedModel(
    name="painter",
    default=True,
    kind="sd15",
    tasks=[Task.TEXT_TO_IMAGE, Task.SIMILAR, Task.INPAINT, Task.OUTPAINT, Task.EDIT],
    size="128x128",
    max_side_px=256,
    num_inference_steps=4,
    guidance_scale=7.5,
    scheduler=Scheduler.DDIM,
    schedulers=[Scheduler.DDIM, Scheduler.EULER],
    prompt_encodings=[PromptEncoding.LLMGA, PromptEncoding.STOCK],
    max_prompt_tokens={PromptEncoding.LLMGA: 225, PromptEncoding.STOCK: 75},
)

CAPACITY = 8  # jobs at once
PREVIEW = {
    "media_type": "image/jpeg",
    "width": 8,
    "height": 8,
    "data": base64.b64encode(encode_image(np.zeros((8, 8, 3), np.uint8), OutputFormat.JPEG, {})).decode(),
}


class Worker:
    """One worker of one stage. Until `gate` is set it stops in the middle of each job."""

    def __init__(
        self,
        queue: JobQueue,
        redis: RedisSettings,
        artifacts: ArtifactStore,
        stage: Stage,
        *,
        models: list[ServedModel] | None = None,
        phase: Phase = Phase.READY,
        name: str | None = None,
    ) -> None:
        self.stage = stage
        self.name = name or f"test-{stage}"
        self.phase = phase
        self.detail = "as the test wants it"
        self.url: str | None = None
        self.models = models or [PROMPT_MODEL if stage is Stage.PROMPT else RENDER_MODEL]
        self.gate = asyncio.Event()
        self.gate.set()
        self.claims: list[Claim] = []
        self.lost: list[str] = []
        self._artifacts = artifacts
        self.consumer = Consumer(
            queue,
            redis,
            stage=stage,
            worker=self.name,
            handle=self._write if stage is Stage.PROMPT else self._paint,
            capacity=CAPACITY,
            announcement=self.announcement,
        )

    def announcement(self) -> Announcement:
        """Return this worker's word on itself."""
        return Announcement(
            worker=self.name,
            stage=self.stage,
            phase=self.phase,
            detail=self.detail,
            models=self.models,
            url=self.url,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Worker"]:
        """Run while the block runs."""
        stop = asyncio.Event()
        task = asyncio.create_task(self.consumer.run(stop, drain_s=0))
        try:
            yield self
        finally:
            stop.set()
            await task

    async def _pass_gate(self, claim: Claim) -> None:
        self.claims.append(claim)
        passing = asyncio.ensure_future(self.gate.wait())
        losing = asyncio.ensure_future(claim.lost.wait())
        try:
            await asyncio.wait({passing, losing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            passing.cancel()
            losing.cancel()
            await asyncio.gather(passing, losing, return_exceptions=True)
        if claim.lost.is_set():
            self.lost.append(claim.job.id)

    async def _write(self, claim: Claim) -> None:
        words = ["a ", "picture ", "of ", f"({claim.job.request.instruction})"]
        await claim.emit(EventType.PROMPT_DELTA, {"text": words[0]})
        await self._pass_gate(claim)
        for word in words[1:]:
            await claim.emit(EventType.PROMPT_DELTA, {"text": word})
        await claim.advance(GenerationPrompt(text="".join(words), source="mllm", model="writer", finish_reason="stop"))

    async def _paint(self, claim: Claim) -> None:
        request = claim.job.request
        assert request.seed is not None
        assert request.size is not None
        assert request.num_inference_steps is not None
        await self._pass_gate(claim)
        width, height = parse_size(request.size)
        images = []
        for index in range(request.n):
            for step in range(request.num_inference_steps):
                data = {"index": index, "step": step + 1, "total_steps": request.num_inference_steps}
                await claim.emit(EventType.RENDER_PROGRESS, data)
                if step < request.previews:
                    await claim.emit(EventType.RENDER_PREVIEW, data | PREVIEW)
            color = hashlib.sha256(f"{claim.job.prompt}{request.seed + index}".encode()).digest()[:3]
            pixels = np.full((height, width, 3), list(color), dtype=np.uint8)
            data_bytes = encode_image(pixels, request.output_format, {"seed": str(request.seed + index)})
            stored = await asyncio.to_thread(
                self._artifacts.put, data_bytes, request.output_format.media_type, tenant=claim.tenant
            )
            image = ImageResult(
                index=index,
                id=stored.id,
                url=f"/v1/images/{stored.id}",
                media_type=stored.media_type,
                width=width,
                height=height,
                bytes=stored.bytes,
                sha256=stored.sha256,
                seed=request.seed + index,
            )
            await claim.emit(EventType.IMAGE_COMPLETED, {"image": image.model_dump(mode="json")})
            images.append(image)
        await claim.finish(images, prompt_tokens=8, truncated_tokens=0)
