"""Four ways to serve the same checkpoint: the engine, and what is commonly done with a stock pipeline.

The stock arms hold diffusers' own pipeline over the same weights in memory; each call gets a scheduler of its own. They
batch what a pipeline can batch: requests of equal size, steps and guidance.
"""

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from benchmarks.rendering_load import Wanted
from benchmarks.rendering_models import MAX_ROWS
from services.diffusion.checkpoints import SECOND_TOKENIZER
from services.diffusion.conditioning.prompts import tokenize
from services.diffusion.engine import Engine, EngineFull
from services.diffusion.handles import Finished, Handle, Progress
from services.diffusion.libraries import CLIPTokenizer, StableDiffusionPipeline, StableDiffusionXLPipeline, quiet
from services.diffusion.loading import LoadedModel
from services.diffusion.pictures import Picture
from services.diffusion.requests import RenderRequest, is_guided, prepare
from services.diffusion.solvers import build_scheduler
from shared.contracts import Scheduler
from shared.contracts.generation import PromptEncoding
from shared.settings import DiffusionSettings

SCHEDULER = Scheduler.DPMPP_2M
WINDOW_S = 0.05
MAX_BATCH = MAX_ROWS // 2  # pictures of a stock batch: as many rows as the engine may take in one call
# In the engine at once, the service's default; more wait at its door, as jobs wait in the queue.
MAX_PICTURES: int = DiffusionSettings.model_fields["max_jobs"].default
_DOOR_S = 0.005


@dataclass(slots=True)
class Call:
    """One UNet call of the device thread; `side` counts the side work that the engine had done before it."""

    started_s: float
    ended_s: float
    rows: int
    side: int


class TimedUNet:
    """A UNet that notes when it was called, and with how many rows."""

    def __init__(self, unet: Any) -> None:
        self._unet = unet
        self.engine: Engine | None = None
        self.calls: list[Call] = []

    def __call__(self, sample: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        """Ask the UNet."""
        started = time.perf_counter()
        answer = self._unet(sample, *arguments, **options)
        side = 0 if self.engine is None else self.engine.counters.side
        self.calls.append(Call(started, time.perf_counter(), len(sample), side))
        return answer


class EngineArm:
    """The step engine, in this process."""

    def __init__(self, model: LoadedModel, *, max_pictures: int = MAX_PICTURES) -> None:
        self.name = "engine"
        self.unet = TimedUNet(model.unet)
        self.model = replace(model, unet=self.unet)
        self.deaths: list[BaseException] = []
        self.engine = Engine({model.name: self.model}, max_pictures=max_pictures, on_death=self.deaths.append)
        self.unet.engine = self.engine
        self.first_progress_s: dict[Wanted, float] = {}
        self._shares: dict[Wanted, float] = {}
        self._door = asyncio.Semaphore(max_pictures)
        self.engine.start()

    async def make(self, wanted: Wanted) -> None:
        """Make a picture as the service's consumer does (`rendering_load.Arm`)."""
        async with self._door:
            handle = await self._submit(await asyncio.to_thread(self.prepared, wanted))
            try:
                async for event in handle.events():
                    if isinstance(event, Progress):
                        self.first_progress_s.setdefault(wanted, time.perf_counter())
                        self._shares[wanted] = event.step / event.total_steps
                    if isinstance(event, Finished):
                        return
            finally:
                handle.cancel()
        raise RuntimeError("the engine dropped a picture")

    def share_of(self, wanted: Wanted) -> float:
        """Return what was told of a picture's progress (`rendering_load.Arm`)."""
        return self._shares.get(wanted, 0.0)

    async def _submit(self, request: RenderRequest) -> Handle:
        while True:
            try:
                return self.engine.submit(request)
            except EngineFull:  # canceled pictures leave within a step
                await asyncio.sleep(_DOOR_S)

    def prepared(self, wanted: Wanted) -> RenderRequest:
        """Return the engine's form of a request."""
        model = self.model
        guided = is_guided(wanted.guidance_scale, model.guidance_channels)
        prompts = tokenize(
            model.vocabulary,
            PromptEncoding.STOCK,
            wanted.prompt,
            "" if guided else None,
            second=model.second_vocabulary,
            zero_empty_negative=model.files.zero_empty_negative,
        )
        picture = Picture(
            model=model.name,
            prompts=prompts,
            width=wanted.size[0],
            height=wanted.size[1],
            seed=wanted.seed,
            num_inference_steps=wanted.num_inference_steps,
            guidance_scale=wanted.guidance_scale,
            scheduler=SCHEDULER,
        )
        return prepare(
            picture,
            scheduler_config=model.files.scheduler,
            guidance_channels=model.guidance_channels,
            device=model.device,
        )

    async def close(self) -> None:
        """End the engine (`rendering_load.Arm`)."""
        await asyncio.to_thread(self.engine.close)
        if self.deaths:
            raise RuntimeError("the engine died") from self.deaths[0]


@dataclass(slots=True, eq=False)
class _Waiting:
    wanted: Wanted
    asked_s: float
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def kind(self) -> tuple[object, ...]:
        return self.wanted.size, self.wanted.num_inference_steps, self.wanted.guidance_scale


class StockArm:
    """Stock pipelines that take whole requests, first come, first served."""

    def __init__(
        self, name: str, model: LoadedModel, *, threads: int = 1, window_s: float = 0.0, max_batch: int = 1
    ) -> None:
        self.name = name
        self._config = model.files.scheduler
        self._window_s = window_s
        self._max_batch = max_batch
        self._waiting: list[_Waiting] = []
        self._changed = threading.Condition()
        self._is_closing = False
        self._loop = asyncio.get_running_loop()
        self._threads = [threading.Thread(target=self._serve, args=(pipeline(model),)) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    async def make(self, wanted: Wanted) -> None:
        """Wait for a pipeline's picture (`rendering_load.Arm`)."""
        waiting = _Waiting(wanted, time.perf_counter())
        with self._changed:
            self._waiting.append(waiting)
            self._changed.notify()
        try:
            await waiting.done
        finally:
            with self._changed:
                if waiting in self._waiting:
                    self._waiting.remove(waiting)

    def share_of(self, wanted: Wanted) -> float:
        """Return 0: a pipeline's call is made or not (`rendering_load.Arm`)."""
        return 0.0

    async def close(self) -> None:
        """End the threads (`rendering_load.Arm`)."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    def _serve(self, pipe: Any) -> None:
        while batch := self._taken():
            try:
                pipe.scheduler = build_scheduler(SCHEDULER, self._config)
                call(pipe, [one.wanted for one in batch])
            except Exception as error:
                self._tell(batch, error)
            else:
                self._tell(batch, None)

    def _taken(self) -> list[_Waiting]:
        """Return the next requests: those like the oldest, when it has waited for the window or they are enough."""
        with self._changed:
            while not self._is_closing:
                alike = [one for one in self._waiting if one.kind == self._waiting[0].kind][: self._max_batch]
                left_s = alike[0].asked_s + self._window_s - time.perf_counter() if alike else None
                if left_s is not None and (left_s <= 0 or len(alike) == self._max_batch):
                    self._waiting = [one for one in self._waiting if one not in alike]
                    return alike
                self._changed.wait(left_s)
        return []

    def _tell(self, batch: Sequence[_Waiting], error: Exception | None) -> None:
        def told(one: _Waiting) -> None:
            if not one.done.done():
                if error is None:
                    one.done.set_result(None)
                else:
                    one.done.set_exception(error)

        for one in batch:
            self._loop.call_soon_threadsafe(told, one)


def pipeline(model: LoadedModel) -> Any:
    """Return a stock pipeline over a loaded model's own weights."""
    quiet()

    def tokenizer(part: str) -> Any:
        return CLIPTokenizer.from_pretrained(model.files.folder / part, local_files_only=True)

    parts: dict[str, Any] = {
        "vae": model.vae,
        "text_encoder": model.text_encoders[0],
        "tokenizer": tokenizer("tokenizer"),
        "unet": model.unet,
        "scheduler": build_scheduler(SCHEDULER, model.files.scheduler),
    }
    if model.files.kind == "sdxl":
        pipe = StableDiffusionXLPipeline(
            **parts,
            text_encoder_2=model.text_encoders[1],
            tokenizer_2=tokenizer(SECOND_TOKENIZER),
            force_zeros_for_empty_prompt=model.files.zero_empty_negative,
            add_watermarker=False,
        )
    else:
        pipe = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(pipe: Any, batch: Sequence[Wanted]) -> Any:
    """Make alike requests with one call of a stock pipeline; return its pictures."""
    first = batch[0]
    return pipe(
        prompt=[one.prompt for one in batch],
        width=first.size[0],
        height=first.size[1],
        num_inference_steps=first.num_inference_steps,
        guidance_scale=first.guidance_scale,
        generator=[torch.Generator().manual_seed(one.seed) for one in batch],
        output_type="np",
    ).images


def one_at_a_time(model: LoadedModel) -> StockArm:
    """Return arm (a)."""
    return StockArm("one at a time", model)


def in_windows(model: LoadedModel) -> StockArm:
    """Return arm (b)."""
    return StockArm("batches of a 50 ms window", model, window_s=WINDOW_S, max_batch=MAX_BATCH)


def in_threads(model: LoadedModel) -> StockArm:
    """Return arm (c)."""
    return StockArm("two threads", model, threads=2)
