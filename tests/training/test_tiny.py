"""The chain of the tiny pair, rehearsed, and what it puts together."""

import json
import shutil
from pathlib import Path

import pytest

from training.tiny import chain
from training.tiny.__main__ import main
from training.tiny.card import ABOUT, COMMAND, card
from training.tiny.pair import PARTS, TooLarge, put_together


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole chain in small, and its pair in `pair`."""
    folder = tmp_path_factory.mktemp("tiny")
    assert chain.train(folder, small=True) == list(chain.NAMES)
    assert put_together(folder, folder / "pair") == [part.name for part in PARTS]
    return folder


def losses_of(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "losses.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("run", "at_most"),
    [
        ("vae", 0.92),
        ("clip", 0.93),
        ("sd15-short", 0.8),
        ("tiny-language", 0.75),
        ("tiny-stage1", 0.75),
    ],
)
def test_stages_of_the_rehearsal_lower_their_loss_by_their_margin(rehearsal: Path, run: str, at_most: float) -> None:
    losses = losses_of(rehearsal / "runs" / run)
    third = len(losses) // 3
    assert sum(losses[-third:]) < at_most * sum(losses[:third])


def test_a_stage_that_has_its_result_is_passed_over(rehearsal: Path) -> None:
    assert chain.train(rehearsal, small=True) == []


def test_a_chain_with_bases_begins_behind_them(
    rehearsal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bases = tmp_path / "bases"
    shutil.copytree(rehearsal / "runs" / "vae" / "vae", bases / "vae")
    shutil.copytree(rehearsal / "runs" / "clip", bases / "clip")
    ran: list[str] = []

    def ends_early(module: str, _: list[str]) -> int:
        ran.append(module)
        return 0

    monkeypatch.setattr("training.tiny.chain._main", ends_early)
    assert main(["train", "--folder", str(tmp_path / "new"), "--bases", str(bases)]) == 1
    assert ran == ["training.stage2"]


def test_bases_that_are_not_there_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "--folder", str(tmp_path), "--bases", str(tmp_path / "nowhere")])
    assert ended.value.code == 2
    assert "no folders vae and clip" in capsys.readouterr().err


def test_the_pair_s_figures_are_measured_and_its_cards_written(rehearsal: Path) -> None:
    pair = rehearsal / "pair"
    assert main(["measure", "cards", "--folder", str(rehearsal), "--pair", str(pair), "--count", "2"]) == 0
    for part in PARTS:
        figures = json.loads((pair / part.name / "figures.json").read_text())
        text = (pair / part.name / "README.md").read_text()
        assert figures
        for name, figure in figures.items():
            assert COMMAND[name] in text
            assert figure["goal"] in text
        assert "examples" in text


def test_what_ships_can_be_read_by_everybody(rehearsal: Path) -> None:
    files = [path for path in (rehearsal / "pair").rglob("*.safetensors")]
    assert len(files) >= len(PARTS)
    assert {path.stat().st_mode & 0o777 for path in files} == {0o644}


def test_a_pair_that_is_too_large_does_not_ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tmp_path / PARTS[0].made
    made.mkdir(parents=True)
    (made / "model.safetensors").write_bytes(b"x" * 100)
    monkeypatch.setattr("training.tiny.pair.MAX_BYTES", 99)
    with pytest.raises(TooLarge, match=r"pair has 0\.0 MB"):
        put_together(tmp_path, tmp_path / "pair")


def test_a_stage_that_does_not_end_stops_the_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.tiny.chain._main", lambda *_: 0)
    with pytest.raises(chain.Interrupted, match="vae did not come to its end"):
        chain.train(tmp_path, small=True)


@pytest.mark.parametrize("part", sorted(ABOUT))
def test_a_card_without_figures_says_what_the_part_is(part: str) -> None:
    text = card(part, {}, {}, has_sheet=False)
    assert ABOUT[part][1] in text
    assert "## Figures" not in text


def test_an_unknown_step_or_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["paint"], ["train", "--only", "vea"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
    assert "vea" in capsys.readouterr().err
