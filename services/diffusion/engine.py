"""The step-level batching engine: one thread owns the device.

Each turn of its loop: take what was submitted, drop what was canceled, do a bounded share of side work (encoding
text and pictures, decoding latents, errands), choose requests of one batch key, one UNet call for all their rows, one
solver step per request, tell the followers, retire what is done. A new request joins after at most one call; a canceled
one is gone before the next. One request's failure is its own: an exception or NaN never reaches another request. One
whose snapshots are kept waits while too much of it is not kept yet.
"""

import functools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch

from services.diffusion.batching import BatchKey, choose
from services.diffusion.encoding import encode_source
from services.diffusion.errands import Errand, Result
from services.diffusion.failures import outcome_of
from services.diffusion.faults import DeviceLost, is_device_lost, is_out_of_memory
from services.diffusion.handles import Bell, Finished, Handle, Preview, Progress
from services.diffusion.loading import LoadedModel
from services.diffusion.phases import Request
from services.diffusion.pictures import LATENT_PX
from services.diffusion.previews import Allowance
from services.diffusion.snapshots import AT_RISK_CALLS, Keeper, is_due, take
from services.diffusion.stages import NotFinite, decode_latents, encode_prompts, release_memory
from services.diffusion.unet import predict
from shared import metrics
from shared.contracts import Lane
from shared.errors import InternalError, LLMGAError

# Of the device's time for side work while pictures wait for steps. At least one newcomer and one other piece per turn.
SIDE_SHARE = 0.25

_log = logging.getLogger("llmga.diffusion.engine")


class EngineFull(Exception):
    """The engine holds as many pictures as it may."""


class EngineClosed(Exception):
    """The engine takes no more pictures."""


@dataclass(slots=True, eq=False)
class _Ticket:
    """A request in the engine (`batching.Waiting`); `order` counts admissions."""

    request: Request
    model: LoadedModel
    handle: Handle
    key: BatchKey
    order: int
    waiting_since: int
    keeper: Keeper | None = None
    calls_kept: int = 0
    has_begun: bool = False
    unseen: tuple[Progress, torch.Tensor] | None = None  # clean latents that a preview is due of

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
    def may_step(self) -> bool:
        """Whether it may join the next call; not if too much would be lost with this process."""
        is_safe = self.keeper is None or self.request.calls_done - self.calls_kept < AT_RISK_CALLS
        return self.wants_step and is_safe

    @property
    def has_work(self) -> bool:
        return self.may_step or not self.wants_step or self.handle.is_canceled

    @property
    def is_new(self) -> bool:
        """Whether its texts or its picture have yet to be encoded."""
        return self.request.wants_source or self.request.wants_prompts

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
    """Makes pictures with the models of a mapping that may change: a picture keeps the one that it was submitted for.

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
        self.models = models
        self.counters = Counters()
        self._max_pictures = max_pictures
        self._on_death = on_death
        self._wakeup = threading.Condition()
        self._inbox: list[_Ticket] = []
        self._tickets: list[_Ticket] = []
        self._errands: list[Errand[Any]] = []
        self._held = 0
        self._admitted = 0
        self._is_closing = False
        self._caps: dict[BatchKey, int] = {}
        self._call_s = 0.0
        self._preview_time = Allowance()
        self._bell = Bell()
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

    def submit(self, request: Request, keeper: Keeper | None = None) -> Handle:
        """Give a prepared request to the engine; call it in the event loop that follows the handle.

        With a `keeper` the picture's snapshots are kept, and it does not go far beyond the last.

        Raises:
            EngineFull: it holds `max_pictures` already.
            EngineClosed: it is closing or dead.
        """
        handle = Handle(self._poke, self._bell)
        model = self.models[request.picture.model]
        key = self._key(request, model)
        with self._wakeup:
            if self._is_closing:
                raise EngineClosed
            if self._held >= self._max_pictures:
                raise EngineFull
            self._held += 1
            self._admitted += 1
            calls = self.counters.calls
            ticket = _Ticket(request, model, handle, key, self._admitted, calls, keeper, request.calls_done)
            self._inbox.append(ticket)
            self._wakeup.notify()
        return handle

    def run_aside(self, work: Callable[[], Result], device: torch.device, *, lane: Lane) -> Future[Result]:
        """Have something done on the device thread between steps, as side work; canceling its future takes it back.

        The future's exceptions are errors for a job.

        Raises:
            EngineClosed: it is closing or dead.
        """
        with self._wakeup:
            if self._is_closing:
                raise EngineClosed
            self._admitted += 1
            errand = Errand(work, device, lane is Lane.INTERACTIVE, self._admitted)
            self._errands.append(errand)
            self._wakeup.notify()
        return errand.future

    def _kept(self, ticket: _Ticket, calls_done: int) -> None:
        with self._wakeup:
            ticket.calls_kept = max(ticket.calls_kept, calls_done)
            self._wakeup.notify()

    def _poke(self) -> None:
        with self._wakeup:
            self._wakeup.notify()

    def _key(self, request: Request, model: LoadedModel) -> BatchKey:
        picture = request.picture
        return BatchKey(
            model=picture.model,
            unet_channels=model.unet_channels,
            height=picture.height // LATENT_PX,
            width=picture.width // LATENT_PX,
            tokens=picture.prompts.length,
            dtype=str(model.dtype),
            fixed_bucket=picture.deterministic and not model.buckets.is_stable,
            adapters=picture.adapters,
        )

    # From here on: the device thread.

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while self._admit():
                    self._drop_canceled()
                    self._side_work()
                    self._show()
                    self._bell.ring()
                    self._step()
                    self._bell.ring()
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
            while not (
                self._inbox or self._errands or self._is_closing or any(ticket.has_work for ticket in self._tickets)
            ):
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
            errands, self._errands = self._errands, []
        for ticket in list(self._tickets):
            self._retire(ticket, outcome)
        for errand in errands:
            errand.drop(InternalError("The renderer is stopping."))
        self._bell.ring()

    def _retire(self, ticket: _Ticket, outcome: Finished | LLMGAError | None) -> None:
        self._tickets.remove(ticket)
        with self._wakeup:
            self._held -= 1
        ticket.handle.end(outcome)

    def _fail(self, ticket: _Ticket, error: Exception) -> None:
        outcome = outcome_of(error, ticket.model.device)
        _log.warning("a picture failed: %s", outcome.code, exc_info=error, extra={"model": ticket.name})
        self._retire(ticket, outcome)

    def _side_work(self) -> None:
        """Prepare newcomers, so that they join the next call; then finish pictures and run errands, one at least."""
        newcomers = [ticket for ticket in self._tickets if ticket.is_new]
        others: list[_Ticket | Errand[Any]] = [
            ticket for ticket in self._tickets if not (ticket.is_new or ticket.wants_step)
        ]
        with self._wakeup:
            others += self._errands
        until = time.perf_counter() + SIDE_SHARE * self._call_s
        self._do_until(until, sorted(newcomers, key=_by_urgency))
        self._do_until(until, sorted(others, key=_by_urgency))

    def _do_until(self, until: float, pieces: Sequence["_Ticket | Errand[Any]"]) -> None:
        for piece in pieces:
            self.counters.side += 1
            if isinstance(piece, Errand):
                with self._wakeup:
                    self._errands.remove(piece)
                piece.run()
            else:
                self._prepare_or_finish(piece)
            if time.perf_counter() >= until:
                return

    def _prepare_or_finish(self, ticket: _Ticket) -> None:
        try:
            if ticket.request.wants_source:
                encode_source(ticket.request, ticket.model)
            elif ticket.request.wants_prompts:
                encode_prompts(ticket.request, ticket.model)
            else:
                pixels = decode_latents(ticket.request.latents, ticket.model)
                self._retire(ticket, Finished(pixels))
        except Exception as error:
            self._fail(ticket, error)

    def _show(self) -> None:
        """Make the previews that there is time for; one that is late gives way to its picture's next, or its end."""
        due = [ticket for ticket in self._tickets if ticket.unseen is not None and ticket.wants_step]
        for ticket in sorted(due, key=_by_urgency):
            if not self._preview_time.is_left:
                return
            assert ticket.unseen is not None
            (progress, latents), ticket.unseen = ticket.unseen, None
            started = time.perf_counter()
            try:
                pixels = ticket.model.previewer(latents)
                ticket.handle.show(Preview(progress, pixels.numpy()))
            except Exception as error:
                if is_device_lost(error):
                    raise DeviceLost from error
                _log.warning("a preview could not be made", exc_info=error, extra={"model": ticket.name})
            self._preview_time.spend(time.perf_counter() - started)

    def _step(self) -> None:
        waiting = [ticket for ticket in self._tickets if ticket.may_step]
        if not waiting:
            return
        started = time.perf_counter()
        self.counters.calls += 1
        models = {ticket.key: ticket.model for ticket in waiting}

        def room(key: BatchKey, rows: int) -> int:
            return models[key].buckets.room(rows, self._sizes(key, models[key]))

        self._advance(choose(waiting, self.counters.calls, room))
        self._call_s = time.perf_counter() - started
        self._preview_time.earn(self._call_s)

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
        steps_before = self.counters.steps
        for ticket, (noise_pred, is_finite) in zip(batch, answers, strict=True):
            ticket.waiting_since = self.counters.calls
            ticket.has_begun = True
            try:
                if not is_finite:
                    raise NotFinite("the noise prediction")
                ticket.request.accept(noise_pred)
            except Exception as error:
                self._fail(ticket, error)
                continue
            self.counters.steps += 1
            if ticket.keeper is not None and is_due(ticket.request):
                snapshot = take(ticket.request)
                ticket.keeper.keep(snapshot, functools.partial(self._kept, ticket, snapshot.calls_done))
            progress = Progress(ticket.request.steps_done, ticket.request.total_steps)
            ticket.handle.post(progress)
            denoised = ticket.request.pop_denoised()
            if denoised is not None:
                ticket.unseen = progress, denoised
        metrics.DIFFUSION_STEPS.labels(batch[0].name).inc(self.counters.steps - steps_before)

    def _predict(self, batch: list[_Ticket]) -> list[tuple[torch.Tensor, bool]]:
        rows = []
        for ticket in batch:
            phase = ticket.request.phase
            assert phase is not None, "only requests with a phase are chosen"
            rows.append(phase.rows(ticket.request.latents))
        count = sum(ticket.rows for ticket in batch)
        model = batch[0].model
        bucket = next((size for size in self._sizes(batch[0].key, model) if size >= count), None)
        if bucket is None:  # one request that has more rows than others were found to fit with
            raise MemoryError(f"{count} rows do not fit")
        self.counters.rows += count
        model.adapters.use(batch[0].request.picture.adapters)
        return predict(model, rows, bucket)

    def _sizes(self, key: BatchKey, model: LoadedModel) -> list[int]:
        cap = self._caps.get(key)
        return [size for size in model.buckets.of(key) if cap is None or size <= cap]

    def _lower_cap(self, batch: list[_Ticket]) -> bool:
        """Allow this key only smaller calls from now on; return whether there are any for each of these requests."""
        key, model = batch[0].key, batch[0].model
        count, most = sum(ticket.rows for ticket in batch), max(ticket.rows for ticket in batch)
        sizes = self._sizes(key, model)
        failed = next((size for size in sizes if size >= count), 0)
        smaller = [size for size in sizes if most <= size < failed]
        release_memory(model.device)
        if not smaller:
            return False
        self._caps[key] = smaller[-1]
        _log.warning(
            "out of memory: smaller UNet calls from now on",
            extra={"model": key.model, "latents": f"{key.width}x{key.height}", "max_rows": smaller[-1]},
        )
        return True


def _by_urgency(piece: _Ticket | Errand[Any]) -> tuple[bool, int]:
    return not piece.is_interactive, piece.order
