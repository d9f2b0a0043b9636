"""The losses of the steps against LLMGA.md §6.3."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from services.diffusion.restoration.config import RestorationConfig, Scale
from services.diffusion.restoration.network import DiffRIRS1, DiffRIRS2, join
from tests.training.restoration.recipes import SMALL
from training.restoration.adversary import Critic, Perceptual
from training.restoration.objectives import (
    AdversarialObjective,
    EncoderObjective,
    JointObjective,
    TeacherObjective,
)


def config(scale: Scale = 1) -> RestorationConfig:
    return RestorationConfig.model_validate(SMALL | {"scale": scale})


def networks(scale: Scale = 1) -> tuple[DiffRIRS2, DiffRIRS1]:
    torch.manual_seed(0)
    return DiffRIRS2(config(scale)), DiffRIRS1(config(scale))


def batch(scale: Scale = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    side = config(scale).multiple
    truth = torch.rand(2, 3, side * scale, side * scale, generator=generator)
    return {
        "truth": truth,
        "target": truth,
        "painted": torch.rand(2, 3, side, side, generator=generator),
        "mask": (torch.rand(2, 1, side * scale, side * scale, generator=generator) < 0.5).float(),
        "noise": torch.randn(2, config(scale).ipr_channels, generator=generator),
    }


def trained(objective: nn.Module) -> set[str]:
    """Return the parts that a step changes, by the first two words of their names."""
    for name, parameter in objective.named_parameters():
        parameter.requires_grad_(objective.trainable(name))  # type: ignore[operator] # a static method of all of them
    objective(batch())["loss"].backward()
    names = (name for name, parameter in objective.named_parameters() if parameter.grad is not None)
    return {".".join(name.split(".")[:2]) for name in names}


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_teacher_learns_the_whole_picture_from_the_masked_reference(scale: Scale) -> None:
    _, teacher = networks(scale)
    made = batch(scale)
    joined = join(made["painted"], made["truth"] * (1 - made["mask"]), scale)
    wanted = functional.l1_loss(teacher(joined, made["truth"]), made["truth"])
    torch.testing.assert_close(TeacherObjective(teacher)(made)["loss"], wanted)
    changed = made | {"truth": made["truth"] * (1 - made["mask"]), "target": made["truth"]}
    assert not torch.equal(TeacherObjective(teacher)(changed)["loss"], wanted)


def test_encoder_phase_compares_the_drawn_prior_with_the_teachers() -> None:
    student, teacher = networks()
    made = batch()
    joined = join(made["painted"], made["truth"] * (1 - made["mask"]), 1)
    prior = teacher.encode(joined, made["truth"])
    start = 0.0025980**0.5 * prior + (1 - 0.0025980) ** 0.5 * made["noise"]
    wanted = functional.l1_loss(student.draw(joined, start), prior)
    torch.testing.assert_close(EncoderObjective(student, teacher)(made)["loss"], wanted, rtol=1e-4, atol=1e-6)


def test_joint_phase_at_scale_one_counts_painted_pixels_alone() -> None:
    objective = JointObjective(*networks())
    made = batch()
    losses = objective(made)
    torch.testing.assert_close(losses["loss"], losses["pixels"] + losses["ipr"])
    nothing = objective(made | {"mask": torch.zeros_like(made["mask"])})
    assert nothing["pixels"] == 0
    joined = join(made["painted"], made["truth"] * (1 - made["mask"]), 1)
    _, ipr, _ = objective._draw(made)
    error = (objective.student.G(joined, ipr) - made["truth"]).abs() * made["mask"]
    torch.testing.assert_close(losses["pixels"], error.mean())


def test_joint_phase_at_other_scales_counts_all_pixels() -> None:
    made = batch(2)
    losses = JointObjective(*networks(2))(made | {"mask": torch.zeros_like(made["mask"])})
    assert losses["pixels"] > 0


def test_each_step_trains_its_own_parts() -> None:
    student, teacher = networks()
    critic, perceptual = Critic(4), Perceptual(narrower=16)
    assert trained(TeacherObjective(copy.deepcopy(teacher))) == {"teacher.G", "teacher.E"}
    assert trained(EncoderObjective(*networks())) == {"student.condition", "student.denoise"}
    every = {"student.G", "student.condition", "student.denoise"}
    assert trained(JointObjective(*networks())) == every
    adversarial = trained(AdversarialObjective(student, teacher, critic, perceptual))
    assert adversarial == every | {"critic.conv0", "critic.down", "critic.up", "critic.last"}


def test_adversarial_step_gives_each_side_the_gradient_of_its_own_loss() -> None:
    student, teacher = networks()
    torch.manual_seed(3)
    critic, perceptual = Critic(4).eval(), Perceptual(narrower=16)  # in eval mode spectral norms stand still
    objective = AdversarialObjective(student, teacher.requires_grad_(False), critic, perceptual)
    made = batch()
    objective(made)["loss"].backward()
    found = {
        name: parameter.grad.clone() for name, parameter in objective.named_parameters() if parameter.grad is not None
    }
    objective.zero_grad()

    joined, ipr, distance = objective._draw(made)
    out = student.G(joined, ipr)
    ones = torch.ones(2, 1, 32, 32)
    student_loss = (
        functional.l1_loss(out, made["truth"])
        + distance
        + perceptual(out, made["truth"])
        - functional.logsigmoid(critic(out)).mean()
    )
    wanted = dict(zip(*_gradients(student_loss, student), strict=True))
    critic_loss = -(functional.logsigmoid(critic(made["truth"])) * ones).mean()
    critic_loss = critic_loss - (functional.logsigmoid(-critic(out.detach())) * ones).mean()
    wanted_critic = dict(zip(*_gradients(critic_loss, critic), strict=True))
    for prefix, gradients in (("student.", wanted), ("critic.", wanted_critic)):
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[prefix + name], gradient, rtol=1e-4, atol=1e-6)


def _gradients(loss: Tensor, module: nn.Module) -> tuple[list[str], tuple[Tensor, ...]]:
    names, parameters = zip(*module.named_parameters(), strict=True)
    return list(names), torch.autograd.grad(loss, parameters, retain_graph=True)


def test_sharpened_targets_are_for_pixels_features_and_prior_but_not_for_the_critic() -> None:
    student, teacher = networks()
    objective = AdversarialObjective(student, teacher, Critic(4).eval(), Perceptual(narrower=16))
    made = batch()
    plain, sharpened = objective(made), objective(made | {"target": made["truth"].clamp(0.2, 0.8)})
    for name in ("pixels", "features", "ipr"):
        assert plain[name] != sharpened[name]
    # The student starts from the teacher's prior, so its output moves a little; the critic's truth stays.
    torch.testing.assert_close(plain["critic"], sharpened["critic"], rtol=1e-3, atol=1e-3)
