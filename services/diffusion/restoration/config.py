"""What a restoration checkpoint says about itself: `config.json` beside its weights.

The field names and the defaults are those of the published networks (LLMGA.md §6.1); a smaller network names its own
numbers. Nothing here imports torch.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Stages of the U-Net: each halves the sides of the one before.
STAGES = 4
# The reference has three channels per pixel of the finished picture; so has the picture that is restored.
RGB = 3
# The network works at a quarter of the finished picture's sides, whatever the scale (LLMGA.md §6.2, "Entry").
WORKING_FACTOR = 4

Scale = Literal[1, 2, 4]
PerStage = Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(min_length=STAGES, max_length=STAGES)]


class RestorationConfig(BaseModel):
    """The shape of a DiffRIR network."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: Scale
    dim: int = Field(default=64, ge=8, le=512)
    num_blocks: PerStage = (13, 1, 1, 1)
    num_refinement_blocks: int = Field(default=13, ge=0, le=64)
    heads: PerStage = (1, 2, 4, 8)
    ffn_expansion_factor: float = Field(default=2.2, gt=0, le=8)
    n_feats: int = Field(default=64, ge=4, le=512)  # of the encoder; its vector has four times as many
    n_encoder_res: int = Field(default=9, ge=0, le=64)
    n_denoise_res: int = Field(default=1, ge=0, le=64)
    timesteps: int = Field(default=4, ge=1, le=1000)
    linear_start: float = Field(default=0.1, gt=0, lt=1)
    linear_end: float = Field(default=0.99, gt=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for stage, heads in enumerate(self.heads):
            if self.dim * 2**stage % heads:
                raise ValueError(f"heads[{stage}] must divide its {self.dim * 2**stage} channels")
        return self

    @property
    def ipr_channels(self) -> int:
        """Length of the image prior representation."""
        return 4 * self.n_feats

    @property
    def input_channels(self) -> int:
        """Channels of the picture with its reference: 6, 15 or 51 (LLMGA.md §6.1)."""
        return RGB + RGB * self.scale**2

    @property
    def entry_factor(self) -> int:
        """By how much the input is unshuffled before the first convolution (LLMGA.md §6.2, "Entry")."""
        return WORKING_FACTOR // self.scale

    @property
    def entry_channels(self) -> int:
        """Channels that reach the first convolution: 96, 60 or 51."""
        return self.input_channels * self.entry_factor**2

    @property
    def multiple(self) -> int:
        """What the sides of the input must be multiples of: 32, 16 or 8 (LLMGA.md §6.1)."""
        return self.entry_factor << (STAGES - 1)
