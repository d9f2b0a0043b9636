"""Solvers: diffusers' schedulers under the contract's names, one object per request.

A scheduler keeps a scalar step index and, for multistep solvers, a list of past outputs, so two requests can
never share one. A request's own generator is the only source of noise for samplers that draw some. The number
of UNet calls is the length of the solver's timesteps: PNDM makes one call more than its steps, Heun two per
step but the last.
"""

import inspect
import math
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
from shared.contracts import FieldProblem, Scheduler
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

_MIN_ALPHA = 1e-6  # zero-terminal schedules start without any signal (Lin et al. 2023)


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

    `num_inference_steps` are those that are made, `calls` the UNet calls that they take.

    Raises:
        InvalidRequest: the scheduler cannot make this number of steps, or the strength leaves none.
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
        strength: float | None = None,
    ) -> None:
        """Set the timesteps.

        `timesteps`: those of a UNet that was distilled for them; the scheduler's own choice if left out.
        `strength`: of a picture that starts from another, the share of the steps that are made, the last ones.
        """
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
        if strength is not None:
            self._start_late(strength)
        self.calls = len(self.timesteps)
        accepted = inspect.signature(self._scheduler.step).parameters
        # As diffusers' pipelines: eta = 0 is plain DDIM.
        self._extra: dict[str, Any] = {"generator": generator} if "generator" in accepted else {}
        if "eta" in accepted:
            self._extra["eta"] = 0.0
        # What a new scheduler with these timesteps holds anyway; lists are copied, as steps change them in place.
        self._given = {name: _copied(value) for name, value in vars(self._scheduler).items()}

    def _start_late(self, strength: float) -> None:
        # As diffusers' image-to-image and inpainting pipelines, to the rounding of the product.
        steps = int(self.num_inference_steps * strength)
        if steps == 0:
            least = math.ceil(1 / strength)
            raise InvalidRequest(
                "No step is left to make.",
                errors=[
                    FieldProblem(
                        field="strength", code="too_small", message=f"needs at least {least} steps at this strength"
                    )
                ],
            )
        begin = (self.num_inference_steps - steps) * self._scheduler.order
        if hasattr(self._scheduler, "set_begin_index"):
            self._scheduler.set_begin_index(begin)
        self.timesteps = self.timesteps[begin:]
        self.num_inference_steps = steps

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the first latents."""
        return float(self._scheduler.init_noise_sigma)

    def scale_model_input(self, latents: torch.Tensor, call: int) -> torch.Tensor:
        """Return the latents as the UNet wants them at this call."""
        scaled: torch.Tensor = self._scheduler.scale_model_input(latents, self.timesteps[call])
        return scaled

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, call: int) -> torch.Tensor:
        """Return clean latents noised to the level before this call, the next one to be made."""
        noised: torch.Tensor = self._scheduler.add_noise(latents, noise, self.timesteps[call : call + 1])
        return noised

    def step(self, noise_pred: torch.Tensor, call: int, latents: torch.Tensor) -> torch.Tensor:
        """Return the latents behind this call; calls come in order, each once."""
        stepped: torch.Tensor = self._scheduler.step(
            noise_pred, self.timesteps[call], latents, **self._extra, return_dict=False
        )[0]
        return stepped

    def denoised(self, noise_pred: torch.Tensor, call: int, latents: torch.Tensor) -> torch.Tensor:
        """Return the clean latents that this call's answer points to; ask before `step`.

        The UNet's input is sqrt(a) x0 + sqrt(1 - a) noise for every solver (Ho et al. 2020, eq. 4), whatever its own
        scale of the latents is, so that one formula serves all.
        """
        scheduler = self._scheduler
        sample = self.scale_model_input(latents, call)
        alpha = scheduler.alphas_cumprod[self.timesteps[call].cpu().long()].clamp(min=_MIN_ALPHA)
        signal, noise = float(alpha.sqrt()), float((1 - alpha).sqrt())
        if scheduler.config.prediction_type == "v_prediction":  # Salimans and Ho 2022, appendix D
            return signal * sample - noise * noise_pred
        return noise_pred if scheduler.config.prediction_type == "sample" else (sample - noise * noise_pred) / signal

    def memory(self) -> dict[str, Any]:
        """Return what the steps so far have left in the scheduler: its own attributes that are not as they were."""
        return {
            name: _copied(value)
            for name, value in vars(self._scheduler).items()
            if name not in self._given or not _is_same(value, self._given[name])
        }

    def remember(self, memory: dict[str, Any]) -> None:
        """Take over the memory of another solver that was made with the same arguments."""
        for name, value in memory.items():
            setattr(self._scheduler, name, _copied(value))

    def steps_done(self, calls_done: int) -> int:
        """Return the progress in the steps that were asked for, whatever the calls per step."""
        return calls_done * self.num_inference_steps // self.calls


def _copied(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value


def _is_same(value: Any, given: Any) -> bool:
    if isinstance(value, list) and isinstance(given, list):
        return len(value) == len(given) and all(one is other for one, other in zip(value, given, strict=True))
    return value is given
