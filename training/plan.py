"""How long, in which batches and how fast a run learns: numbers only, checked when they are made."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

Schedule = Literal["constant", "cosine", "milestones"]
Precision = Literal["no", "bf16", "fp16"]


class PlanError(ValueError):
    """The plan contradicts itself, the number of processes, or the run that the folder holds."""


@dataclass(frozen=True)
class Plan:
    """The numbers of one run.

    `global_batch` examples make one optimizer step, whatever the number of processes; `micro_batch` of them go
    through the model at once in each process, the rest is accumulated.
    """

    steps: int
    global_batch: int
    micro_batch: int
    learning_rate: float
    schedule: Schedule = "constant"
    warmup_steps: int = 0
    restarts: tuple[int, ...] = ()  # steps at which a cosine begins again from the top (Loshchilov and Hutter 2017)
    milestones: tuple[int, ...] = ()  # steps after which the rate is multiplied by `decay`
    decay: float = 0.5
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    max_grad_norm: float | None = 1.0
    precision: Precision = "no"
    ema_decay: float | None = None
    checkpoint_every: int = 1_000
    keep_checkpoints: int = 2
    log_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "global_batch", "micro_batch", "checkpoint_every", "keep_checkpoints", "log_every"):
            if getattr(self, name) < 1:
                raise PlanError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.learning_rate <= 0:
            raise PlanError(f"learning_rate must be positive, not {self.learning_rate}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise PlanError(f"ema_decay must be between 0 and 1, not {self.ema_decay}")
        if self.restarts and self.schedule != "cosine":
            raise PlanError("restarts are given, but the schedule is not 'cosine'")
        if list(self.restarts) != sorted(set(self.restarts)) or not all(
            self.warmup_steps < step < self.steps for step in self.restarts
        ):
            raise PlanError("restarts must rise, behind the warm-up and before the last step")
        if self.milestones and self.schedule != "milestones":
            raise PlanError("milestones are given, but the schedule is not 'milestones'")

    def accumulation(self, processes: int) -> int:
        """Return how many micro-batches each process adds up for one step.

        Raises:
            PlanError: the global batch is not a whole number of micro-batches on this many processes.
        """
        at_once = self.micro_batch * processes
        if self.global_batch % at_once:
            raise PlanError(
                f"a global batch of {self.global_batch} is not a multiple of {processes} process(es) x a micro-batch "
                f"of {self.micro_batch}; choose a micro_batch that divides {self.global_batch}/{processes}"
            )
        return self.global_batch // at_once

    def learning_rate_at(self, step: int) -> float:
        """Return the rate of the step with this number, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "cosine":
            begin = max([self.warmup_steps, *(start for start in self.restarts if start <= step)])
            end = min([self.steps, *(start for start in self.restarts if start > step)])
            done = (step - begin) / max(1, end - begin)
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        if self.schedule == "milestones":
            return float(self.learning_rate * self.decay ** sum(step >= milestone for milestone in self.milestones))
        return self.learning_rate

    def curve(self) -> dict[str, Any]:
        """Return the numbers that decide the loss curve: a run resumes only where they are the same."""
        numbers = asdict(self)
        for name in ("micro_batch", "checkpoint_every", "keep_checkpoints", "log_every"):
            del numbers[name]
        if self.schedule != "cosine":
            del numbers["steps"]  # such a run may go on for longer
        if not self.restarts:
            del numbers["restarts"]  # as in runs that were begun before there were any
        return {name: list(value) if isinstance(value, tuple) else value for name, value in numbers.items()}
