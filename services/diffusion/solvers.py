"""Solvers: diffusers' schedulers under the contract's names, one object per request.

A scheduler keeps a scalar step index and, for multistep solvers, a list of past outputs, so two requests can
never share one. A request's own generator is the only source of noise for samplers that draw some. The number
of UNet calls is the length of the solver's timesteps: PNDM makes one call more than its steps, Heun two per
step but the last.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from services.diffusion.libraries import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from shared.contracts import Scheduler
from shared.errors import InvalidRequest

_CLASSES: dict[Scheduler, tuple[Any, dict[str, Any]]] = {
    Scheduler.DDIM: (DDIMScheduler, {}),
    Scheduler.PNDM: (PNDMScheduler, {}),
    Scheduler.EULER: (EulerDiscreteScheduler, {}),
    Scheduler.EULER_ANCESTRAL: (EulerAncestralDiscreteScheduler, {}),
    Scheduler.DPMPP_2M: (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    Scheduler.DPMPP_2M_KARRAS: (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True},
    ),
    Scheduler.DPMPP_2M_SDE: (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    Scheduler.UNIPC: (UniPCMultistepScheduler, {}),
    Scheduler.LCM: (LCMScheduler, {}),
    Scheduler.HEUN: (HeunDiscreteScheduler, {}),
}


def build_scheduler(kind: Scheduler, config: dict[str, Any]) -> Any:
    """Return a new diffusers scheduler of this kind over a checkpoint's scheduler configuration."""
    scheduler_class, options = _CLASSES[kind]
    return scheduler_class.from_config(config, **options)


def default_scheduler(config: dict[str, Any]) -> Scheduler:
    """Return the offered scheduler that a checkpoint's configuration names; SD1.5's own if it is another."""
    found = {"algorithm_type": "dpmsolver++", **config}
    for kind, (scheduler_class, options) in reversed(_CLASSES.items()):  # those with more options come first
        if scheduler_class.__name__ == found.get("_class_name") and options.items() <= found.items():
            return kind
    return Scheduler.PNDM


class Solver:
    """The solver of one request: it turns noise predictions into the next latents.

    Raises:
        InvalidRequest: the scheduler cannot make this number of steps.
    """

    def __init__(
        self,
        kind: Scheduler,
        config: dict[str, Any],
        num_inference_steps: int,
        generator: torch.Generator,
        device: torch.device,
        *,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """`timesteps`: those of a UNet that was distilled for them; the scheduler's own choice if left out."""
        self.num_inference_steps = num_inference_steps
        self._scheduler = build_scheduler(kind, config)
        most = self._scheduler.config.get("original_inference_steps")
        if kind is Scheduler.LCM and num_inference_steps > most:
            raise InvalidRequest(f"The scheduler lcm makes at most {most} steps; it is meant for 1 to 8.")
        if timesteps is None:
            self._scheduler.set_timesteps(num_inference_steps, device=device)
        else:
            self._scheduler.set_timesteps(timesteps=list(timesteps), device=device)
        self.timesteps: torch.Tensor = self._scheduler.timesteps
        accepted = inspect.signature(self._scheduler.step).parameters
        # As diffusers' pipelines: eta = 0 is plain DDIM.
        self._extra: dict[str, Any] = {"generator": generator} if "generator" in accepted else {}
        if "eta" in accepted:
            self._extra["eta"] = 0.0
        # What a new scheduler with these timesteps holds anyway; lists are copied, as steps change them in place.
        self._given = {name: _copied(value) for name, value in vars(self._scheduler).items()}

    @property
    def calls(self) -> int:
        """UNet calls that the solver makes in all."""
        return len(self.timesteps)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the first latents."""
        return float(self._scheduler.init_noise_sigma)

    def scale_model_input(self, latents: torch.Tensor, call: int) -> torch.Tensor:
        """Return the latents as the UNet wants them at this call."""
        scaled: torch.Tensor = self._scheduler.scale_model_input(latents, self.timesteps[call])
        return scaled

    def step(self, noise_pred: torch.Tensor, call: int, latents: torch.Tensor) -> torch.Tensor:
        """Return the latents behind this call; calls come in order, each once."""
        stepped: torch.Tensor = self._scheduler.step(
            noise_pred, self.timesteps[call], latents, **self._extra, return_dict=False
        )[0]
        return stepped

    def memory(self) -> dict[str, Any]:
        """Return what the steps so far have left in the scheduler: its own attributes that are not as they were."""
        return {
            name: _copied(value)
            for name, value in vars(self._scheduler).items()
            if name not in self._given or not _is_same(value, self._given[name])
        }

    def remember(self, memory: dict[str, Any], device: torch.device) -> None:
        """Take over the memory of another solver that was made with the same arguments."""
        for name, value in memory.items():
            setattr(self._scheduler, name, _moved(value, device))

    def steps_done(self, calls_done: int) -> int:
        """Return the progress in the steps that were asked for, whatever the calls per step."""
        return calls_done * self.num_inference_steps // self.calls


def _copied(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value


def _is_same(value: Any, given: Any) -> bool:
    if isinstance(value, list) and isinstance(given, list):
        return len(value) == len(given) and all(one is other for one, other in zip(value, given, strict=True))
    return value is given


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_moved(one, device) for one in value]
    return value.to(device) if isinstance(value, torch.Tensor) else value
