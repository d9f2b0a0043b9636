"""Diffusion of the image prior representation (IPR): one vector per picture, four steps (LLMGA.md §6.2).

The denoiser predicts x0, and the reverse process takes the posterior's mean without adding noise, so the start x_T is
all the randomness there is. Symbols are those of DDPM (Ho et al. 2020); `betas` are equally spaced in their roots.
"""

import torch
from torch import Tensor, nn

NEGATIVE_SLOPE = 0.1  # of every leaky ReLU of the encoder and the denoiser
MAX_PERIOD = 10  # a timestep enters the denoiser divided by ten times their number
LEAST_VARIANCE = 1e-20  # under the logarithm: the posterior of the first step has no variance


def schedule(timesteps: int, linear_start: float, linear_end: float) -> dict[str, Tensor]:
    """Return the buffers of the published networks, float32 (timesteps,), under their names.

    On the CPU whatever the default device is. Torch keeps a list of functions that heed it, and has it made while
    transformers' loaders have put a `linspace` of their own in place: from then on torch's own no longer does.
    """
    betas = torch.linspace(linear_start**0.5, linear_end**0.5, timesteps, dtype=torch.float64, device="cpu") ** 2
    alphas = 1 - betas
    alphas_cumprod = torch.cumprod(alphas, dim=0)
    alphas_cumprod_prev = torch.cat((torch.ones(1, dtype=torch.float64, device="cpu"), alphas_cumprod[:-1]))
    posterior_variance = betas * (1 - alphas_cumprod_prev) / (1 - alphas_cumprod)
    buffers = {
        "betas": betas,
        "alphas_cumprod": alphas_cumprod,
        "alphas_cumprod_prev": alphas_cumprod_prev,
        "sqrt_alphas_cumprod": alphas_cumprod.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - alphas_cumprod).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - alphas_cumprod).log(),
        "sqrt_recip_alphas_cumprod": (1 / alphas_cumprod).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / alphas_cumprod - 1).sqrt(),
        "posterior_variance": posterior_variance,
        "posterior_log_variance_clipped": posterior_variance.clamp(min=LEAST_VARIANCE).log(),
        "posterior_mean_coef1": betas * alphas_cumprod_prev.sqrt() / (1 - alphas_cumprod),
        "posterior_mean_coef2": (1 - alphas_cumprod_prev) * alphas.sqrt() / (1 - alphas_cumprod),
    }
    return {name: values.float() for name, values in buffers.items()}


class DenoiserLayer(nn.Module):
    """Linear and leaky ReLU, without the residual that its published name promises."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resmlp = nn.Sequential(nn.Linear(channels, channels), nn.LeakyReLU(NEGATIVE_SLOPE))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.resmlp(x)
        return out


class Denoiser(nn.Module):
    """Predict x0 from x_t, the time and the encoder's vector."""

    def __init__(self, channels: int, n_denoise_res: int, timesteps: int) -> None:
        super().__init__()
        self.max_period = timesteps * MAX_PERIOD
        self.resmlp = nn.Sequential(
            nn.Linear(2 * channels + 1, channels),
            nn.LeakyReLU(NEGATIVE_SLOPE),
            *(DenoiserLayer(channels) for _ in range(n_denoise_res)),
        )

    def forward(self, x: Tensor, t: int, c: Tensor) -> Tensor:
        """Return x0 (b, channels); x and c (b, channels), t one timestep for all."""
        time = x.new_full((len(x), 1), t / self.max_period)
        out: Tensor = self.resmlp(torch.cat((c, time, x), dim=1))
        return out


class IPRDiffusion(nn.Module):
    """The forward and the reverse process.

    `model` and `condition` are the network's own `denoise` and `condition`: a published file holds them twice.
    """

    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor

    def __init__(
        self, model: Denoiser, condition: nn.Module, *, timesteps: int, linear_start: float, linear_end: float
    ) -> None:
        super().__init__()
        self.model = model
        self.condition = condition
        self.timesteps = timesteps
        for name, values in schedule(timesteps, linear_start, linear_end).items():
            self.register_buffer(name, values)

    def to_noise(self, x0: Tensor, noise: Tensor) -> Tensor:
        """Return x_T of a known representation: where training starts its reverse process (LLMGA.md §6.3, "S2")."""
        return self.sqrt_alphas_cumprod[-1] * x0 + self.sqrt_one_minus_alphas_cumprod[-1] * noise

    def sample(self, x_t: Tensor, c: Tensor) -> Tensor:
        """Run the reverse process from x_T and return x0 (b, channels); gradients pass through all its steps."""
        for t in reversed(range(self.timesteps)):
            x0 = self.model(x_t, t, c)
            x_t = self.posterior_mean_coef1[t] * x0 + self.posterior_mean_coef2[t] * x_t
        return x_t
