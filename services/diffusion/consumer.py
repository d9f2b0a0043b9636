"""Render jobs: from a claim to pictures in the artifact store.

A job of n pictures is n requests to the engine, with seeds seed, seed + 1, … Events go out as fast as the
queue takes them; a slow queue makes them fewer, never the engine slower. A picture's bytes hold nothing that
differs between two runs, so a job that runs again stores the same pictures under the same ids. Each picture's state is
kept in the artifact store every few steps; whoever gets the job next, here or on another host, goes on from there.
"""

import asyncio
import functools
import json
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

from services.diffusion.conditioning.prompts import PromptPair, tokenize
from services.diffusion.engine import Engine, EngineClosed, EngineFull
from services.diffusion.handles import Finished, Handle
from services.diffusion.loading import LoadedModel
from services.diffusion.requests import Picture, RenderRequest, is_guided, prepare
from services.diffusion.snapshots import Snapshot, Unusable, fingerprint, pack, resume, unpack
from services.diffusion.stages import Pixels, encode_file
from shared import metrics
from shared.artifacts import ArtifactStore
from shared.contracts import EventType, FieldProblem, ImageResult, Job
from shared.contracts.generation import parse_size
from shared.errors import InternalError, InvalidRequest, JobError, RequestError, StoreUnavailable
from shared.jobs import Claim, LeaseLost

TEXT_KEY = "llmga"  # of the PNG text chunk
SOFTWARE = f"llmga-serve {version('llmga-serve')}"
_log = logging.getLogger("llmga.diffusion")

_FULL_PAUSE_S = 0.02  # canceled pictures leave within a step
_STRANGER_PAUSE_S = 1.0  # so that a worker that serves the model can be the next to claim


@dataclass(frozen=True, slots=True)
class Plan:
    """A job, ready for the engine."""

    prompts: PromptPair
    requests: list[RenderRequest]
    parameters: dict[str, Any]

    def progress(self, index: int, step: int) -> dict[str, Any]:
        """Return the data of a progress event."""
        return {"index": index, "step": step, "total_steps": self.requests[index].picture.num_inference_steps}


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
        states = [f"{job.id}.{index}" for index in range(len(plan.requests))]
        marks = await asyncio.to_thread(self._go_on, plan.requests, states, model)
        handles: list[Handle] = []
        tasks: list[asyncio.Task[ImageResult]] = []
        is_over = False
        try:
            for index, request in enumerate(plan.requests):
                handle = await self._submit(request)
                handles.append(handle)
                claim.on_lost(handle.cancel)
                keep = functools.partial(self._save, states[index], marks[index])
                tasks.append(asyncio.create_task(self._follow(claim, plan, index, handle, keep)))
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()  # raises what went wrong first
            images = [task.result() for task in tasks]
            prompt = plan.prompts.prompt
            await claim.finish(images, prompt_tokens=prompt.tokens, truncated_tokens=prompt.truncated)
            is_over = True
        except (JobError, RequestError):
            is_over = True
            raise
        finally:
            for handle in handles:
                handle.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if is_over or claim.canceled:  # of any other end there may be another attempt, here or elsewhere
                await asyncio.to_thread(self._drop, states)

    async def _submit(self, request: RenderRequest) -> Handle:
        while True:
            try:
                return self._engine.submit(request)
            except EngineFull:
                await asyncio.sleep(_FULL_PAUSE_S)
            except EngineClosed as error:
                raise InternalError("The renderer is stopping.") from error

    async def _follow(
        self, claim: Claim, plan: Plan, index: int, handle: Handle, keep: Callable[[Snapshot], None]
    ) -> ImageResult:
        loop = asyncio.get_running_loop()
        keeping: asyncio.Future[None] | None = None
        resumed = plan.requests[index].steps_done
        if resumed:
            await claim.emit(EventType.RENDER_PROGRESS, plan.progress(index, resumed) | {"resumed": True})
        try:
            async for event in handle.events():
                if isinstance(event, Finished):
                    image = await self._keep(claim, plan, index, event.pixels)
                    await claim.emit(EventType.IMAGE_COMPLETED, {"image": image.model_dump(mode="json")})
                    return image
                if isinstance(event, Snapshot):
                    if keeping is None or keeping.done():  # a slow store gets fewer
                        keeping = loop.run_in_executor(self._files, keep, event)
                    continue
                await claim.emit(EventType.RENDER_PROGRESS, plan.progress(index, event.step))
        finally:
            if keeping is not None:
                await asyncio.wait([keeping])
        if claim.lost.is_set():
            raise LeaseLost(f"job {claim.job.id} was dropped from the engine")
        raise InternalError("The renderer stopped before the picture was done.")

    def _save(self, name: str, fingerprint: str, snapshot: Snapshot) -> None:
        try:
            self._store.save_state(name, pack(snapshot, fingerprint))
        except StoreUnavailable as error:
            _log.warning("a snapshot could not be kept: %s", error)  # a killed picture makes more steps again

    def _go_on(self, requests: list[RenderRequest], states: list[str], model: LoadedModel) -> list[str]:
        """Bring each picture to where an earlier attempt, of whatever worker, has left it; return the fingerprints."""
        marks = [fingerprint(request.picture, model) for request in requests]
        for request, name, mark in zip(requests, states, marks, strict=True):
            data = self._store.load_state(name)
            if data is None:
                continue
            try:
                resume(request, unpack(data, mark))
            except Unusable as reason:
                _log.info("a picture starts anew: its snapshot is of no use", extra={"reason": str(reason)})
            else:
                _log.info("a picture goes on", extra={"calls_done": request.calls_done})
        return marks

    def _drop(self, states: list[str]) -> None:
        for name in states:
            self._store.drop_state(name)

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
        InvalidRequest: the scheduler cannot make this number of steps, or the text encoder has fewer layers.
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
    if request.clip_skip > model.encoder.max_clip_skip:
        message = f"must be at most {model.encoder.max_clip_skip} for this model"
        raise InvalidRequest(
            "The text encoder does not have so many layers.",
            errors=[FieldProblem(field="clip_skip", code="out_of_bounds", message=message)],
        )
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
        guidance_rescale=request.guidance_rescale,
        guidance_interval=request.guidance_interval,
        clip_skip=request.clip_skip,
        timesteps=model.files.serving.timesteps_for(request.scheduler, request.num_inference_steps),
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
        "guidance_rescale": first.guidance_rescale,
        "guidance_interval": list(first.guidance_interval),
        "clip_skip": first.clip_skip,
        "scheduler": first.scheduler.value,
        "size": request.size,
        "model": model.name,
        "model_sha256": model.files.sha256,
        "dtype": str(model.dtype).removeprefix("torch."),
        "software": SOFTWARE,
    }
    return Plan(prompts, requests, parameters)
