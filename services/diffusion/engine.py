"""The step-level batching engine: one thread owns the device.

Each turn of its loop: take what was submitted, drop what was canceled, do a bounded share of side work (text
encoding, decoding), choose requests of one batch key, one UNet call for all their rows, one solver step per
request, tell the followers, retire what is done. A new request joins after at most one call; a canceled one
is gone before the next. One request's failure is its own: an exception or NaN never reaches another request.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from services.diffusion import snapshots
from services.diffusion.batching import BatchKey, choose
from services.diffusion.faults import DeviceLost, is_device_lost, is_out_of_memory
from services.diffusion.handles import Finished, Handle, Progress
from services.diffusion.loading import LoadedModel
from services.diffusion.requests import LATENT_CHANNELS, LATENT_PX, RenderRequest
from services.diffusion.stages import NotFinite, decode_latents, encode_prompts, release_memory
from services.diffusion.unet import predict
from shared import metrics
from shared.contracts import Lane
from shared.errors import InternalError, LLMGAError, OutOfMemory, RenderFailed

SIDE_SHARE = 0.25  # of the device's time for side work while pictures wait for steps; one piece per turn at least

_log = logging.getLogger("llmga.diffusion.engine")


class EngineFull(Exception):
    """The engine holds as many pictures as it may."""


class EngineClosed(Exception):
    """The engine takes no more pictures."""


@dataclass(slots=True, eq=False)
class _Ticket:
    """A request in the engine (`batching.Waiting`); `order` counts admissions."""

    request: RenderRequest
    handle: Handle
    key: BatchKey
    order: int
    waiting_since: int

    @property
    def rows(self) -> int:
        phase = self.request.phase
        return 0 if phase is None else phase.row_count

    @property
    def is_interactive(self) -> bool:
        return self.request.picture.lane is Lane.INTERACTIVE

    @property
    def wants_step(self) -> bool:
        return self.request.phase is not None

    @property
    def name(self) -> str:
        return self.request.picture.model


@dataclass(slots=True)
class Counters:
    """What the device thread has done since its start: UNet calls, their rows, solver steps, side work."""

    calls: int = 0
    rows: int = 0
    steps: int = 0
    side: int = 0


class Engine:
    """Makes pictures with the given models.

    `on_death` is called when the device thread cannot go on; a service ends its process there, and the leases
    bring its jobs back.
    """

    def __init__(
        self,
        models: Mapping[str, LoadedModel],
        *,
        max_pictures: int,
        on_death: Callable[[BaseException], None],
    ) -> None:
        self.models = dict(models)
        self.counters = Counters()
        self._max_pictures = max_pictures
        self._on_death = on_death
        self._wakeup = threading.Condition()
        self._inbox: list[_Ticket] = []
        self._tickets: list[_Ticket] = []
        self._held = 0
        self._admitted = 0
        self._is_closing = False
        self._caps: dict[BatchKey, int] = {}
        self._call_s = 0.0
        self._thread = threading.Thread(target=self._run, name="llmga-device", daemon=True)

    def start(self) -> None:
        """Start the device thread."""
        self._thread.start()

    def close(self) -> None:
        """Drop what is left and end the device thread; idempotent."""
        with self._wakeup:
            self._is_closing = True
            self._wakeup.notify()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether the device thread runs."""
        return self._thread.is_alive()

    @property
    def held(self) -> int:
        """Pictures in the engine."""
        return self._held

    def submit(self, request: RenderRequest) -> Handle:
        """Give a prepared request to the engine; call it in the event loop that follows the handle.

        Raises:
            EngineFull: it holds `max_pictures` already.
            EngineClosed: it is closing or dead.
        """
        handle = Handle(self._poke)
        key = self._key(request)
        with self._wakeup:
            if self._is_closing:
                raise EngineClosed
            if self._held >= self._max_pictures:
                raise EngineFull
            self._held += 1
            self._admitted += 1
            self._inbox.append(_Ticket(request, handle, key, self._admitted, self.counters.calls))
            self._wakeup.notify()
        return handle

    def _poke(self) -> None:
        with self._wakeup:
            self._wakeup.notify()

    def _key(self, request: RenderRequest) -> BatchKey:
        picture = request.picture
        model = self.models[picture.model]
        return BatchKey(
            model=picture.model,
            unet_channels=LATENT_CHANNELS,
            height=picture.height // LATENT_PX,
            width=picture.width // LATENT_PX,
            tokens=picture.prompts.length,
            dtype=str(model.dtype),
            fixed_bucket=picture.deterministic and not model.buckets.is_stable,
        )

    # From here on: the device thread.

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while self._admit():
                    self._drop_canceled()
                    self._side_work()
                    self._step()
        except BaseException as error:
            with self._wakeup:
                self._is_closing = True
            _log.critical("the device thread died", exc_info=error)
            self._on_death(error)
            self._drop_all(InternalError("The renderer stopped."))
        else:
            self._drop_all(None)

    def _admit(self) -> bool:
        with self._wakeup:
            while not (self._inbox or self._tickets or self._is_closing):
                self._wakeup.wait()
            self._tickets += self._inbox
            self._inbox.clear()
            return not self._is_closing

    def _drop_canceled(self) -> None:
        for ticket in [ticket for ticket in self._tickets if ticket.handle.is_canceled]:
            self._retire(ticket, None)

    def _drop_all(self, outcome: LLMGAError | None) -> None:
        with self._wakeup:
            self._tickets += self._inbox
            self._inbox.clear()
        for ticket in list(self._tickets):
            self._retire(ticket, outcome)

    def _retire(self, ticket: _Ticket, outcome: Finished | LLMGAError | None) -> None:
        self._tickets.remove(ticket)
        with self._wakeup:
            self._held -= 1
        ticket.handle.end(outcome)

    def _fail(self, ticket: _Ticket, error: Exception) -> None:
        if is_device_lost(error):
            raise DeviceLost from error
        outcome: LLMGAError
        if isinstance(error, LLMGAError):
            outcome = error
        elif is_out_of_memory(error):
            outcome = OutOfMemory("The picture does not fit the memory of the renderer.")
            release_memory(self.models[ticket.name].device)
        elif isinstance(error, NotFinite):
            outcome = RenderFailed("The model's result is not a number.", next_step=_NOT_FINITE_STEP)
        else:
            outcome = RenderFailed("The model failed on this picture.")
        _log.warning("a picture failed: %s", outcome.code, exc_info=error, extra={"model": ticket.name})
        self._retire(ticket, outcome)

    def _side_work(self) -> None:
        due = [ticket for ticket in self._tickets if not ticket.wants_step]
        due.sort(key=lambda ticket: (not ticket.is_interactive, ticket.order))
        until = time.perf_counter() + SIDE_SHARE * self._call_s
        for ticket in due:
            self.counters.side += 1
            try:
                if ticket.request.wants_prompts:
                    encode_prompts(ticket.request, self.models[ticket.name])
                else:
                    pixels = decode_latents(ticket.request.latents, self.models[ticket.name])
                    self._retire(ticket, Finished(pixels))
            except Exception as error:
                self._fail(ticket, error)
            if time.perf_counter() >= until:
                return

    def _step(self) -> None:
        waiting = [ticket for ticket in self._tickets if ticket.wants_step]
        if not waiting:
            return
        started = time.perf_counter()
        self.counters.calls += 1
        self._advance(choose(waiting, self.counters.calls, self._max_rows))
        self._call_s = time.perf_counter() - started

    def _advance(self, batch: list[_Ticket]) -> None:
        """Take one step with each request of a batch, apart if they fail together."""
        try:
            answers = self._predict(batch)
        except Exception as error:
            if is_out_of_memory(error) and self._lower_cap(batch):
                return  # they still wait, and the next call is smaller
            if len(batch) == 1:
                self._fail(batch[0], error)
                return
            answers = None
        if answers is None:  # behind the handler, which keeps the failed call's tensors alive
            for ticket in batch:
                self._advance([ticket])
            return
        for ticket, (noise_pred, is_finite) in zip(batch, answers, strict=True):
            ticket.waiting_since = self.counters.calls
            try:
                if not is_finite:
                    raise NotFinite("the noise prediction")
                ticket.request.accept(noise_pred)
            except Exception as error:
                self._fail(ticket, error)
                continue
            self.counters.steps += 1
            metrics.DIFFUSION_STEPS.labels(ticket.name).inc()
            total_steps = ticket.request.picture.num_inference_steps
            snapshot = snapshots.take(ticket.request) if snapshots.is_due(ticket.request) else None
            ticket.handle.post(Progress(ticket.request.steps_done, total_steps), snapshot)

    def _predict(self, batch: list[_Ticket]) -> list[tuple[torch.Tensor, bool]]:
        rows = []
        for ticket in batch:
            phase = ticket.request.phase
            assert phase is not None, "only requests with a phase are chosen"
            rows.append(phase.rows(ticket.request.latents))
        count = sum(ticket.rows for ticket in batch)
        bucket = next(size for size in self._sizes(batch[0].key) if size >= count)
        self.counters.rows += count
        return predict(self.models[batch[0].name], rows, bucket)

    def _sizes(self, key: BatchKey) -> list[int]:
        cap = self._caps.get(key)
        return [size for size in self.models[key.model].buckets.of(key) if cap is None or size <= cap]

    def _max_rows(self, key: BatchKey) -> int:
        return max(self._sizes(key))

    def _lower_cap(self, batch: list[_Ticket]) -> bool:
        """Allow this key only smaller calls from now on; return whether there are any."""
        key = batch[0].key
        count = sum(ticket.rows for ticket in batch)
        failed = next(size for size in self._sizes(key) if size >= count)
        smaller = [size for size in self._sizes(key) if size < failed]
        release_memory(self.models[key.model].device)
        if not smaller:
            return False
        self._caps[key] = smaller[-1]
        _log.warning(
            "out of memory: smaller UNet calls from now on",
            extra={"model": key.model, "latents": f"{key.width}x{key.height}", "max_rows": smaller[-1]},
        )
        return True


_NOT_FINITE_STEP = "Use another seed, a lower `guidance_scale` or smaller prompt weights."
