"""The losses of the steps, each a module that holds its networks and returns its loss of a batch (LLMGA.md §6.3)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.diffusion.restoration.network import DiffRIRS1, DiffRIRS2, join
from training.restoration.adversary import Critic, Perceptual
from training.runs import Batch

Losses = dict[str, Tensor]


def loss_of(model: Any, batch: Batch) -> Losses:
    """Call an objective, as `training.runs.fit` does."""
    losses: Losses = model(batch)
    return losses


def _joined(batch: Batch, scale: int) -> Tensor:
    return join(batch["painted"], batch["truth"] * (1 - batch["mask"]), scale)


class TeacherObjective(nn.Module):
    """S1: L1 to the truth."""

    def __init__(self, teacher: DiffRIRS1) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, batch: Batch) -> Losses:
        out = self.teacher(_joined(batch, self.teacher.config.scale), batch["truth"])
        return {"loss": functional.l1_loss(out, batch["truth"])}

    @staticmethod
    def trainable(name: str) -> bool:
        """Return whether a parameter learns in this step."""
        return name.startswith("teacher.")


class _StudentObjective(nn.Module):
    """What the phases of S2 share: the prior is drawn from the teacher's, drowned in noise, with gradient."""

    def __init__(self, student: DiffRIRS2, teacher: DiffRIRS1) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher

    def _draw(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the input, the prior that is drawn and its distance from the teacher's.

        The published KL term is computed there, but not used.
        """
        joined = _joined(batch, self.student.config.scale)
        with torch.no_grad():
            wanted = self.teacher.encode(joined, batch["target"])
        ipr = self.student.draw(joined, self.student.diffusion.to_noise(wanted, batch["noise"]))
        return joined, ipr, functional.l1_loss(ipr, wanted)


class EncoderObjective(_StudentObjective):
    """S2, first phase: only the encoder and the denoiser learn, from the prior alone."""

    def forward(self, batch: Batch) -> Losses:
        _, _, distance = self._draw(batch)
        return {"loss": distance}

    @staticmethod
    def trainable(name: str) -> bool:
        """Return whether a parameter learns in this step."""
        return name.startswith(("student.condition.", "student.denoise."))


class JointObjective(_StudentObjective):
    """S2, second phase: L1 of pixels and of the prior; at scale 1 only painted pixels count."""

    def forward(self, batch: Batch) -> Losses:
        joined, ipr, distance = self._draw(batch)
        out, truth = self.student.G(joined, ipr), batch["truth"]
        if self.student.config.scale == 1:
            out = out * batch["mask"] + truth * (1 - batch["mask"])
        pixels = functional.l1_loss(out, truth)
        return {"loss": pixels + distance, "pixels": pixels, "ipr": distance}

    @staticmethod
    def trainable(name: str) -> bool:
        """Return whether a parameter learns in this step."""
        return name.startswith("student.")


class AdversarialObjective(_StudentObjective):
    """S2 against the critic, and the critic against S2, in one backward pass.

    The published loop updates one after the other, but from outputs of before both updates; both have the same
    optimizer and rate, so one step for both is the same. Outputs are not composited here.
    """

    def __init__(self, student: DiffRIRS2, teacher: DiffRIRS1, critic: Critic, perceptual: Perceptual) -> None:
        super().__init__(student, teacher)
        self.critic = critic
        self.perceptual = perceptual

    def forward(self, batch: Batch) -> Losses:
        joined, ipr, distance = self._draw(batch)
        out = self.student.G(joined, ipr)
        pixels = functional.l1_loss(out, batch["target"])
        features = self.perceptual(out, batch["target"])
        self.critic.requires_grad_(False)  # the student's loss is no reason for the critic to change
        fooled = _bce(self.critic(out), real=True)
        self.critic.requires_grad_(True)
        real, fake = _bce(self.critic(batch["truth"]), real=True), _bce(self.critic(out.detach()), real=False)
        return {
            "loss": pixels + distance + features + fooled + real + fake,
            "pixels": pixels,
            "ipr": distance,
            "features": features,
            "fooled": fooled,
            "critic": real + fake,
        }

    @staticmethod
    def trainable(name: str) -> bool:
        """Return whether a parameter learns in this step."""
        return name.startswith(("student.", "critic."))


def _bce(logits: Tensor, *, real: bool) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))
