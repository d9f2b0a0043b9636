"""The pictures that a job starts from: out of the artifact store, checked again, made as large as they are rendered.

The gateway has refused what cannot be painted before it took the job; a record from elsewhere, or a picture that has
expired meanwhile, ends here with the same words.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from services.diffusion.canvas import Canvas, covering_latents
from services.diffusion.sources import Mask, Pixels, Source
from shared.artifacts import ArtifactStore
from shared.contracts import FieldProblem, GenerationRequest, Task
from shared.contracts.generation import parse_size
from shared.errors import InternalError, InvalidRequest, NotFound
from shared.media import PAINTED_FROM, check_canvas, check_mask, decode_image, mask_of


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """What a job's pictures start from, and what its record says of it."""

    source: Source | None = None
    canvas: Canvas | None = None
    parameters: dict[str, Any] = field(default_factory=dict)


def load_inputs(request: GenerationRequest, store: ArtifactStore, *, tenant: str) -> Inputs:
    """Return what a request starts from; reads and decodes, so call it from a worker thread.

    Raises:
        InvalidRequest: a picture is not there any more, or they do not fit each other.
        InternalError: the record lacks a value that the gateway fills in.
    """
    is_free = request.task not in (Task.INPAINT, Task.OUTPAINT, Task.EDIT)
    if is_free and request.strength is None:
        return Inputs()
    if request.image is None or request.size is None:
        raise InternalError("The job reached the renderer incomplete.")
    size = parse_size(request.size)
    pixels = _load(store, request.image, "image", tenant)
    parameters: dict[str, Any] = {"image": request.image}
    if is_free:
        strength = request.strength or 1.0
        return Inputs(Source(fitted(pixels, size), None, strength), None, parameters | {"strength": strength})
    height, width, _ = pixels.shape
    mask = None
    if request.mask is not None:
        mask = mask_of(_load(store, request.mask, "mask", tenant))
        check_mask(mask, width, height)
        parameters["mask"] = request.mask
    if request.task is Task.EDIT:
        allowed = None if mask is None else fitted_mask(mask >= PAINTED_FROM, size)
        return Inputs(Source(fitted(pixels, size), allowed), None, parameters)
    parameters |= {"feather_px": request.feather_px}
    if request.outpaint is not None:
        check_canvas(width, height, request.outpaint)
        canvas = Canvas.around(pixels, request.outpaint, size, request.feather_px)
        parameters["outpaint"] = request.outpaint.model_dump()
    elif mask is not None:
        canvas = Canvas(pixels, mask, size, request.feather_px)
    else:
        raise InternalError("The job reached the renderer incomplete.")
    source = canvas.source(1.0 if request.strength is None else request.strength)
    return Inputs(source, canvas, parameters | {"strength": source.strength})


def fitted(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Return a picture at a size (width, height), cut at two edges where its aspect ratio is another."""
    return np.array(ImageOps.fit(Image.fromarray(pixels), size, Image.Resampling.LANCZOS))


def fitted_mask(painted: Mask, size: tuple[int, int]) -> Mask:
    """Return the mask of a picture as it covers the `fitted` one.

    Raises:
        InvalidRequest: all that is painted was cut away.
    """
    share = ImageOps.fit(Image.fromarray(painted.astype(np.float32)), size, Image.Resampling.BOX)
    mask = covering_latents(np.asarray(share) > 0)
    if not mask.any():
        message = f"is white only where the image is cut to {size[0]}x{size[1]}; ask for a size of its aspect ratio"
        problem = FieldProblem(field="mask", code="nothing_to_paint", message=message)
        raise InvalidRequest("The mask keeps the whole image.", errors=[problem])
    return mask


def _load(store: ArtifactStore, name: str, place: str, tenant: str) -> Pixels:
    try:
        data, _ = store.get(name, tenant=tenant)
    except NotFound as error:
        problem = FieldProblem(field=place, code="not_found", message="there is no picture of this id any more")
        raise InvalidRequest("A picture of the request is not there any more.", errors=[problem]) from error
    return decode_image(data)
