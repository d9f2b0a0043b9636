from pathlib import Path

from clients.local.models import choose_pair


def ship(folder: Path, *names: str) -> None:
    for name in names or ("mllm/config.json", "sd15/model_index.json"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).touch()


def test_the_trained_pair_is_used_when_it_is_complete(tmp_path: Path) -> None:
    ship(tmp_path / "shipped")
    pair = choose_pair(tmp_path, {}, shipped=tmp_path / "shipped")
    assert pair.mllm == tmp_path / "shipped" / "mllm"
    assert pair.diffusion == {"llmga-tiny-sd15": tmp_path / "shipped" / "sd15"}
    assert pair.restoration is None
    assert pair.build_into is None


def test_what_paints_and_what_hides_seams_is_served_where_it_ships(tmp_path: Path) -> None:
    ship(tmp_path, "mllm/config.json", "sd15/model_index.json", "sd15-inpainting/model_index.json")
    ship(tmp_path, "restoration/config.json")
    pair = choose_pair(tmp_path, {}, shipped=tmp_path)
    names = "sd15", "sd15-inpainting"
    assert pair.diffusion == {f"llmga-tiny-{name}": tmp_path / name for name in names}
    assert pair.restoration == tmp_path / "restoration"
    own = choose_pair(tmp_path, {"LLMGA_DIFFUSION__MODELS": "{}"}, shipped=tmp_path)
    assert (own.diffusion, own.restoration) == ({}, None)


def test_a_mini_pair_is_made_when_half_of_the_trained_one_is_missing(tmp_path: Path) -> None:
    ship(tmp_path / "shipped")
    (tmp_path / "shipped" / "sd15" / "model_index.json").unlink()
    pair = choose_pair(tmp_path, {}, shipped=tmp_path / "shipped")
    assert pair.build_into == tmp_path / "models" / "random"
    assert pair.diffusion == {"llmga-tiny-sd15": tmp_path / "models" / "random" / "sd15"}
    assert "noise" in pair.title


def test_models_of_the_users_settings_win_and_nothing_is_made_for_them(tmp_path: Path) -> None:
    settings = {"LLMGA_MLLM__MODEL": "a", "LLMGA_DIFFUSION__MODELS": "{}"}
    pair = choose_pair(tmp_path, settings, shipped=tmp_path / "none")
    assert (pair.mllm, pair.diffusion, pair.build_into) == (None, {}, None)


def test_one_model_of_the_user_and_one_of_ours_go_together(tmp_path: Path) -> None:
    pair = choose_pair(tmp_path, {"LLMGA_MLLM__MODEL": "a"}, shipped=tmp_path / "none")
    assert pair.mllm is None
    assert pair.diffusion == {"llmga-tiny-sd15": tmp_path / "models" / "random" / "sd15"}
