"""The stages of the tiny pair, in the order in which one needs another."""

import logging
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from training.recipes.recipe import FOLDER

# Arguments of the corpora that the language model reads, below `runs/`; each has scenes of its own.
WORLDS = {
    "world": ["--count", "12000"],
    "world-sight": ["--count", "30000", "--seed", "1", "--pictures", "world", "Edit"],
    "world-lists": ["--count", "60000", "--seed", "2", "--pictures"],
    "world-again": ["--count", "20000", "--seed", "3", "--tell-changes", "--pictures", "world", "Edit"],
}

_log = logging.getLogger("llmga.training")


@dataclass(frozen=True, slots=True)
class Stage:
    """One command of the chain. result: what it leaves last, below the folder that the chain runs in."""

    name: str
    module: str
    result: Path

    def arguments(self, small: bool) -> list[str]:
        """Return the command's arguments; `small` for a few minutes in all, on less of everything."""
        if self.module == "training.world":
            return [f"runs/{self.name}", *WORLDS[self.name], *(["--count", str(SMALL_SCENES)] if small else [])]
        changes = SMALL[self.name] if small else []
        return ["--recipe", str(FOLDER / f"tiny-{self.name}.yaml"), *(["--set", *changes] if changes else [])]


def _stage(name: str, module: str, result: str) -> Stage:
    return Stage(name, f"training.{module}", Path("runs") / result)


STAGES = (
    _stage("vae", "bases.vae", "vae/vae/config.json"),
    _stage("clip", "bases.clip", "clip/vision_tower/config.json"),
    _stage("sd15-base", "stage2", "sd15-short/checkpoint/model_index.json"),
    _stage("sd15", "stage2", "sd15/checkpoint/model_index.json"),
    _stage("sd15-inpaint", "stage2", "sd15-inpainting/checkpoint/model_index.json"),
    _stage("world", "world", "world/meta.json"),
    _stage("language", "bases.language", "tiny-language/checkpoint/meta.json"),
    _stage("pretrain", "pretrain", "tiny-pretrain/mm_projector.safetensors"),
    _stage("stage1", "stage1", "tiny-stage1/checkpoint/meta.json"),
    # The language model, which knows what is asked by now, gets eyes for shapes, and goes on with new scenes.
    _stage("tower", "bases.tower", "tower/vision_tower/config.json"),
    _stage("world-sight", "world", "world-sight/meta.json"),
    _stage("pretrain-sight", "pretrain", "tiny-pretrain-sight/mm_projector.safetensors"),
    _stage("sight", "stage1", "tiny-sight/checkpoint/meta.json"),
    # What belongs to what: first in lists that say everything, then in changes of a picture, one after another.
    _stage("world-lists", "world", "world-lists/meta.json"),
    _stage("lists", "stage1", "tiny-lists/checkpoint/meta.json"),
    _stage("sessions", "stage1", "tiny-sessions/checkpoint/meta.json"),
    _stage("world-again", "world", "world-again/meta.json"),
    _stage("again", "stage1", "tiny-again/checkpoint/meta.json"),
    _stage("restoration-s1", "restoration", "restoration-s1/export/meta.json"),
    _stage("restoration-s2", "restoration", "restoration/export/meta.json"),
)
NAMES = tuple(stage.name for stage in STAGES)

SMALL_SCENES = 200


def _small(steps: int, batch: int, *changes: str, plan: str = "plan") -> list[str]:
    numbers = {"steps": steps, "global_batch": batch, "micro_batch": batch, "warmup_steps": 0, "log_every": 2}
    return [*(f"{plan}.{name}={number}" for name, number in numbers.items()), *changes]


SMALL: dict[str, list[str]] = {
    "vae": _small(30, 8, "crop=32", "moment_pictures=32"),
    "clip": _small(24, 16),
    "sd15-base": _small(20, 8, "data.scenes=32"),
    "sd15": _small(6, 8, "data.scenes=32"),
    "sd15-inpaint": _small(4, 8, "data.scenes=32"),
    "language": _small(40, 8, "length=96"),
    "pretrain": _small(4, 8),
    "stage1": _small(24, 8, "plan.restarts=[]"),
    "tower": _small(16, 8),
    "pretrain-sight": _small(4, 8),
    "sight": _small(8, 8),
    "lists": _small(4, 8),
    "sessions": _small(4, 8),
    "again": _small(4, 8),
    "restoration-s1": _small(24, 4),
    "restoration-s2": [*_small(4, 4), *_small(4, 4, plan="encoder_plan")],
}


class Interrupted(Exception):
    """A stage was stopped before its end; the same command goes on there."""


def train(folder: Path, *, only: Collection[str] = NAMES, small: bool = False) -> list[str]:
    """Run the stages that have no result yet, in a folder; return their names.

    Raises:
        Interrupted: a stage was stopped, or failed.
    """
    ran = []
    with _inside(folder):
        for stage in STAGES:
            if stage.name not in only:
                continue
            if stage.result.is_file():
                _log.info("%s: done before", stage.name)
                continue
            arguments = stage.arguments(small)
            _log.info("%s: python -m %s %s", stage.name, stage.module, " ".join(arguments))
            if _main(stage.module, arguments) != 0 or not stage.result.is_file():
                raise Interrupted(f"{stage.name} did not come to its end; start again to go on")
            ran.append(stage.name)
    return ran


def take_bases(bases: Path, folder: Path) -> None:
    """Put an autoencoder (`vae`) and CLIP's parts (`clip`) where the chain leaves its own: it begins behind them.

    Raises:
        FileNotFoundError: one of them is not there.
    """
    for name, place in (("vae", "vae/vae"), ("clip", "clip")):
        ignored = shutil.ignore_patterns("meta.json", "losses.png", "README.md")
        shutil.copytree(bases / name, folder / "runs" / place, dirs_exist_ok=True, ignore=ignored)


def _main(module: str, arguments: Sequence[str]) -> int:
    """Run a stage's command in this process."""
    found = import_module(f"{module}.__main__" if module in ("training.world", "training.restoration") else module)
    try:
        return int(found.main(arguments))
    except SystemExit as ended:  # SIGTERM came, or the command line is wrong
        return int(ended.code or 0)


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Make a folder the current one: paths in recipes are relative to it."""
    before = Path.cwd()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
