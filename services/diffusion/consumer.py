"""Render jobs: from a claim to pictures in the artifact store.

A job of n pictures is n requests to the engine, with seeds seed, seed + 1, … Events go out as fast as the
queue takes them; a slow queue makes them fewer, never the engine slower. Unless it is signed, a picture's bytes
hold nothing that differs between two runs, so a job that runs again stores the same pictures under the same ids.
Each picture's state is kept in the artifact store every few steps; whoever gets the job next, here or on another
host, goes on from there.
"""

import asyncio
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from services.diffusion.credentials import SOFTWARE, Credentials
from services.diffusion.editing.request import EditRequest
from services.diffusion.engine import Engine, EngineClosed, EngineFull
from services.diffusion.finishing import Finish, Finisher, check_offered
from services.diffusion.handles import Finished, Handle, Preview
from services.diffusion.inputs import load_inputs
from services.diffusion.keeping import Keeping
from services.diffusion.library import ModelLibrary
from services.diffusion.loading import LoadedModel
from services.diffusion.phases import Request
from services.diffusion.planning import Plan, make_plan
from services.diffusion.restoration.restorer import Restorer
from services.diffusion.showing import Showing, state_name
from services.diffusion.snapshots import Unusable, fingerprint, resume, unpack
from services.diffusion.sources import Pixels
from services.diffusion.stages import encode_file
from shared import metrics
from shared.artifacts import ArtifactStore
from shared.contracts import ArtifactName, EventType, ImageArtifact, ImageResult, OutputFormat, Task
from shared.errors import InternalError, JobError, ModelNotServed, RequestError
from shared.jobs import Claim, LeaseLost
from shared.media import SourceType, xmp_packet

TEXT_KEY = "llmga"  # of the PNG text chunk
_log = logging.getLogger("llmga.diffusion")

_NOTHING_KEPT = {Task.TEXT_TO_IMAGE, Task.SIMILAR}  # tasks none of whose pixels are those of a given picture
_FULL_PAUSE_S = 0.02  # canceled pictures leave within a step


class Renderer:
    """Handles the claims of a worker's consumer."""

    def __init__(
        self,
        engine: Engine,
        store: ArtifactStore,
        library: ModelLibrary | None = None,
        restorer: Restorer | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        """`library`: where the engine's models are from; None if they are loaded for good. `credentials` sign files."""
        self._engine = engine
        self._store = store
        self._library = library or ModelLibrary.of(*engine.models.values())
        # Compression and disk; bounded so that many pictures at once do not crowd out the device thread.
        self._files = ThreadPoolExecutor(max(2, (os.cpu_count() or 2) // 2), thread_name_prefix="llmga-files")
        self._restorer = restorer
        self._credentials = credentials
        self._finisher = Finisher(engine, self._files, restorer)

    def close(self) -> None:
        """End the worker threads."""
        self._files.shutdown(cancel_futures=True)

    async def handle(self, claim: Claim) -> None:
        """Render one job and end its claim.

        Raises:
            RequestError: the job cannot be rendered as it was asked for.
            JobError: the model failed, or could not be loaded.
            LeaseLost: the job was canceled or taken away.
        """
        name = claim.job.request.model or ""
        if name not in self._library.shelves:  # claims name the models that are served, so the record is at fault
            raise ModelNotServed("This worker does not serve the model.", served_models=list(self._library.shelves))
        async with self._library.hold(name) as model:
            await self._render(claim, model)

    async def _render(self, claim: Claim, model: LoadedModel) -> None:
        job = claim.job
        plan = await asyncio.to_thread(self._plan, claim, model)
        states = [f"{job.id}.{index}" for index in range(len(plan.requests))]
        marks = await asyncio.to_thread(self._go_on, plan.requests, states, model)
        handles: list[Handle] = []
        tasks: list[asyncio.Task[ImageResult]] = []
        is_over = False
        try:
            for index, request in enumerate(plan.requests):
                keeping = Keeping(self._store, states[index], marks[index], self._files)
                handle = await self._submit(request, keeping)
                handles.append(handle)
                claim.on_lost(handle.cancel)
                tasks.append(asyncio.create_task(self._follow(claim, plan, index, handle, keeping)))
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
                shown = [state_name(job.id, index) for index in range(len(states))]
                await asyncio.to_thread(self._drop, states + shown)

    async def _submit(self, request: Request, keeping: Keeping) -> Handle:
        while True:
            try:
                return self._engine.submit(request, keeping)
            except EngineFull:
                await asyncio.sleep(_FULL_PAUSE_S)
            except EngineClosed as error:
                raise InternalError("The renderer is stopping.") from error

    async def _follow(self, claim: Claim, plan: Plan, index: int, handle: Handle, keeping: Keeping) -> ImageResult:
        showing = Showing(claim, index, self._store, self._files)
        resumed = plan.requests[index].steps_done
        if resumed:
            await claim.emit(EventType.RENDER_PROGRESS, plan.progress(index, resumed) | {"resumed": True})
        try:
            async for event in handle.events():
                if isinstance(event, Finished):
                    await showing.close()
                    request = plan.requests[index]
                    mask = request.mask_pixels() if isinstance(request, EditRequest) else None
                    finish = await self._finisher.finish(
                        claim, plan.inputs, index, request.picture.seed, event.pixels, mask=mask
                    )
                    image = await self._keep(claim, plan, index, finish)
                    await claim.emit(EventType.IMAGE_COMPLETED, {"image": image.model_dump(mode="json")})
                    return image
                if isinstance(event, Preview):
                    showing.take(event)
                    continue
                await claim.emit(EventType.RENDER_PROGRESS, plan.progress(index, event.step))
        finally:
            await showing.close()
            await keeping.close()
        if claim.lost.is_set():
            raise LeaseLost(f"job {claim.job.id} was dropped from the engine")
        raise InternalError("The renderer stopped before the picture was done.")

    def _plan(self, claim: Claim, model: LoadedModel) -> Plan:
        check_offered(claim.job.request, self._restorer)
        return make_plan(claim.job, model, load_inputs(claim.job.request, self._store, tenant=claim.tenant))

    def _go_on(self, requests: Sequence[Request], states: list[str], model: LoadedModel) -> list[str]:
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

    async def _keep(self, claim: Claim, plan: Plan, index: int, finish: Finish) -> ImageResult:
        request = claim.job.request
        picture = plan.requests[index].picture
        parameters = plan.parameters | {"seed": picture.seed} | finish.parameters

        def work() -> ImageResult:
            height, width, _ = finish.pixels.shape
            text = json.dumps(parameters, ensure_ascii=False)
            source = SourceType.GENERATED if request.task in _NOTHING_KEPT else SourceType.COMPOSITE
            data = encode_file(
                finish.pixels,
                request.output_format,
                {TEXT_KEY: text},
                quality_percent=request.output_compression,
                xmp=xmp_packet(source, SOFTWARE),
            )
            if self._credentials is not None:
                data = self._credentials.sign(data, request.output_format.media_type, source, parameters)
            stored = self._store.put(data, request.output_format.media_type, tenant=claim.tenant, metadata=parameters)
            artifacts = [self._keep_artifact(name, part, claim.tenant) for name, part in finish.artifacts.items()]
            return ImageResult(
                index=index,
                id=stored.id,
                url=f"/v1/images/{stored.id}",
                media_type=stored.media_type,
                width=width,
                height=height,
                bytes=stored.bytes,
                sha256=stored.sha256,
                seed=picture.seed,
                artifacts=artifacts,
            )

        image = await asyncio.get_running_loop().run_in_executor(self._files, work)
        metrics.IMAGES.labels(picture.model, request.output_format).inc()
        return image

    def _keep_artifact(self, name: ArtifactName, pixels: Pixels, tenant: str) -> ImageArtifact:
        height, width = pixels.shape[:2]
        color = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
        data = encode_file(color, OutputFormat.PNG, {})
        stored = self._store.put(data, OutputFormat.PNG.media_type, tenant=tenant, metadata={"artifact": name.value})
        return ImageArtifact(
            name=name,
            id=stored.id,
            url=f"/v1/images/{stored.id}",
            media_type=stored.media_type,
            width=width,
            height=height,
        )
