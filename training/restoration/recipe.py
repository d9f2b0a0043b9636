"""What a recipe of the restoration network says. Nothing here imports torch."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from services.diffusion.restoration.config import RestorationConfig
from training.recipes import PlanSettings, Recipe
from training.recipes.recipe import Settings

STAGE = "restoration"
Step = Literal["s1", "s2", "gan"]
ExportDtype = Literal["float32", "bfloat16", "float16"]


class RealESRGANSettings(Settings):
    """The published degradation; `contrast` is e of LLMGA.md §6.3."""

    kind: Literal["real-esrgan"]
    contrast: float = Field(ge=0, lt=1)


class SeamsSettings(Settings):
    """The mild one; each number is the end of its range, as in `training.data.degradations.Seams`."""

    kind: Literal["seams"]
    contrast: float = Field(0.08, ge=0, lt=1)
    brightness: float = Field(0.05, ge=0, lt=1)
    tint: float = Field(0.04, ge=0, lt=1)


class RestorationRecipe(Recipe):
    """A step of the training.

    Fields:
        step: `s1`, the teacher; `s2`, the network that is served; `gan`, the same against a discriminator.
        network: The network's shape, as the checkpoint's `config.json` has it.
        pictures: Folder of pictures, searched with all that it holds; without it, scenes of the tiny world.
        on_error: Whether a picture that cannot be used stops the run, or the next one takes its place.
        picture_px: Side of the square that is cut from a picture and degraded, and of the world's scenes.
        crop_px: Side of the square that is cut from that for training.
        mask_scale: Side of the masks' strokes and boxes over the published ones.
        teacher: Export of the step `s1`; for `s2` and `gan`.
        start: Export of the step `s2`; for `gan`.
        encoder_plan: The phase of `s2` before `plan` in which only its encoder and its denoiser learn.
        perceptual: Folder of VGG19's weights; for `gan`.
        critic_channels: Width of the discriminator; of `gan`.
        sharpened: Whether the targets of pixels and features are sharpened; of `gan` ("V2").
    """

    step: Step
    network: RestorationConfig
    degradation: Annotated[RealESRGANSettings | SeamsSettings, Field(discriminator="kind")]
    pictures: Path | None = None
    on_error: Literal["stop", "skip"] = "stop"
    picture_px: int = Field(400, ge=32)
    crop_px: int = Field(256, ge=32)
    mask_scale: float = Field(1.0, gt=0)
    teacher: Path | None = None
    start: Path | None = None
    encoder_plan: PlanSettings | None = None
    perceptual: Path | None = None
    critic_channels: int = Field(64, ge=1)
    sharpened: bool = False
    export_dtype: ExportDtype = "float32"

    @model_validator(mode="after")
    def _check(self) -> "RestorationRecipe":
        wanted = {
            "teacher": self.step != "s1",
            "encoder_plan": self.step == "s2",
            "start": self.step == "gan",
            "perceptual": self.step == "gan",
        }
        for name, is_wanted in wanted.items():
            if is_wanted != (getattr(self, name) is not None):
                raise ValueError(f"{name} is {'needed' if is_wanted else 'not taken'} by the step {self.step}")
        if self.sharpened and self.step != "gan":
            raise ValueError(f"sharpened is not taken by the step {self.step}")
        multiple = self.network.multiple * self.network.scale
        if self.crop_px % multiple or self.picture_px % self.network.scale:
            raise ValueError(f"crop_px must be a multiple of {multiple}, picture_px of {self.network.scale}")
        if self.crop_px > self.picture_px:
            raise ValueError("crop_px must not be above picture_px")
        return self

    def dry(self) -> "RestorationRecipe":
        """Return the same step with a network of a few thousand parameters, for `--dry-run`."""
        small = {
            "dim": 8,
            "num_blocks": (1, 1, 1, 1),
            "num_refinement_blocks": 1,
            "n_feats": 4,
            "n_encoder_res": 1,
        }
        side = 64
        changes = {
            "network": self.network.model_copy(update=small),
            "critic_channels": 4,
            "pictures": None,
            "picture_px": side,
            "crop_px": side,
            "mask_scale": side / self.picture_px,
            "plan": self.plan.dry(),
            "encoder_plan": self.encoder_plan.dry() if self.encoder_plan else None,
        }
        return self.model_copy(update=changes)
