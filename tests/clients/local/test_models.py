from pathlib import Path

from clients.local.models import choose_pair


def ship(folder: Path) -> None:
    for name in ("mllm/config.json", "sd15/model_index.json"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).touch()


def test_the_trained_pair_is_used_when_it_is_complete(tmp_path: Path) -> None:
    ship(tmp_path / "shipped")
    pair = choose_pair(tmp_path, {}, shipped=tmp_path / "shipped")
    assert pair.mllm == tmp_path / "shipped" / "mllm"
    assert pair.build_into is None


def test_a_mini_pair_is_made_when_half_of_the_trained_one_is_missing(tmp_path: Path) -> None:
    ship(tmp_path / "shipped")
    (tmp_path / "shipped" / "sd15" / "model_index.json").unlink()
    pair = choose_pair(tmp_path, {}, shipped=tmp_path / "shipped")
    assert pair.build_into == tmp_path / "models" / "random"
    assert pair.sd15 == tmp_path / "models" / "random" / "sd15"
    assert "noise" in pair.title


def test_models_of_the_users_settings_win_and_nothing_is_made_for_them(tmp_path: Path) -> None:
    settings = {"LLMGA_MLLM__MODEL": "a", "LLMGA_DIFFUSION__MODELS": "{}"}
    pair = choose_pair(tmp_path, settings, shipped=tmp_path / "none")
    assert (pair.mllm, pair.sd15, pair.build_into) == (None, None, None)


def test_one_model_of_the_user_and_one_of_ours_go_together(tmp_path: Path) -> None:
    pair = choose_pair(tmp_path, {"LLMGA_MLLM__MODEL": "a"}, shipped=tmp_path / "none")
    assert pair.mllm is None
    assert pair.sd15 == tmp_path / "models" / "random" / "sd15"
