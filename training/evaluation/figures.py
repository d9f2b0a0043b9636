"""The figures of the tiny pair: one function per claim, each over scenes that training never had.

A figure is numbers between 0 and 1 (levels and dB for restoration) by row, with the goal that it is held against.
Scenes are drawn from the split by number, so a figure is the same wherever and in whatever order it is made.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from services.diffusion.restoration.restorer import Restorer
from services.diffusion.seams import Mask
from services.mllm.instructions import Writing
from shared.contracts.generation import MAX_STEPS
from training.data.degradations import Seams
from training.data.masks import SD_STAGE2, draw_mask
from training.evaluation.judge import read
from training.evaluation.painting import Filler, Painter
from training.evaluation.scores import (
    Score,
    score_caption,
    score_picture,
    score_prompt,
    score_request,
    total,
)
from training.evaluation.writing import Ask, Writer
from training.restoration.figures import Case, Figures, cases, compared, measure
from training.world.captions import caption_of
from training.world.drawing import SIZE, Pixels, coverage, draw, window
from training.world.edits import sample_edit
from training.world.objects import MAX_OBJECTS, Object, Scene
from training.world.requests import Request, sample_request
from training.world.scenes import sample_scene
from training.world.splits import Split, object_is_held_out
from training.world.words import Language

if TYPE_CHECKING:
    from training.evaluation.serving import Gateway

Row = dict[str, float]

_PUBLISHED_SIDE = 512  # pixels, which the masks' numbers are for
_MOSTLY = 0.6  # share of an object that a hole must take for the object to be the hole's
_LEFT = 0.1  # share of an object that may be left for the hole to be asked for it
_LIKE = 0x9E3779B1  # a number for seeds of noise that have nothing to do with those of scenes


@dataclass(frozen=True)
class Sample:
    """Which scenes a figure is of."""

    count: int
    split: Split = "held_out"
    seed: int = 0

    def numbers(self) -> range:
        """Return the seeds of the scenes."""
        return range(self.seed, self.seed + self.count)

    def noise(self) -> list[int]:
        """Return the seeds of the pictures' noise."""
        return [number * _LIKE % 2**32 for number in self.numbers()]


@dataclass
class Figure:
    """The numbers of one claim."""

    name: str
    goal: str
    sample: Sample
    rows: dict[str, Row] = field(default_factory=dict)
    pairs: list[tuple[Pixels, Pixels]] = field(default_factory=list)  # what a contact sheet shows side by side

    def to_json(self) -> dict[str, object]:
        """Return what is written beside the weights."""
        return {"name": self.name, "goal": self.goal, "sample": asdict(self.sample), "rows": self.rows}


def long_captions(sample: Sample, painter: Painter) -> Figure:
    """(a) Draw long captions as they are, and let the judge compare the pictures with their scenes."""
    figure = Figure("long captions", "color_and_place >= 0.90, also_shape >= 0.80", sample)
    scenes = [sample_scene(number, sample.split) for number in sample.numbers()]
    pictures = painter.render([caption_of(scene) for scene in scenes], sample.noise())
    figure.rows |= _drawn(scenes, pictures)
    figure.pairs = list(zip(map(draw, scenes), pictures, strict=True))
    return figure


def requests(sample: Sample, painter: Painter, writer: Writer, language: Language = "en") -> Figure:
    """(b), (g) Draw short requests: as they are, and by the captions that the language model writes for them."""
    goal = "with the language model: also_shape >= 0.80, and twice what is drawn without it"
    figure = Figure("requests", goal if language == "en" else "also_shape >= 0.75", sample)
    asked = [sample_request(number, sample.split, language)[1] for number in sample.numbers()]
    captions = writer.write([Ask(Writing.TEXT_TO_IMAGE, request.text) for request in asked])
    figure.rows |= _by_kind("captions", asked, lambda index: score_prompt(asked[index], captions[index]))
    pictures = painter.render(captions, sample.noise())
    figure.rows |= _by_kind("with", asked, lambda index: score_request(asked[index], read(pictures[index])))
    # The bare words, without "please draw": what suits a diffusion model best.
    raw = painter.render([request.words for request in asked], sample.noise())
    figure.rows |= _by_kind("without", asked, lambda index: score_request(asked[index], read(raw[index])))
    figure.pairs = list(zip(raw, pictures, strict=True))
    return figure


def _by_kind(name: str, asked: Sequence[Request], score: Callable[[int], Score]) -> dict[str, Row]:
    scores = [score(index) for index in range(len(asked))]
    rows = {name: total(scores).shares()}
    for kind, is_concept in (("concepts", True), ("terse words", False)):
        chosen = [one for one, request in zip(scores, asked, strict=True) if request.is_concept is is_concept]
        if chosen:
            rows[f"{name}: {kind}"] = total(chosen).shares()
    return rows


def similar(sample: Sample, writer: Writer, painter: Painter | None = None) -> Figure:
    """(c) Describe a picture for one like it; with a painter, draw that one too."""
    figure = Figure("similar images", "also_shape >= 0.85 of the objects described", sample)
    scenes = [sample_scene(number, sample.split) for number in sample.numbers()]
    captions = writer.write([Ask(Writing.SIMILAR, picture=draw(scene)) for scene in scenes])
    scores = [score_caption(scene, caption) for scene, caption in zip(scenes, captions, strict=True)]
    figure.rows["captions"] = total(scores).shares()
    if painter is not None:
        pictures = painter.render(captions, sample.noise())
        drawn = [score_picture(scene, read(picture)) for scene, picture in zip(scenes, pictures, strict=True)]
        figure.rows["pictures"] = total(drawn).shares()
        figure.pairs = list(zip(map(draw, scenes), pictures, strict=True))
    return figure


def edits(sample: Sample, writer: Writer, language: Language = "en") -> Figure:
    """(d) Write the caption of an edited picture from the picture and the instruction."""
    figure = Figure("edits", "whole >= 0.85: the new caption without any mistake", sample)
    every = [sample_edit(number, sample.split, language) for number in sample.numbers()]
    captions = writer.write([Ask(Writing.EDIT, edit.instruction, draw(edit.before)) for edit in every])
    scores = [score_caption(edit.after, caption) for edit, caption in zip(every, captions, strict=True)]
    figure.rows["all"] = total(scores).shares()
    for kind in sorted({edit.kind for edit in every}):
        chosen = [score for score, edit in zip(scores, every, strict=True) if edit.kind == kind]
        figure.rows[kind] = total(chosen).shares()
    return figure


def edited(sample: Sample, gateway: "Gateway", language: Language = "en") -> Figure:
    """Edit pictures through the gateway, and let the judge compare them with the scenes that were asked for."""
    from training.evaluation.serving import data_uri

    figure = Figure("edited pictures", "how edits end, from the instruction to the picture", sample)
    every = [sample_edit(number, sample.split, language) for number in sample.numbers()]
    before = [draw(edit.before) for edit in every]
    bodies = [
        {"task": "edit", "instruction": edit.instruction, "image": data_uri(picture), "seed": seed}
        for edit, picture, seed in zip(every, before, sample.noise(), strict=True)
    ]
    made = gateway.make(bodies)
    captions = [score_caption(edit.after, one.prompt) for edit, one in zip(every, made, strict=True)]
    figure.rows["captions"] = total(captions).shares()
    pictures = [score_picture(edit.after, read(one.picture)) for edit, one in zip(every, made, strict=True)]
    figure.rows["pictures"] = total(pictures).shares()
    unedited = [score_picture(edit.after, read(picture)) for edit, picture in zip(every, before, strict=True)]
    figure.rows["pictures before the edit"] = total(unedited).shares()
    figure.pairs = list(zip(before, (one.picture for one in made), strict=True))
    return figure


def inpainting(sample: Sample, painter: Filler, writer: Writer | None = None) -> Figure:
    """(e) Fill holes by the scene's caption, and by the one that the language model writes for what is left."""
    figure = Figure("inpainting", "also_shape >= 0.80 of the hole's objects", sample)
    scenes, holes = with_holes(sample)
    pictures = [draw(scene) for scene in scenes]
    captions = [caption_of(scene) for scene in scenes]
    filled = painter.fill(pictures, holes, captions, sample.noise())
    figure.rows["by the caption"] = _of(scenes, filled, map(_taken_by, holes))
    seen = [np.where(hole[..., None], np.uint8(0), picture) for hole, picture in zip(holes, pictures, strict=True)]
    figure.pairs = list(zip(seen, filled, strict=True))
    if writer is not None:
        asks = [Ask(Writing.INPAINT, picture=picture, hole=hole) for picture, hole in zip(pictures, holes, strict=True)]
        filled = painter.fill(pictures, holes, writer.write(asks), sample.noise())
        # What was in a hole nobody can know: only what was left counts here.
        figure.rows["by the model's caption: objects outside"] = _of(scenes, filled, map(_left_by, holes))
    return figure


def _of(scenes: Sequence[Scene], pictures: Sequence[Pixels], meant: Iterable[Callable[[Object], bool]]) -> Row:
    """Return the score of those objects of each scene that are meant."""
    return total(
        [
            score_picture(scene, read(picture), only=only)
            for scene, picture, only in zip(scenes, pictures, meant, strict=True)
        ]
    ).shares()


def _taken_by(hole: Mask) -> Callable[[Object], bool]:
    return lambda item: share_in(item, hole) >= _MOSTLY


def _left_by(hole: Mask) -> Callable[[Object], bool]:
    return lambda item: share_in(item, hole) < _LEFT


def with_holes(sample: Sample) -> tuple[list[Scene], list[Mask]]:
    """Return scenes and holes that take most of some object of theirs."""
    scenes, holes = [], []
    for number in sample.numbers():
        scene = sample_scene(number, sample.split)
        rng = np.random.default_rng(number)
        while True:
            hole = draw_hole(rng)
            if any(share_in(item, hole) >= _MOSTLY for item in scene.objects):
                break
        scenes.append(scene)
        holes.append(hole)
    return scenes, holes


def draw_hole(rng: np.random.Generator, side: int = SIZE) -> Mask:
    """Return a hole of stage 2's distribution, scaled to this size; it never takes everything."""
    while True:
        mask, kind = draw_mask(side, side, SD_STAGE2.scaled(side / _PUBLISHED_SIDE), rng)
        hole: Mask = mask > 0
        if kind != "everything" and not hole.all():
            return hole


def share_in(item: Object, hole: Mask) -> float:
    """Return how much of an object a hole takes."""
    mask = coverage(item.shape, item.size, item.fill, item.cell, hole.shape[0])
    return float(mask[hole[window(item, hole.shape[0])]].sum() / mask.sum())


def restoration(sample: Sample, restorer: Restorer, relit: Path | None = None) -> Figure:
    """(f) Restore holes that a diffusion model might have left: blurred, noisy, relit and tinted.

    relit: folder of the checkpoints whose decoders leave the holes instead (`training.evaluation.relit`). The scenes
    are of the held-out split in any case.
    """
    if relit is None:
        return _restored(sample, measure(restorer, list(cases(sample.count, Seams(), sample.seed))))
    return _restored(sample, measure(restorer, _left_by_decoders(sample, relit)))


def restored(sample: Sample, gateway: "Gateway", relit: Path) -> Figure:
    """(f) through the gateway, which serves the checkpoints of `relit` under their names.

    Scenes are painted within holes by the last step alone, so that they stay what they are but for what the decoder
    does to them. Before is what jobs keep as `unrestored`.
    """
    from training.evaluation.serving import data_uri, gray

    asked = [(folder.name, case) for folder, part in _parts(sample, relit) for case in part]
    bodies = [
        {
            "task": "inpaint",
            "model": name,
            "instruction": caption_of(case.scene),
            "prompt_mode": "verbatim",
            "seed": case.painting.seed,
            "image": data_uri(case.truth),
            "mask": data_uri(gray(case.mask > 0)),
            "num_inference_steps": MAX_STEPS,
            "strength": 1 / MAX_STEPS,
            "restore": "on",
            "debug": True,
        }
        for name, case in asked
    ]
    made = gateway.make(bodies)
    before = [replace(case, hole=one.on_the_way["unrestored"]) for (_, case), one in zip(asked, made, strict=True)]
    return _restored(sample, compared(before, [one.picture for one in made]))


def _left_by_decoders(sample: Sample, relit: Path) -> list[Case]:
    """Return scenes with the holes that the checkpoints of a folder leave in them."""
    from training.evaluation.painting import FolderPainter

    found = []
    for folder, part in _parts(sample, relit):
        painted = FolderPainter(folder, num_inference_steps=MAX_STEPS).repaint(
            [case.truth for case in part],
            [case.mask > 0 for case in part],
            [caption_of(case.scene) for case in part],
            [case.painting.seed for case in part],
        )
        for case, new in zip(part, painted, strict=True):
            hole = np.where(case.mask[..., None] > 0, new, case.truth)
            found.append(replace(case, hole=hole, painting=replace(case.painting, painted=new)))
    return found


def _parts(sample: Sample, relit: Path) -> Iterator[tuple[Path, list[Case]]]:
    """Yield the checkpoints of a folder, each with its part of the scenes, which have holes but are not degraded."""
    folders = sorted(path.parent for path in relit.glob("*/model_index.json"))
    if not folders:
        raise ValueError(f"{relit}: there are no checkpoints in it")
    for number, folder in enumerate(folders):
        count = sample.count * (number + 1) // len(folders) - sample.count * number // len(folders)
        yield folder, list(cases(count, lambda pixels, _scale, _generator: pixels, sample.seed + number))


def _restored(sample: Sample, found: Figures) -> Figure:
    figure = Figure(
        "restoration", "steps across the border at most half of before, PSNR up", replace(sample, split="held_out")
    )
    before = (found.brightness_step_before, found.color_step_before, found.psnr_before)
    after = (found.brightness_step_after, found.color_step_after, found.psnr_after)
    columns = ("brightness_step", "color_step", "psnr_db")
    figure.rows["before"] = dict(zip(columns, before, strict=True))
    figure.rows["after"] = dict(zip(columns, after, strict=True))
    figure.rows["after / before"] = {
        name: new / max(old, 1e-9) for name, old, new in zip(columns[:2], before, after, strict=False)
    }
    return figure


def stage2(sample: Sample, before: Painter, after: Painter) -> Figure:
    """(h) Draw captions of five objects, longer than CLIP's 75 tokens, before and after stage 2."""
    figure = Figure("before and after stage 2", "a clear gain of `after` on long prompts", sample)
    scenes: list[Scene] = []
    number = sample.seed
    while len(scenes) < sample.count:
        scene = sample_scene(number, sample.split)
        number += 1
        if len(scene.objects) == MAX_OBJECTS:
            scenes.append(scene)
    captions = [caption_of(scene) for scene in scenes]
    drawn = {name: one.render(captions, sample.noise()) for name, one in (("before", before), ("after", after))}
    for name, pictures in drawn.items():
        figure.rows |= {f"{name}: {row}": shares for row, shares in _drawn(scenes, pictures).items()}
    figure.pairs = list(zip(drawn["before"], drawn["after"], strict=True))
    return figure


def _drawn(scenes: Sequence[Scene], pictures: Sequence[Pixels]) -> dict[str, Row]:
    """Return how well scenes are drawn: all objects, and those whose composition training never had."""
    readings = [read(picture) for picture in pictures]
    pairs = list(zip(scenes, readings, strict=True))
    rows = {"all objects": total([score_picture(scene, reading) for scene, reading in pairs]).shares()}
    for name, only in (
        ("new compositions", object_is_held_out),
        ("known compositions", lambda item: not object_is_held_out(item)),
    ):
        score = total([score_picture(scene, reading, only=only) for scene, reading in pairs])
        if score.wanted:
            rows[name] = score.shares()
    return rows
