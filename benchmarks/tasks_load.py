"""The mixed load: jobs of all tasks in turn, over scenes as the shipped pair knows them."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.diffusion.sources import Pixels
from shared.contracts import GenerationPrompt, Outpaint, PromptMode, Scheduler, Task
from shared.contracts.generation import DEFAULT_EDIT_STRENGTH, DEFAULT_SOURCE_GUIDANCE_SCALE, EDIT_SCHEDULER
from training.world import caption_of, draw
from training.world.drawing import SIZE, window
from training.world.edits import sample_edit

TASKS = (Task.TEXT_TO_IMAGE, Task.SIMILAR, Task.INPAINT, Task.OUTPAINT, Task.EDIT)
STEPS = (4, 8, 20)
SIZES = ("128x128",) * 4 + ("96x128",)  # the pair's own, and a rare one
GUIDANCE_SCALES = (1.0, 2.0, 3.0)  # without guidance, the pair's own, and more
SCHEDULERS = (Scheduler.DPMPP_2M, Scheduler.DDIM, Scheduler.EULER_ANCESTRAL, Scheduler.UNIPC)
EXTENSION_PX = 32
STRENGTH = 0.75


@dataclass(frozen=True, slots=True)
class Wanted:
    """A job before it is submitted; its pictures are not in a store yet.

    prompt: what the language model has written, None if it is not asked.
    """

    values: Mapping[str, Any]
    pictures: Mapping[str, Pixels]
    prompt: GenerationPrompt | None

    @property
    def task(self) -> Task:
        """What is to be made."""
        task: Task = self.values["task"]
        return task


def drawn(number: int) -> Wanted:
    """Return the job of a number: tasks in turn; half of the edits look for their masks."""
    rng, task = random.Random(number), TASKS[number % len(TASKS)]
    change = sample_edit(number)
    before, after = caption_of(change.before), caption_of(change.after)
    values: dict[str, Any] = {
        "task": task,
        "instruction": change.instruction if task is Task.EDIT else after,
        "prompt_mode": PromptMode.REFINE if task in (Task.SIMILAR, Task.EDIT) else PromptMode.VERBATIM,
        "model": "sd15-inpainting" if task in (Task.INPAINT, Task.OUTPAINT) else "sd15",
        "size": rng.choice(SIZES),
        "seed": number,
        "num_inference_steps": rng.choice(STEPS),
        "guidance_scale": rng.choice(GUIDANCE_SCALES),
        "scheduler": EDIT_SCHEDULER if task is Task.EDIT else rng.choice(SCHEDULERS),
    }
    pictures = {} if task is Task.TEXT_TO_IMAGE else {"image": draw(change.before)}
    prompt = None
    if task is Task.SIMILAR:
        values["strength"] = STRENGTH
        prompt = GenerationPrompt(text=after, source="mllm")
    if task is Task.OUTPAINT:
        values["outpaint"] = Outpaint(left=EXTENSION_PX, right=EXTENSION_PX)
    if task is Task.EDIT:
        values |= {"edit_strength": DEFAULT_EDIT_STRENGTH, "source_guidance_scale": DEFAULT_SOURCE_GUIDANCE_SCALE}
        prompt = GenerationPrompt(text=after, source="mllm", source_caption=before)
    if task is Task.INPAINT or (task is Task.EDIT and number // len(TASKS) % 2):
        mask = np.zeros((SIZE, SIZE, 3), np.uint8)
        mask[window(rng.choice(change.before.objects), SIZE)] = 255
        pictures["mask"] = mask
    return Wanted(values, pictures, prompt)
