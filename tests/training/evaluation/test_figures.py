"""The figures, with painters and writers whose work is known, and the command over random checkpoints."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from services.diffusion.restoration.checkpoints import save
from services.mllm.instructions import Writing
from tests.services.diffusion.restoration.networks import silenced, small_network
from training.evaluation import figures
from training.evaluation.__main__ import FIGURES, main
from training.evaluation.figures import Sample
from training.evaluation.writing import Ask
from training.world import caption_of, draw, sample_scene
from training.world.captions import scene_of
from training.world.drawing import Pixels
from training.world.edits import sample_edit
from training.world.requests import sample_request

SAMPLE = Sample(24)
FULL = {
    "color_and_place": 1.0,
    "also_shape": 1.0,
    "also_size_and_fill": 1.0,
    "extra_objects_per_picture": 0.0,
    "background": 1.0,
    "whole": 1.0,
}


class Perfect:
    """Draws every caption of a scene as it is, and the rest not at all."""

    def render(self, captions: Sequence[str], seeds: Sequence[int]) -> list[Pixels]:
        return [self.one(caption) for caption in captions]

    def one(self, caption: str) -> Pixels:
        try:
            return draw(scene_of(caption))
        except ValueError:
            return np.full((128, 128, 3), 128, np.uint8)


class Blank(Perfect):
    def one(self, caption: str) -> Pixels:
        return np.full((128, 128, 3), 255, np.uint8)


@dataclass
class Knowing:
    """Gives the answers that it was told, in order."""

    answers: list[str]

    def write(self, asks: Sequence[Ask]) -> list[str]:
        self.asks = list(asks)
        return self.answers


def test_perfect_painter_has_full_marks_on_long_captions_and_a_blank_one_none() -> None:
    perfect = figures.long_captions(SAMPLE, Perfect())
    assert perfect.rows["all objects"] == FULL
    assert perfect.rows["new compositions"]["also_shape"] == 1
    blank = figures.long_captions(SAMPLE, Blank())
    assert blank.rows["all objects"]["color_and_place"] == 0
    assert blank.rows["known compositions"]["color_and_place"] == 0


def test_requests_show_what_the_language_model_adds() -> None:
    captions = [caption_of(sample_request(number, "held_out")[0]) for number in SAMPLE.numbers()]
    writer = Knowing(captions)
    figure = figures.requests(SAMPLE, Perfect(), writer)
    assert figure.rows["captions"]["whole"] == 1
    assert figure.rows["with"]["also_shape"] == 1
    assert figure.rows["without"]["also_shape"] == 0
    assert {"with: concepts", "with: terse words"} <= set(figure.rows)
    assert [ask.writing for ask in writer.asks] == [Writing.TEXT_TO_IMAGE] * SAMPLE.count
    assert writer.asks[0].instruction == sample_request(0, "held_out")[1].text


def test_chinese_requests_are_chinese() -> None:
    captions = [caption_of(sample_request(number, "held_out", "zh")[0]) for number in SAMPLE.numbers()]
    writer = Knowing(captions)
    assert figures.requests(SAMPLE, Perfect(), writer, "zh").rows["with"]["also_shape"] == 1
    assert writer.asks[0].instruction == sample_request(0, "held_out", "zh")[1].text


def test_similar_images_are_scored_by_what_is_described() -> None:
    captions = [caption_of(sample_scene(number, "held_out")) for number in SAMPLE.numbers()]
    captions[0] = "A picture."
    writer = Knowing(captions)
    figure = figures.similar(SAMPLE, writer, Perfect())
    assert figure.rows["captions"]["whole"] == pytest.approx(23 / 24)
    assert figure.rows["pictures"] == figure.rows["captions"]
    assert writer.asks[1].picture is not None
    assert (writer.asks[1].picture == draw(sample_scene(1, "held_out"))).all()


def test_edits_are_scored_by_the_caption_of_what_comes_after() -> None:
    edits = [sample_edit(number, "held_out") for number in SAMPLE.numbers()]
    right = figures.edits(SAMPLE, Knowing([caption_of(edit.after) for edit in edits]))
    assert right.rows["all"] == FULL
    unchanged = figures.edits(SAMPLE, Knowing([caption_of(edit.before) for edit in edits]))
    assert unchanged.rows["all"]["whole"] == 0
    assert unchanged.rows["all"]["also_shape"] > 0.5


def test_holes_take_most_of_some_object_and_never_everything() -> None:
    scenes, holes = figures.with_holes(SAMPLE)
    for scene, hole in zip(scenes, holes, strict=True):
        assert 0 < hole.mean() < 1
        assert max(figures.share_in(item, hole) for item in scene.objects) >= 0.6


def test_share_of_an_object_in_a_hole() -> None:
    item = sample_scene(0).objects[0]
    assert figures.share_in(item, np.ones((128, 128), np.bool_)) == pytest.approx(1)
    assert figures.share_in(item, np.zeros((128, 128), np.bool_)) == 0


def test_stage2_is_measured_on_long_prompts_alone() -> None:
    seen: list[str] = []

    class Listening(Perfect):
        def one(self, caption: str) -> Pixels:
            seen.append(caption)
            return super().one(caption)

    figure = figures.stage2(Sample(6), Blank(), Listening())
    assert figure.rows["before: all objects"]["color_and_place"] == 0
    assert figure.rows["after: all objects"] == FULL
    assert all(len(scene_of(caption).objects) == 5 for caption in seen)


@pytest.mark.parametrize("figure", [figure for figure in FIGURES if figure != "edited"])  # which asks a running system
def test_every_figure_is_one_command(
    figure: str, sd: Path, inpainting: Path, mllm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(silenced(small_network()), tmp_path / "restoration")
    out, sheet = tmp_path / "out" / "figure.json", tmp_path / "out" / "sheet.png"
    folders = ["--sd", sd, "--before", sd, "--inpainting", inpainting, "--mllm", mllm]
    arguments = [figure, *folders, "--restoration", tmp_path / "restoration", "--count", 2, "--out", out]
    arguments += [] if figure in ("edits", "restoration") else ["--sheet", sheet]
    assert main([str(argument) for argument in arguments]) == 0
    printed = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["sample"] == {"count": 2, "split": "held_out", "seed": 0}
    assert found["rows"]
    for row, values in found["rows"].items():
        assert f"| {row} |" in printed
        assert all(isinstance(value, float) for value in values.values())
    if "--sheet" in arguments:
        with Image.open(sheet) as picture:
            assert picture.size == (8 * 128, 128)  # four pairs in a row, of which there are two


def test_a_language_model_that_was_named_writes_also_beside_a_running_system(mllm: Path) -> None:
    assert main(["edits", "--mllm", str(mllm), "--url", "http://127.0.0.1:1", "--count", "2"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["requests", "--mllm", "."], "needs --sd"),
        (["edits", "--mllm", "no-such-folder"], "there is no folder"),
        (["edits", "--mllm", ".", "--count", "0"], "at least 1"),
        (["edits", "--mllm", ".", "--sheet", "sheet.png"], "has no pictures"),
    ],
)
def test_command_says_what_is_missing(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["requests", "--url", "http://127.0.0.1:1"], "does not answer"),
        (["inpainting", "--url", "http://127.0.0.1:1"], "does not answer"),
        (["edits", "--url", "http://127.0.0.1:1", "--mllm-url", "nonsense"], "does not answer"),
        (["edits", "--url", "http://127.0.0.1:1"], "give --mllm-url"),
    ],
)
def test_command_says_what_a_running_system_did_not_do(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--count", "2"]) == 1
    assert message in capsys.readouterr().err
