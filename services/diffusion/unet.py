"""The one place where a UNet is asked: rows of several requests in, their noise predictions out."""

import time
from collections.abc import Sequence

import torch

from services.diffusion.loading import LoadedModel
from services.diffusion.phases import Rows
from shared import metrics


def predict(model: LoadedModel, requests: Sequence[Rows], bucket: int) -> list[tuple[torch.Tensor, bool]]:
    """Ask the UNet once; return each request's prediction, and whether all of it is finite.

    A prediction is float32 (rows, 4, h/8, w/8). The rows are padded to `bucket` with zeros, so that the
    shapes, and with them the order of every sum, do not depend on the company.
    """
    started = time.perf_counter()
    counts = [len(rows.sample) for rows in requests]
    sample = _padded([rows.sample.to(model.dtype) for rows in requests], bucket)
    timesteps = _padded([rows.timesteps.float() for rows in requests], bucket)  # exact: below 2**24
    embeds = _padded([rows.embeds for rows in requests], bucket)
    guidance = [rows.timestep_cond.to(model.dtype) for rows in requests if rows.timestep_cond is not None]
    pooled = [rows.pooled for rows in requests if rows.pooled is not None]
    time_ids = [rows.time_ids for rows in requests if rows.time_ids is not None]
    noise_pred = model.unet(
        sample,
        timesteps,
        encoder_hidden_states=embeds,
        timestep_cond=_padded(guidance, bucket) if guidance else None,
        added_cond_kwargs={"text_embeds": _padded(pooled, bucket), "time_ids": _padded(time_ids, bucket)}
        if pooled
        else None,
        return_dict=False,
    )[0].float()
    finite = torch.isfinite(noise_pred).flatten(1).all(1).tolist()  # the only wait for the device
    metrics.UNET_ROWS.observe(sum(counts))
    metrics.UNET_SECONDS.observe(time.perf_counter() - started)
    answers: list[tuple[torch.Tensor, bool]] = []
    start = 0
    for count in counts:
        stop = start + count
        answers.append((noise_pred[start:stop], all(finite[start:stop])))
        start = stop
    return answers


def _padded(parts: Sequence[torch.Tensor], bucket: int) -> torch.Tensor:
    rows = sum(len(part) for part in parts)
    padding = parts[0].new_zeros((bucket - rows, *parts[0].shape[1:]))
    return torch.cat([*parts, padding])
