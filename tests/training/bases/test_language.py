import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from services.mllm.checkpoints import convert
from services.mllm.conversation import Turn
from tests.training.recipes import recipes_of
from training.bases.language import LanguageRecipe, Texts, document, fit_recipe, main, run
from training.data.tokens import prompt_builder
from training.export import export_published
from training.llava import new_projector
from training.minis.bases import build_tower
from training.recipes import load_recipe
from training.recipes.recipe import FOLDER

RECIPE = FOLDER / "tiny-language.yaml"
SMALL = ["hidden=48", "inner=64", "layers=2", "heads=2", "kv_heads=1", "length=64", "plan.global_batch=16"]
SMALL += ["plan.micro_batch=16", "plan.steps=40", "plan.warmup_steps=2", "plan.learning_rate=0.01", "plan.log_every=1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[LanguageRecipe, Path]:
    folder = tmp_path_factory.mktemp("language")
    recipe = load_recipe(RECIPE, LanguageRecipe, [*SMALL, f"out={folder}"])
    return recipe, run(recipe, RECIPE)


@pytest.mark.parametrize("name", recipes_of("language"))
def test_dry_run_trains_resumes_and_exports(name: str) -> None:
    assert main(["--recipe", str(FOLDER / f"{name}.yaml"), "--dry-run"]) == 0


def test_text_about_the_world_is_learned(trained: tuple[LanguageRecipe, Path]) -> None:
    recipe, _ = trained
    losses = [json.loads(line)["loss"] for line in (recipe.out / "losses.jsonl").read_text().splitlines()]
    assert losses[0] > 7
    assert losses[-1] < 3.5


def test_exported_model_is_the_trained_one(trained: tuple[LanguageRecipe, Path]) -> None:
    recipe, folder = trained
    model = fit_recipe(recipe, RECIPE).model.eval()
    exported = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        torch.testing.assert_close(exported(ids).logits, model(ids).logits)
    assert exported.config.eos_token_id == prompt_builder(folder, "qwen2").build([Turn("a", "b")]).token_ids[-1]


def test_what_stage_1_would_make_of_it_is_taken_by_the_converter(
    trained: tuple[LanguageRecipe, Path], tmp_path: Path
) -> None:
    _, folder = trained
    build_tower(tmp_path / "clip-mini")
    export_published(
        tmp_path / "published",
        family="qwen2",
        base=folder,
        tower=tmp_path / "clip-mini",
        language_model=None,
        changes={},
        projector=new_projector(64, 48).state_dict(),
    )
    facts = convert(tmp_path / "published", tmp_path / "served")
    assert facts.image_token == "<image>"  # in a row that no other token has


def test_words_and_characters_of_the_world_are_single_tokens(trained: tuple[LanguageRecipe, Path]) -> None:
    _, folder = trained
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for word in (" circle", " red", " background", " placed", " snowman", " outlined", "画", "红", "圆", "星"):
        assert len(tokenizer.encode(word).ids) == 1, word
    assert len(tokenizer.encode("请画红色圆形").ids) == 6  # characters never grow together


def test_examples_are_documents_up_to_the_length(trained: tuple[LanguageRecipe, Path]) -> None:
    _, folder = trained
    texts = Texts(Tokenizer.from_file(str(folder / "tokenizer.json")), 128, 0.35, 1_000)
    assert texts.example(0, seed=5).shape == (128,)
    assert torch.equal(texts.example(0, seed=5), texts.example(9, seed=5))
    assert not torch.equal(texts.example(0, seed=5), texts.example(0, seed=6))


def test_documents_are_of_every_kind_and_both_languages() -> None:
    documents = [document(seed, 0.35) for seed in range(300)]
    assert any("<gen_image>" in text and text.count("\n") == 1 for text in documents)  # requests
    assert any(text.count("<gen_image>") == 2 for text in documents)  # edits
    assert any("?" in text and "<gen_image>" not in text for text in documents)  # questions
    chinese = [text for text in documents if any("\u4e00" <= sign <= "\u9fff" for sign in text)]
    assert 0.2 < len(chinese) / len(documents) < 0.4
    assert document(7, 0.35) == documents[7]
