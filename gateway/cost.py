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


def charge_of(request: GenerationRequest) -> Charge:
    """Return the charge of a request that was completed (`gateway.resolve`)."""
    prompt = 0 if request.prompt_mode is PromptMode.VERBATIM else round(PROMPT_UNITS * UNIT)
    if request.task is Task.PROMPT or request.size is None or request.num_inference_steps is None:
        return Charge(prompt=prompt)
    width, height = parse_size(request.size)
    steps = math.ceil(request.num_inference_steps * (request.strength or 1))  # those that are made
    work = request.n * width * height * steps * _rows(request)
    return Charge(prompt=prompt, render=math.ceil(work / REFERENCE_WORK * UNIT))


def _rows(request: GenerationRequest) -> float:
    """Return the rows of a step, on average over the steps."""
    if request.guidance_scale is None or request.guidance_scale <= 1:
        return 1
    start, end = request.guidance_interval
    return 1 + end - start
