"""What the tiny CLIP is told: each object's attributes at its place's token and at its patches."""

import random
from pathlib import Path

import pytest

from services.diffusion.libraries import CLIPTextModel, CLIPTokenizer, CLIPVisionModel
from tests.training.recipes import recipes_of
from training.bases.alignment import PATCH_CLASSES, TEXT_CLASSES, UNLABELED, WorldPairs, patch_labels
from training.bases.clip import ClipRecipe, dry_run, train
from training.recipes.recipe import FOLDER, load_recipe
from training.world import caption_of, sample_scene
from training.world.objects import COLORS, PLACES, Shape

BEGIN, END = 998, 999


class Words:
    """A vocabulary of words, as CLIP splits them."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def __call__(self, text: str) -> list[int]:
        words = text.replace(".", " .").replace(",", " ,").split()
        return [self.known.setdefault(word, len(self.known)) for word in words]


def test_a_place_s_token_carries_its_object_and_no_other_token_does() -> None:
    encode = Words()
    pairs = WorldPairs(encode, BEGIN, END, 128, 16)
    seen = 0
    for seed in range(60):
        scene = sample_scene(seed)
        told = pairs.tell(scene, random.Random(seed))
        words = {token: word for word, token in encode.known.items()}
        assert len(told.ids) == 77
        labeled = [index for index, place in enumerate(told.labels["place"]) if place != UNLABELED]
        for index in labeled:
            place = PLACES[told.labels["place"][index]]
            (item,) = [item for item in scene.objects if item.place == place]
            assert words[told.ids[index]] == place.split()[-1], "the last word of the place"
            assert words[told.ids[index + 1]] == "."
            assert told.labels["color"][index] == list(COLORS).index(item.color)
            assert told.labels["shape"][index] == list(Shape).index(item.shape)
            seen += 1
        others = set(range(77)) - set(labeled)
        assert all(told.labels["color"][index] == UNLABELED for index in others)
    assert seen > 60


def test_patches_say_what_stands_in_their_cell() -> None:
    scene = next(scene for scene in map(sample_scene, range(100)) if len(scene.objects) == 2)
    labels = patch_labels(scene, 8)
    empty = len(COLORS)
    # 8 patches over 3 cells: 3, 2 and 3 by the middles of the patches.
    cells = [0, 0, 0, 1, 1, 2, 2, 2]
    taken = {item.cell: item for item in scene.objects}
    for row in range(8):
        for column in range(8):
            item = taken.get((cells[row], cells[column]))
            expected = empty if item is None else list(COLORS).index(item.color)
            assert labels["color"][row * 8 + column] == expected
    assert set(labels) == set(PATCH_CLASSES)
    assert set(TEXT_CLASSES) == {*PATCH_CLASSES, "place"}


@pytest.mark.parametrize("seed", range(3))
def test_captions_of_many_objects_are_cut_at_a_sentence(seed: int) -> None:
    encode = Words()
    pairs = WorldPairs(encode, BEGIN, END, 128, 16)
    scene = next(scene for scene in map(sample_scene, range(seed * 100, 10_000)) if len(encode(caption_of(scene))) > 75)
    words = {token: word for word, token in encode.known.items()}
    for number in range(20):
        ids = pairs.tell(scene, random.Random(number)).ids
        content = ids[1 : ids.index(END)]
        if content and words[content[-1]] == ".":
            assert len(content) <= 75
            return
    pytest.fail("no caption among the texts")


@pytest.mark.parametrize("name", recipes_of("clip"))
def test_the_dry_run_of_each_recipe_leaves_nothing_behind(tmp_path: Path, name: str) -> None:
    dry_run(load_recipe(FOLDER / f"{name}.yaml", ClipRecipe, [f"out={tmp_path / 'run'}"]))
    assert not list(tmp_path.iterdir())


def test_a_run_writes_a_tokenizer_and_both_encoders(tmp_path: Path) -> None:
    recipe = load_recipe(FOLDER / "tiny-clip.yaml", ClipRecipe, [f"out={tmp_path}"])
    train(recipe.model_copy(update={"plan": recipe.plan.dry()}))
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(tmp_path / "text_encoder")
    tower = CLIPVisionModel.from_pretrained(tmp_path / "vision_tower")
    assert len(tokenizer) == text_encoder.config.vocab_size
    assert tower.config.image_size == recipe.image_size
    assert (tmp_path / "vision_tower" / "preprocessor_config.json").is_file()
