"""What pictures are to be made: everything that decides one, before anything is done for it."""

from dataclasses import dataclass

from services.diffusion.adapters import AdapterUse
from services.diffusion.conditioning.prompts import PromptPair
from services.diffusion.sources import Source
from shared.contracts import Lane, Scheduler

LATENT_PX = 8  # pixels per latent, of every autoencoder served
LATENT_CHANNELS = 4


@dataclass(frozen=True, slots=True)
class Edit:
    """What an edit has beside other pictures, whose source it never lacks.

    strength: the share of the noise schedule that the source is taken back, in (0, 1]; source_guidance_scale: how
    strictly its own caption is followed on that way; keeps_unmasked: whether what the mask leaves out stays as it is.
    """

    strength: float
    source_guidance_scale: float
    keeps_unmasked: bool = True


@dataclass(frozen=True, slots=True)
class Picture:
    """What is to be made: everything that decides the picture, and how urgent it is."""

    model: str
    prompts: PromptPair
    width: int
    height: int
    seed: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: Scheduler
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    clip_skip: int = 0
    timesteps: tuple[int, ...] | None = None  # None: the scheduler's own
    source: Source | None = None  # None: pure noise
    edit: Edit | None = None
    adapters: tuple[AdapterUse, ...] = ()  # by name, so that one set is one key
    lane: Lane = Lane.INTERACTIVE
    deterministic: bool = True
    previews: int = 0
