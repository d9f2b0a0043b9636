"""Render jobs: from a claim to pictures in the artifact store.

A job of n pictures is n requests to the engine, with seeds seed, seed + 1, … Events go out as fast as the
queue takes them; a slow queue makes them fewer, never the engine slower. A picture's bytes hold nothing that
differs between two runs, so a job that runs again stores the same pictures under the same ids.
"""

import asyncio
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

from services.diffusion.conditioning.prompts import PromptPair, tokenize
from services.diffusion.engine import Engine, EngineClosed, EngineFull
from services.diffusion.handles import Finished, Handle
from services.diffusion.loading import LoadedModel
from services.diffusion.requests import Picture, RenderRequest, is_guided, prepare
from services.diffusion.stages import Pixels, encode_file
from shared import metrics
from shared.artifacts import ArtifactStore
from shared.contracts import EventType, ImageResult, Job
from shared.contracts.generation import parse_size
from shared.errors import InternalError
from shared.jobs import Claim, LeaseLost

TEXT_KEY = "llmga"  # of the PNG text chunk
SOFTWARE = f"llmga-serve {version('llmga-serve')}"
_FULL_PAUSE_S = 0.02  # canceled pictures leave within a step
_STRANGER_PAUSE_S = 1.0  # so that a worker that serves the model can be the next to claim


@dataclass(frozen=True, slots=True)
class Plan:
    """A job, ready for the engine."""

    prompts: PromptPair
    requests: list[RenderRequest]
    parameters: dict[str, Any]


class Renderer:
    """Handles the claims of a worker's consumer."""

    def __init__(self, engine: Engine, store: ArtifactStore) -> None:
        self._engine = engine
        self._store = store
        # Compression and disk; bounded so that many pictures at once do not crowd out the device thread.
        self._files = ThreadPoolExecutor(max(2, (os.cpu_count() or 2) // 2), thread_name_prefix="llmga-files")

    def close(self) -> None:
        """End the worker threads."""
        self._files.shutdown(cancel_futures=True)

    async def handle(self, claim: Claim) -> None:
        """Render one job and end its claim.

        Raises:
            RequestError: the job cannot be rendered as it was asked for.
            JobError: the model failed.
            LeaseLost: the job was canceled or taken away.
        """
        job = claim.job
        model = self._engine.models.get(job.request.model or "")
        if model is None:  # of another worker with other models; claims are not bound to models
            await asyncio.sleep(_STRANGER_PAUSE_S)
            await claim.release()
            return
        plan = await asyncio.to_thread(make_plan, job, model)
        handles: list[Handle] = []
        tasks: list[asyncio.Task[ImageResult]] = []
        try:
            for index, request in enumerate(plan.requests):
                handle = await self._submit(request)
                handles.append(handle)
                claim.on_lost(handle.cancel)
                tasks.append(asyncio.create_task(self._follow(claim, plan, index, handle)))
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()  # raises what went wrong first
            images = [task.result() for task in tasks]
        finally:
            for handle in handles:
                handle.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        prompt = plan.prompts.prompt
        await claim.finish(images, prompt_tokens=prompt.tokens, truncated_tokens=prompt.truncated)

    async def _submit(self, request: RenderRequest) -> Handle:
        while True:
            try:
                return self._engine.submit(request)
            except EngineFull:
                await asyncio.sleep(_FULL_PAUSE_S)
            except EngineClosed as error:
                raise InternalError("The renderer is stopping.") from error

    async def _follow(self, claim: Claim, plan: Plan, index: int, handle: Handle) -> ImageResult:
        async for event in handle.events():
            if isinstance(event, Finished):
                image = await self._keep(claim, plan, index, event.pixels)
                await claim.emit(EventType.IMAGE_COMPLETED, {"image": image.model_dump(mode="json")})
                return image
            progress = {"index": index, "step": event.step, "total_steps": event.total_steps}
            await claim.emit(EventType.RENDER_PROGRESS, progress)
        if claim.lost.is_set():
            raise LeaseLost(f"job {claim.job.id} was dropped from the engine")
        raise InternalError("The renderer stopped before the picture was done.")

    async def _keep(self, claim: Claim, plan: Plan, index: int, pixels: Pixels) -> ImageResult:
        request = claim.job.request
        picture = plan.requests[index].picture
        parameters = plan.parameters | {"seed": picture.seed}

        def work() -> ImageResult:
            text = json.dumps(parameters, ensure_ascii=False)
            data = encode_file(pixels, request.output_format, {TEXT_KEY: text})
            stored = self._store.put(data, request.output_format.media_type, tenant=claim.tenant, metadata=parameters)
            return ImageResult(
                index=index,
                id=stored.id,
                url=f"/v1/images/{stored.id}",
                media_type=stored.media_type,
                width=picture.width,
                height=picture.height,
                bytes=stored.bytes,
                sha256=stored.sha256,
                seed=picture.seed,
            )

        image = await asyncio.get_running_loop().run_in_executor(self._files, work)
        metrics.IMAGES.labels(picture.model, request.output_format).inc()
        return image


def make_plan(job: Job, model: LoadedModel) -> Plan:
    """Return what the engine is to do for a job; runs in a worker thread.

    Raises:
        InvalidRequest: the scheduler cannot make this number of steps.
        InternalError: the record lacks a value that the gateway fills in.
    """
    request, prompt = job.request, job.prompt
    if (
        prompt is None
        or request.size is None
        or request.seed is None
        or request.num_inference_steps is None
        or request.guidance_scale is None
        or request.scheduler is None
    ):
        raise InternalError("The job reached the renderer incomplete.")
    guided = is_guided(request.guidance_scale, model.guidance_channels)
    prompts = tokenize(
        model.vocabulary,
        request.prompt_encoding,
        prompt.text,
        request.negative_prompt if guided else None,
        weighted=prompt.source != "mllm",
        second=model.second_vocabulary,
        zero_empty_negative=model.files.zero_empty_negative,
    )
    width, height = parse_size(request.size)
    first = Picture(
        model=model.name,
        prompts=prompts,
        width=width,
        height=height,
        seed=request.seed,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        scheduler=request.scheduler,
        lane=request.lane,
        deterministic=request.deterministic,
    )
    requests = [
        prepare(
            replace(first, seed=first.seed + index),
            scheduler_config=model.files.scheduler,
            guidance_channels=model.guidance_channels,
            device=model.device,
        )
        for index in range(request.n)
    ]
    parameters = {
        "prompt": prompt.text,
        "prompt_source": prompt.source,
        "negative_prompt": request.negative_prompt,
        "prompt_encoding": request.prompt_encoding.value,
        "prompt_tokens": prompts.prompt.tokens,
        "truncated_tokens": prompts.prompt.truncated,
        "negative_truncated_tokens": 0 if prompts.negative is None else prompts.negative.truncated,
        "num_inference_steps": first.num_inference_steps,
        "guidance_scale": first.guidance_scale,
        "scheduler": first.scheduler.value,
        "size": request.size,
        "model": model.name,
        "model_sha256": model.files.sha256,
        "dtype": str(model.dtype).removeprefix("torch."),
        "software": SOFTWARE,
    }
    return Plan(prompts, requests, parameters)
