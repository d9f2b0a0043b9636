"""The diffusion of the prior against the numbers of LLMGA.md §6.2."""

import pytest
import torch
from torch import Tensor, nn

from services.diffusion.restoration.ipr import Denoiser, IPRDiffusion, schedule

PUBLISHED = schedule(4, 0.1, 0.99)
BETAS = (0.1, 0.29429, 0.59095, 0.99)
CUMULATIVE = (0.9, 0.63514, 0.25980, 0.0025980)


def diffusion_of(model: nn.Module) -> IPRDiffusion:
    return IPRDiffusion(model, nn.Identity(), timesteps=4, linear_start=0.1, linear_end=0.99)  # type: ignore[arg-type] # a stand-in with the same call


def test_betas_and_their_products_are_the_published_numbers() -> None:
    assert PUBLISHED["betas"].tolist() == pytest.approx(BETAS, abs=5e-6)
    assert PUBLISHED["alphas_cumprod"].tolist() == pytest.approx(CUMULATIVE, abs=5e-6)


def test_posterior_coefficients_are_those_of_the_betas() -> None:
    previous = (1.0, *CUMULATIVE[:-1])
    first = [b * p**0.5 / (1 - c) for b, p, c in zip(BETAS, previous, CUMULATIVE, strict=True)]
    second = [(1 - p) * (1 - b) ** 0.5 / (1 - c) for b, p, c in zip(BETAS, previous, CUMULATIVE, strict=True)]
    assert PUBLISHED["posterior_mean_coef1"].tolist() == pytest.approx(first, abs=2e-5)
    assert PUBLISHED["posterior_mean_coef2"].tolist() == pytest.approx(second, abs=2e-5)
    assert (first[0], second[0]) == pytest.approx((1.0, 0.0))  # the last step returns the denoiser's x0


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("alphas_cumprod_prev", (1.0, 0.9, 0.63514, 0.25980)),
        ("sqrt_alphas_cumprod", (0.94868, 0.79696, 0.50971, 0.05097)),
        ("sqrt_one_minus_alphas_cumprod", (0.31623, 0.60404, 0.86035, 0.99870)),
        ("sqrt_recip_alphas_cumprod", (1.05409, 1.25478, 1.96191, 19.6191)),
        ("sqrt_recipm1_alphas_cumprod", (0.33333, 0.75793, 1.68794, 19.5936)),
        ("posterior_variance", (0.0, 0.08066, 0.29129, 0.73470)),
        ("log_one_minus_alphas_cumprod", (-2.30259, -1.00824, -0.30083, -0.00260)),
        ("posterior_log_variance_clipped", (-46.0517, -2.51750, -1.23344, -0.30829)),
    ],
)
def test_other_buffers_follow_from_the_betas(name: str, values: tuple[float, ...]) -> None:
    assert PUBLISHED[name].tolist() == pytest.approx(values, rel=2e-4, abs=2e-5)


def test_denoiser_reads_condition_time_and_state_in_this_order_without_a_residual() -> None:
    torch.manual_seed(0)
    denoiser = Denoiser(channels=4, n_denoise_res=1, timesteps=4)
    x, c = torch.randn(3, 4), torch.randn(3, 4)
    first, inner = "resmlp.0", "resmlp.2.resmlp.0"

    def leaky(values: Tensor) -> Tensor:
        return torch.where(values > 0, values, 0.1 * values)

    time = torch.full((3, 1), 3 / 40)

    def linear(name: str, values: Tensor) -> Tensor:
        return values @ denoiser.get_parameter(f"{name}.weight").T + denoiser.get_parameter(f"{name}.bias")

    hidden = leaky(linear(first, torch.cat((c, time, x), dim=1)))
    torch.testing.assert_close(denoiser(x, 3, c), leaky(linear(inner, hidden)))


class Recorder(nn.Module):
    """Predict a constant x0 and remember what was asked."""

    def __init__(self, x0: Tensor) -> None:
        super().__init__()
        self.x0 = x0
        self.asked: list[tuple[Tensor, int]] = []

    def forward(self, x: Tensor, t: int, c: Tensor) -> Tensor:
        self.asked.append((x, t))
        return self.x0


def test_reverse_process_takes_four_posterior_means_without_noise() -> None:
    model = Recorder(torch.tensor([[0.5, -1.0]]))
    start = torch.tensor([[2.0, 3.0]])
    result = diffusion_of(model).sample(start, torch.zeros(1, 2))
    assert [t for _, t in model.asked] == [3, 2, 1, 0]
    assert torch.equal(model.asked[0][0], start)
    x = start
    for t in (3, 2, 1):
        previous = CUMULATIVE[t - 1]
        x = (BETAS[t] * previous**0.5 * model.x0 + (1 - previous) * (1 - BETAS[t]) ** 0.5 * x) / (1 - CUMULATIVE[t])
        torch.testing.assert_close(model.asked[4 - t][0], x, rtol=1e-4, atol=1e-5)
    assert torch.equal(result, model.x0)


def test_training_starts_from_the_teachers_vector_drowned_in_noise() -> None:
    x0, noise = torch.randn(2, 5), torch.randn(2, 5)
    noised = diffusion_of(Recorder(x0)).to_noise(x0, noise)
    torch.testing.assert_close(noised, 0.0025980**0.5 * x0 + (1 - 0.0025980) ** 0.5 * noise, rtol=1e-4, atol=1e-5)


def test_gradients_pass_through_every_step() -> None:
    torch.manual_seed(1)
    denoiser = Denoiser(channels=3, n_denoise_res=1, timesteps=4)
    start, c = torch.randn(1, 3, requires_grad=True), torch.randn(1, 3, requires_grad=True)
    diffusion_of(denoiser).sample(start, c).sum().backward()  # type: ignore[no-untyped-call] # torch has no types for it
    # Only the chain of all four predictions leads back to the start: the last step has no part of x_t of its own.
    assert start.grad is not None
    assert start.grad.abs().sum() > 0
    assert c.grad is not None
