"""From what was rendered to the picture that the client gets, where it was painted in part.

With a restoration network its output takes the place of what was rendered: out * mask + (1 - mask) * known (LLMGA.md
§6.1). Without one, what was rendered is moved to the known color and blended over the feather band. The network runs
on the device thread; geometry, blending and scores are for worker threads.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, TypeVarTuple

import numpy as np
from PIL import Image

from services.diffusion.canvas import Canvas
from services.diffusion.engine import Engine
from services.diffusion.inputs import Inputs
from services.diffusion.restoration.restorer import Painting, Restorer
from services.diffusion.restoration.together import Restorations
from services.diffusion.seams import SeamScore, seam_score
from services.diffusion.sources import Pixels
from shared import metrics
from shared.contracts import ArtifactName, EventType, FieldProblem, GenerationRequest, Restore
from shared.errors import InvalidRequest
from shared.jobs import Claim
from shared.media import PAINTED, PAINTED_FROM

# Seam score from which `auto` restores again. Of 200 drawn scenes without any seam 12 % score as much under DiffRIR's
# masks, by edges of their own; of the same with holes degraded as the network's training has them, 60 %.
SECOND_PASS_FROM = 10.0

Method = Literal["diffrir", "blend", "off"]
Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


@dataclass(frozen=True, slots=True, eq=False)
class Finish:
    """A finished picture, uint8 (height, width, 3), and what its record says of the finishing.

    artifacts: pictures on the way that are kept beside it, uint8 (h, w) or (h, w, 3).
    """

    pixels: Pixels
    parameters: dict[str, Any]
    artifacts: Mapping[ArtifactName, Pixels] = field(default_factory=dict)


def check_offered(request: GenerationRequest, restorer: Restorer | None) -> None:
    """Refuse a request for a network that is not there.

    Raises:
        InvalidRequest: that is so.
    """
    if request.restore is Restore.ON and restorer is None:
        problem = FieldProblem(field="restore", code="not_offered", message="this worker has no restoration network")
        raise InvalidRequest("The renderer does not have what is asked of it.", errors=[problem])


class Finisher:
    """Finishes the pictures of a worker's jobs."""

    def __init__(self, engine: Engine, files: Executor, restorer: Restorer | None) -> None:
        """`files`: worker threads."""
        self._files = files
        self._restorations = None if restorer is None else Restorations(engine, restorer)

    async def finish(
        self, claim: Claim, inputs: Inputs, index: int, seed: int, rendered: Pixels, *, mask: Pixels | None = None
    ) -> Finish:
        """Return the finished picture of a job; events go out meanwhile. `mask`: of an edit.

        Raises:
            JobError: the network failed.
            LeaseLost: the job was canceled or taken away.
        """
        canvas = inputs.canvas
        is_debugged = claim.job.request.debug
        if canvas is None:
            return Finish(rendered, *_of_whole(inputs, mask, is_debugged=is_debugged))
        run = self._in_thread
        placed = await run(canvas.placed, rendered)
        before = await run(lambda: scored(canvas, canvas.mixed(placed, 0)))
        mode, band_px, network = claim.job.request.restore, 0, {}
        if mode is Restore.OFF or self._restorations is None:
            method: Method = "off" if mode is Restore.OFF else "blend"
            pixels, band_px = await run(canvas.blended, rendered), canvas.band_px
            after = await run(scored, canvas, pixels)
        else:
            method, network = "diffrir", {"restoration_sha256": self._restorations.sha256}
            await claim.emit(EventType.RESTORE_STARTED, {"index": index})
            pixels = await self._restored(claim, self._restorations, canvas, placed, band_px, seed)
            after = await run(scored, canvas, pixels)
            if mode is Restore.AUTO and canvas.band_px and after is not None and after.total >= SECOND_PASS_FROM:
                again = await self._restored(claim, self._restorations, canvas, placed, canvas.band_px, seed)
                score = await run(scored, canvas, again)
                if score is not None and score.total < after.total:
                    pixels, band_px, after = again, canvas.band_px, score
        if after is not None:
            metrics.SEAM_SCORE_LEVELS.labels(method).observe(after.total)
        told: dict[str, Any] = {"restoration": method, **network, "band_px": band_px}
        told["seam_score"] = {"before": _told(before), "after": _told(after)}
        artifacts = await run(_of_part, canvas, placed) if is_debugged else {}
        return Finish(pixels, told, artifacts)

    async def _restored(
        self, claim: Claim, restorations: Restorations, canvas: Canvas, placed: Pixels, band_px: int, seed: int
    ) -> Pixels:
        """Return the whole picture with its painted part, and a band around it, as the network makes them."""
        painting = await self._in_thread(painting_of, canvas, placed, band_px, seed, restorations.scale)
        finished = await restorations.restore(claim, painting)
        return await self._in_thread(mixed, canvas, finished, band_px)

    async def _in_thread(self, work: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._files, work, *arguments)


def painting_of(canvas: Canvas, placed: Pixels, band_px: int, seed: int, scale: int) -> Painting:
    """Return what a network gets of a canvas, padded to multiples of its scale.

    placed: what was rendered, in the window (`Canvas.placed`). A network that enlarges gets it smaller by its scale.
    """
    mask = canvas.visible(band_px)
    height, width = mask.shape
    beyond = (0, -height % scale), (0, -width % scale)
    known = np.pad(canvas.pixels[canvas.window], (*beyond, (0, 0)), mode="edge")
    painted = np.pad(placed, (*beyond, (0, 0)), mode="edge")
    if scale > 1:
        size = painted.shape[1] // scale, painted.shape[0] // scale
        painted = np.asarray(Image.fromarray(painted).resize(size, Image.Resampling.LANCZOS))
    white = np.pad(np.where(mask, PAINTED, 0).astype(np.uint8), beyond)
    return Painting(painted, white, known, seed)


def mixed(canvas: Canvas, finished: Pixels, band_px: int) -> Pixels:
    """Return the whole picture with what a network made of its painting."""
    height, width, _ = canvas.pixels[canvas.window].shape
    return canvas.mixed(finished[:height, :width], band_px)


def scored(canvas: Canvas, pixels: Pixels) -> SeamScore | None:
    """Return the seam score of a whole picture that was painted on a canvas."""
    return seam_score(pixels[canvas.window], canvas.mask[canvas.window] >= PAINTED_FROM)


def _of_whole(
    inputs: Inputs, mask: Pixels | None, *, is_debugged: bool
) -> tuple[dict[str, Any], dict[ArtifactName, Pixels]]:
    """Return what the record says of a picture that was made as a whole, and what is kept beside it."""
    artifacts = {}
    if inputs.source is not None and is_debugged:
        artifacts[ArtifactName.INPUT] = inputs.source.pixels
    if mask is None:
        return {}, artifacts
    return {"mask_share": round(float((mask > 0).mean()), 4)}, {ArtifactName.MASK: mask, **artifacts}


def _of_part(canvas: Canvas, placed: Pixels) -> dict[ArtifactName, Pixels]:
    """Return what is kept beside a picture that was painted in part."""
    is_known = canvas.mask < PAINTED_FROM
    return {
        ArtifactName.MASK: canvas.mask,
        ArtifactName.MASKED_INPUT: canvas.pixels * is_known[..., None],
        ArtifactName.UNRESTORED: canvas.mixed(placed, 0),
    }


def _told(score: SeamScore | None) -> dict[str, float] | None:
    if score is None:
        return None
    return {name: round(value, 2) for name, value in (score._asdict() | {"total": score.total}).items()}
