"""What a worker can do: measured on its device at start-up, and announced."""

import logging
import time
from collections.abc import Mapping

import torch

from services.diffusion.batching import MOST_ROWS, Buckets
from services.diffusion.checkpoints import TIME_IDS, CheckpointFiles
from services.diffusion.conditioning.prompts import CHUNK, capacity
from services.diffusion.execution import Execution
from services.diffusion.faults import is_out_of_memory
from services.diffusion.library import Shelf
from services.diffusion.loading import LoadedModel
from services.diffusion.phases import Rows
from services.diffusion.pictures import LATENT_PX
from services.diffusion.solvers import default_scheduler
from services.diffusion.stages import release_memory
from services.diffusion.unet import predict
from shared.contracts import Scheduler, ServedModel
from shared.contracts.generation import MAX_SIDE_PX, MIN_SIDE_PX, PromptEncoding

CALLS = 3  # of each bucket, of which the fastest counts
SLACK = 1.08  # a bucket twice as large has to be this much faster per row: it takes nearly twice as long
MAX_SIDE_FACTOR = 2  # of the model's own side; beyond it a UNet repeats its motif

_log = logging.getLogger("llmga.diffusion")


def profile(model: LoadedModel, candidates: Buckets) -> Buckets:
    """Return the buckets that fit the device, and those of them that the deterministic class may use.

    Also the warm-up: every bucket is called at the model's own size. One row goes through each bucket at two
    places in two companies, there, at the smallest size, whose matrices are low, and at an odd one, whose rows do not
    fill vectors; buckets whose results are the same bits belong together, and the largest such set serves the
    deterministic class.
    """
    results: dict[int, torch.Tensor] = {}
    for size in candidates.sizes:
        try:
            first, second = _answers(model, size, 0), _answers(model, size, size - 1)
        except Exception as error:
            if not is_out_of_memory(error) or size == candidates.sizes[0]:
                raise
            release_memory(model.device)
            _log.warning("a bucket does not fit the memory", extra={"model": model.name, "rows": size})
            break
        if torch.equal(first, second):
            results[size] = first
    fitting = [size for size in candidates.sizes if size <= max(results, default=candidates.sizes[0])]
    stable = _largest_agreement(results)
    if not stable:
        _log.error("no bucket is bit-stable: pictures depend on their company", extra={"model": model.name})
        stable = fitting[-1:]
    return Buckets(fitting, stable)


def worthwhile(model: LoadedModel, buckets: Buckets) -> Buckets:
    """Return the buckets, timed, without those that only make everybody wait for longer.

    The largest that stays is the smallest within `SLACK` of the best time per row, at the model's own size; one that
    every request of the deterministic class fits stays in any case.
    """
    call_s = {size: min(_call_s(model, size) for _ in range(CALLS)) for size in buckets.sizes}
    per_row_s = {size: seconds / size for size, seconds in call_s.items()}
    best = min(per_row_s.values())
    largest = next(size for size in buckets.sizes if per_row_s[size] <= SLACK * best)
    largest = max(largest, next((size for size in buckets.stable if size >= MOST_ROWS), buckets.stable[-1]))
    told = {str(size): round(1_000 * seconds, 2) for size, seconds in per_row_s.items()}
    _log.info("time per row", extra={"model": model.name, "ms": told, "largest": largest})
    kept, stable = ([size for size in sizes if size <= largest] for sizes in (buckets.sizes, buckets.stable))
    return Buckets(kept, stable, call_s)


def _call_s(model: LoadedModel, bucket: int) -> float:
    started = time.perf_counter()
    answer(model, bucket, 0).cpu()  # waits for the device
    return time.perf_counter() - started


def _largest_agreement(results: dict[int, torch.Tensor]) -> list[int]:
    sets = [[other for other in results if torch.equal(results[other], results[size])] for size in results]
    return max(sets, key=lambda members: (len(members), max(members)), default=[])


def _answers(model: LoadedModel, bucket: int, place: int) -> torch.Tensor:
    smallest = MIN_SIDE_PX // LATENT_PX
    sides = (model.files.sample_size, smallest, smallest + 1)
    return torch.cat([answer(model, bucket, place, side=side).flatten() for side in sides])


def answer(
    model: LoadedModel, bucket: int, place: int, tokens: int = CHUNK, *, side: int | None = None
) -> torch.Tensor:
    """Return what the UNet says to one fixed row at this place among others, at the model's own size or another one.

    side: in latents.
    """
    side = side or model.files.sample_size
    channels = int(model.files.unet["cross_attention_dim"])
    row, company = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1 + place)

    def drawn(*shape: int) -> torch.Tensor:
        tensor = torch.randn((bucket, *shape), generator=company)
        tensor[place] = torch.randn(shape, generator=row)
        return tensor.to(model.device)

    guidance, pooled = model.guidance_channels, model.pooled_channels
    timesteps = torch.randint(0, 1_000, (bucket,), generator=company)
    timesteps[place] = 500
    rows = Rows(
        sample=drawn(model.unet_channels, side, side),
        timesteps=timesteps.to(model.device),
        embeds=drawn(tokens, channels).to(model.dtype),
        timestep_cond=None if guidance is None else drawn(guidance),
        pooled=None if pooled is None else drawn(pooled).to(model.dtype),
        time_ids=None if pooled is None else drawn(TIME_IDS),
    )
    with torch.inference_mode():
        noise_pred, _ = predict(model, [rows], bucket)[0]
    return noise_pred[place].clone()


def served_models(
    shelves: Mapping[str, Shelf], default: str, execution: Execution, *, restores: bool = False
) -> list[ServedModel]:
    """Return what is announced of checkpoints, loaded or not.

    `default`: the one for requests that name none; `restores`: whether there is a restoration network.
    """
    return [
        _served(name, shelf.files, is_default=name == default).model_copy(
            update={
                "adapters": [adapter.name for adapter in shelf.adapters],
                "restores": restores,
                "dtype": str(execution.dtype).removeprefix("torch."),
                "quantization": None if execution.quantization == "none" else execution.quantization,
            }
        )
        for name, shelf in shelves.items()
    ]


def _served(name: str, files: CheckpointFiles, *, is_default: bool) -> ServedModel:
    side_px = files.sample_size * LATENT_PX
    return ServedModel(
        name=name,
        default=is_default,
        tasks=list(files.tasks),
        kind=files.kind,
        size=f"{side_px}x{side_px}",
        max_side_px=min(MAX_SIDE_FACTOR * side_px, MAX_SIDE_PX),
        num_inference_steps=files.serving.num_inference_steps,
        guidance_scale=files.serving.guidance_scale,
        scheduler=files.serving.scheduler or default_scheduler(files.scheduler),
        schedulers=list(Scheduler),
        prompt_encodings=list(PromptEncoding),
        max_prompt_tokens={encoding: capacity(encoding, is_sdxl=files.kind == "sdxl") for encoding in PromptEncoding},
    )
