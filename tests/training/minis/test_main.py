"""`python -m training.minis`: complete or absent, and never over what somebody else put there."""

import json
from pathlib import Path

import pytest

from training.minis.__main__ import META, NotOurs, ensure

OURS = {"builder": "training.minis.mllm", "version": 1, "seed": 0}


def build(folder: Path) -> None:
    folder.mkdir()
    (folder / "weights").write_text("new")


def test_a_folder_is_built_once_and_then_left_as_it_is(tmp_path: Path) -> None:
    target = tmp_path / "pair" / "mllm"
    assert ensure(target, build, OURS)
    (target / "weights").write_text("touched")
    assert not ensure(target, build, OURS)
    assert (target / "weights").read_text() == "touched"
    assert json.loads((target / META).read_text()) == OURS


def test_another_version_or_seed_is_built_again(tmp_path: Path) -> None:
    target = tmp_path / "mllm"
    ensure(target, build, OURS)
    (target / "weights").write_text("old")
    assert ensure(target, build, {**OURS, "seed": 1})
    assert (target / "weights").read_text() == "new"


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    def interrupted(folder: Path) -> None:
        build(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure(tmp_path / "mllm", interrupted, OURS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("meta", [None, "{", "[]", '{"builder": "somebody else"}'])
def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, meta: str | None) -> None:
    target = tmp_path / "mllm"
    target.mkdir()
    (target / "letter.txt").write_text("dear")
    if meta is not None:
        (target / META).write_text(meta)
    with pytest.raises(NotOurs, match="was not written by this command"):
        ensure(target, build, OURS)
    assert (target / "letter.txt").read_text() == "dear"
