"""What a request costs, in units that an operator can count on.

One unit is the work of a reference picture: 512x512 pixels in 50 guided steps. The UNet does nearly all of it, and its
work grows with pixels, steps and rows: a guided step asks it for two rows, an unguided one for one. A prompt counts as
a tenth, so that prompts alone are not free; that number is a choice, not a measurement.
"""

import math

from shared.contracts import GenerationRequest, PromptMode, Task
from shared.contracts.generation import parse_size
from shared.contracts.limits import UNIT, Charge

REFERENCE_WORK = 512 * 512 * 50 * 2  # pixels x steps x rows
PROMPT_UNITS = 0.1
EDIT_MASK_ROWS = 20  # ten maps of the difference between two captions


def charge_of(request: GenerationRequest, *, is_written: bool = False) -> Charge:
    """Return the charge of a request that was completed (`gateway.resolve`); `is_written`: its prompt is there."""
    prompt = 0 if is_written or request.prompt_mode is PromptMode.VERBATIM else round(PROMPT_UNITS * UNIT)
    if request.task is Task.PROMPT or request.size is None or request.num_inference_steps is None:
        return Charge(prompt=prompt)
    width, height = parse_size(request.size)
    if request.task is Task.EDIT:
        rows: float = _edit_rows(request.num_inference_steps, has_mask=request.mask is not None)
    else:
        steps = math.ceil(request.num_inference_steps * (request.strength or 1))  # those that are made
        rows = steps * _rows(request)
    work = request.n * width * height * rows
    return Charge(prompt=prompt, render=math.ceil(work / REFERENCE_WORK * UNIT))


def _rows(request: GenerationRequest) -> float:
    """Return the rows of a step, on average over the steps."""
    if request.guidance_scale is None or request.guidance_scale <= 1:
        return 1
    start, end = request.guidance_interval
    return 1 + end - start


def _edit_rows(steps: int, *, has_mask: bool) -> int:
    """Return the rows of an edit: two for each step into noise and out of it, and those that find the mask."""
    return 4 * steps + (0 if has_mask else EDIT_MASK_ROWS)
