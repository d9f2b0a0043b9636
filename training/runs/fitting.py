"""`fit`: the one training loop of the project.

A step's examples, their order and all randomness depend on (seed, step, place) alone (`training.runs.order`), so
a run that was killed resumes to the same curve, and N processes compute what one computes, within rounding.
The loss of a step is the mean over the whole global batch: each micro-batch counts by its weight (`weight_of`; for
a language model the number of learned tokens), wherever it is computed. On SIGTERM the run writes a checkpoint
and exits with status 0; the same call goes on from there.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from tqdm import tqdm

from training.plan import Plan, PlanError
from training.runs import checkpoints
from training.runs.examples import Batch, Collate, Examples, batches
from training.runs.order import seed_of
from training.runs.records import Losses, Meta, Tags

T = TypeVar("T")
LossOf = Callable[[Any, Batch], torch.Tensor | Mapping[str, torch.Tensor]]
"""Model and batch -> the mean loss, or it as `loss` among other means to log. It must call the model itself, not a
part of it: processes add up their gradients in that call."""


class Stopped(SystemExit):
    """SIGTERM came and a checkpoint is written: the process exits with status 0."""


class Diverged(Exception):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Fitted:
    """A model after its last step, the averaged parameters by name, and the means of the last logged steps."""

    model: Any
    ema: dict[str, torch.Tensor] | None
    losses: dict[str, float]
    step: int
    is_main: bool
    gather: Callable[[], dict[str, torch.Tensor]]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the model's tensors, whole also where processes share them out; every process must ask."""
        return self.gather()

    def averaged(self) -> Any:
        """Return the model with the averaged parameters in place of the last ones."""
        assert self.ema is not None, "the plan has no ema_decay"
        self.model.load_state_dict(self.ema, strict=False)
        return self.model


def fit(
    model: torch.nn.Module,
    loss_of: LossOf,
    examples: Examples[T],
    collate: Collate[T],
    plan: Plan,
    folder: Path,
    *,
    accelerator: Accelerator | None = None,
    trainable: Callable[[str], bool] | None = None,
    weight_of: Callable[[Batch], float] | None = None,
    loaders: int = 1,
    tags: Tags | None = None,
) -> Fitted:
    """Train until the plan's last step, from the newest checkpoint in `folder` if there is one.

    `trainable` says by its name whether a parameter learns (all do without it); frozen ones are not saved.

    Raises:
        PlanError: the plan does not fit the processes, or the folder holds another run.
        Diverged: the loss is no longer finite.
        Stopped: SIGTERM came.
    """
    accelerator = accelerator or accelerator_for(plan)
    for name, parameter in model.named_parameters():
        if trainable is not None:
            parameter.requires_grad_(trainable(name))
    learned = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not learned:
        raise PlanError("no parameter of the model is trainable")
    run = _Run(model, plan, folder, accelerator, len(examples), tags or {})
    with _terminable() as terminated:
        made = batches(
            examples,
            collate,
            plan,
            start=run.step,
            process=accelerator.process_index,
            processes=accelerator.num_processes,
            loaders=loaders,
        )
        bar = tqdm(made, total=plan.steps, initial=run.step, disable=None if run.is_main else True, mininterval=1)
        for micro_batches in bar:
            run.learn(micro_batches, loss_of, weight_of)
            if run.step % plan.log_every == 0 or run.step == plan.steps:
                bar.set_postfix(run.log())
            stop = run.any_process(terminated.is_set())
            if stop or run.step % plan.checkpoint_every == 0 or run.step == plan.steps:
                run.save(is_last=stop or run.step == plan.steps)
            if stop and run.step < plan.steps:
                raise Stopped(0)
    return run.fitted()


def accelerator_for(plan: Plan) -> Accelerator:
    """Return an accelerator of the plan's precision that accumulates what the plan asks of each process.

    Raises:
        PlanError: the global batch does not divide, or several processes were asked for and one was started.
    """
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != plan.precision:
        AcceleratorState._reset_state()  # it is one per process, and a chain of runs may change the precision
    cpu = not torch.accelerator.is_available()
    if cpu and os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        cpu = False  # to accelerate this would mean: without DeepSpeed
        processes = PartialState(backend="gloo").num_processes
    else:
        processes = PartialState(cpu=cpu).num_processes
    if processes == 1 and "MASTER_PORT" in os.environ and "LOCAL_RANK" not in os.environ:
        raise PlanError(
            "`accelerate launch --cpu` with several processes starts one unless it runs under MPI; "
            "use `accelerate launch --config_file training/accelerate/cpu.yaml`"
        )
    accumulation = plan.accumulation(processes)
    return Accelerator(cpu=cpu, mixed_precision=plan.precision, gradient_accumulation_steps=accumulation)


class _Run:
    """The state of a run between two steps."""

    def __init__(
        self, model: torch.nn.Module, plan: Plan, folder: Path, accelerator: Accelerator, examples: int, tags: Tags
    ) -> None:
        self.plan, self.folder, self.accelerator = plan, folder, accelerator
        self.is_main = accelerator.is_main_process
        self.step = 0
        self._accumulation = plan.accumulation(accelerator.num_processes)
        accelerator.gradient_accumulation_steps, accelerator.step = self._accumulation, 0
        self._identity = {"plan": plan.curve(), "examples": examples}
        self._is_parted = accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP)
        if self._is_parted and plan.ema_decay is not None:
            raise PlanError("DeepSpeed and FSDP share parameters out, of which no average is kept; train without ema")
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            _tell_deepspeed(accelerator, plan, self._accumulation)
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        fused = all(parameter.is_floating_point() for parameter in learned)
        optimizer = torch.optim.AdamW(learned, plan.learning_rate, plan.betas, plan.eps, plan.weight_decay, fused=fused)
        self._model, self._optimizer = accelerator.prepare(model, optimizer)
        self._bare = accelerator.unwrap_model(self._model)
        self._learned = [(name, p) for name, p in self._bare.named_parameters() if p.requires_grad]
        self._ema = None
        if plan.ema_decay is not None:
            self._ema = {name: parameter.detach().float().clone() for name, parameter in self._learned}
        self._window: dict[str, torch.Tensor] = {}  # sums since the last line of the log
        self._window_steps = 0
        self._losses: dict[str, float] = {}
        self._grad_norm: torch.Tensor | float | None = None
        hours = self._resume()
        self._since, self._since_step = time.monotonic(), self.step
        if self.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            self._curve = Losses(folder, resume_at=self.step)
            self._meta = Meta(folder, tags, asdict(plan), accelerator.num_processes, hours=hours)
        self._model.train()

    def _resume(self) -> float:
        checkpoint = checkpoints.latest(self.folder)
        if checkpoint is None:
            return 0.0
        state = checkpoints.read_state(checkpoint)
        if state["identity"] != self._identity:
            then, now = _difference(state["identity"], self._identity)
            raise PlanError(f"{self.folder} holds another run ({then}, now {now}); delete it or name another folder")
        if self._is_parted:
            checkpoints.load_parts(checkpoint, accelerator=self.accelerator)
        else:
            checkpoints.load(checkpoint, model=self._bare, optimizer=self._optimizer.optimizer, ema=self._ema)
            if self.accelerator.scaler is not None and state["scaler"]:
                self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self._losses, self._window_steps = state["step"], state["losses"], state["window_steps"]
        for name, value in state["window"].items():  # sums over all processes: one of them carries on with them
            self._window[name] = torch.tensor(value if self.is_main else 0.0, device=self.accelerator.device)
        return float(state["hours"])

    def learn(self, micro_batches: list[Batch], loss_of: LossOf, weight_of: Callable[[Batch], float] | None) -> None:
        """Take one optimizer step."""
        weights = [1.0 if weight_of is None else float(weight_of(batch)) for batch in micro_batches]
        total = self._sum(sum(weights)) if weight_of else float(len(weights) * self.accelerator.num_processes)
        for group in self._optimizer.param_groups:
            group["lr"] = self.plan.learning_rate_at(self.step)
        micro_batches_in_all = self._accumulation * self.accelerator.num_processes
        for number, (batch, weight) in enumerate(zip(micro_batches, weights, strict=True)):
            place = number * self.accelerator.num_processes + self.accelerator.process_index
            torch.manual_seed(seed_of(self.plan.seed, self.step, place, "model"))  # dropout
            share = weight / total if total else 0.0
            with self.accelerator.accumulate(self._model):
                result = loss_of(self._model, _to(batch, self.accelerator.device))
                means = result if isinstance(result, Mapping) else {"loss": result}
                # accelerate divides by the micro-batches of a process, and the processes' gradients are averaged
                self.accelerator.backward(means["loss"] * (share * micro_batches_in_all))
                if self.accelerator.sync_gradients and self.plan.max_grad_norm is not None:
                    parameters = [parameter for _, parameter in self._learned]
                    self._grad_norm = self.accelerator.clip_grad_norm_(parameters, self.plan.max_grad_norm)
                self._optimizer.step()
                self._optimizer.zero_grad()
            for name, mean in means.items():
                part = mean.detach().float() * share
                self._window[name] = self._window[name] + part if name in self._window else part
        self.step += 1
        self._window_steps += 1
        if self._ema is not None and self.plan.ema_decay is not None:
            decay = min(self.plan.ema_decay, (1 + self.step) / (10 + self.step))  # as diffusers' EMAModel begins
            values = [parameter.detach().float() for _, parameter in self._learned]
            torch._foreach_lerp_(list(self._ema.values()), values, 1 - decay)

    def _sum(self, value: float) -> float:
        if self.accelerator.num_processes == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.accelerator.device)
        return float(self.accelerator.reduce(tensor, "sum"))

    def any_process(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return self._sum(float(flag)) > 0

    def _sums(self) -> dict[str, float]:
        return {name: self._sum(float(value)) for name, value in sorted(self._window.items())}

    def log(self) -> dict[str, float]:
        """Write the means since the last line."""
        self._losses = {name: value / self._window_steps for name, value in self._sums().items()}
        self._window, self._window_steps = {}, 0
        loss = self._losses["loss"]
        if not abs(loss) < float("inf"):
            raise Diverged(f"the loss is {loss} at step {self.step} of {self.folder}; lower the learning rate")
        now = time.monotonic()
        speed = (self.step - self._since_step) * self.plan.global_batch / max(1e-9, now - self._since)
        self._since, self._since_step = now, self.step
        if self.is_main:
            line = {"step": self.step, **self._losses, "learning_rate": self.plan.learning_rate_at(self.step - 1)}
            if self._grad_norm is not None:
                line["grad_norm"] = float(self._grad_norm)
            self._curve.add(line | {"examples_per_s": round(speed, 2)})
        return {name: round(value, 4) for name, value in self._losses.items()}

    def save(self, *, is_last: bool) -> None:
        """Write a checkpoint, the drawn curve and `meta.json`."""
        state = {
            "step": self.step,
            "identity": self._identity,
            "losses": self._losses,
            "window": self._sums(),
            "window_steps": self._window_steps,
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
            "hours": self._meta.hours if self.is_main else 0.0,
        }
        keep = self.plan.keep_checkpoints
        if self._is_parted:
            checkpoints.save_parts(self.folder, self.step, accelerator=self.accelerator, state=state, keep=keep)
        elif self.is_main:
            optimizer = self._optimizer.optimizer
            checkpoints.save(
                self.folder, self.step, model=self._bare, optimizer=optimizer, ema=self._ema, state=state, keep=keep
            )
        if self.is_main:
            self._curve.draw(at_once=is_last)
            parameters = sum(parameter.numel() for _, parameter in self._learned)
            self._meta.write(step=self.step, parameters=parameters, losses=self._losses)
        self.accelerator.wait_for_everyone()

    def fitted(self) -> Fitted:
        """Return the model out of its wrappers."""
        model = self.accelerator.unwrap_model(self._model, keep_fp32_wrapper=False)
        gather = partial(self.accelerator.get_state_dict, self._model)
        return Fitted(model, self._ema, self._losses, self.step, self.is_main, gather)


def _tell_deepspeed(accelerator: Accelerator, plan: Plan, accumulation: int) -> None:
    """Set what DeepSpeed takes from its own configuration and would take from a data loader, which there is none of."""
    config = accelerator.state.deepspeed_plugin.deepspeed_config
    config["train_micro_batch_size_per_gpu"] = plan.micro_batch
    config["gradient_accumulation_steps"] = accumulation
    config["gradient_clipping"] = plan.max_grad_norm or 0.0


def _to(batch: Batch, device: torch.device) -> Batch:
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


def _difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, str]:
    flat_then, flat_now = ({**identity["plan"], "examples": identity["examples"]} for identity in (then, now))
    names = [name for name in sorted(flat_then | flat_now) if flat_then.get(name) != flat_now.get(name)]
    then_text, now_text = (", ".join(f"{name} {flat.get(name)}" for name in names) for flat in (flat_then, flat_now))
    return then_text, now_text


@contextmanager
def _terminable() -> Iterator[threading.Event]:
    """Give an event that SIGTERM sets; outside the main thread, where no handler can be set, it stays clear."""
    terminated = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield terminated
        return
    before = signal.signal(signal.SIGTERM, lambda *_: terminated.set())
    try:
        yield terminated
    finally:
        signal.signal(signal.SIGTERM, before)
