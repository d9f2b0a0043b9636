"""What a run leaves beside its weights: `losses.jsonl`, `losses.png` and `meta.json`."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Tags = Mapping[str, Any]
DRAW_EVERY_S = 60.0  # drawing takes half a second
PACKAGES = ("torch", "transformers", "diffusers", "accelerate", "peft", "bitsandbytes", "tokenizers", "safetensors")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write beside and rename, so that a reader finds the old file or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    beside.replace(path)


def origin() -> dict[str, Any]:
    """Return what made a run: commit, versions and hardware."""
    import torch

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    hardware: dict[str, Any] = {"cpu": _processor(), "cpu_cores": os.cpu_count()}
    if torch.cuda.is_available():
        hardware |= {"gpu": torch.cuda.get_device_name(), "gpus": torch.cuda.device_count()}
    return {"commit": _commit(), "python": platform.python_version(), "versions": versions, "hardware": hardware}


def _commit() -> str | None:
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "."],
            cwd=here.parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit} with changes" if changed else commit


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


class Losses:
    """The loss curve: one JSON line for every `log_every` steps, drawn as a picture on demand."""

    def __init__(self, folder: Path, *, resume_at: int) -> None:
        """Open the curve; what an interrupted run wrote after its last checkpoint is dropped, it comes again."""
        self._path, self._picture = folder / "losses.jsonl", folder / "losses.png"
        self._drawn_s = time.monotonic()
        kept = [line for line in self._lines() if line["step"] <= resume_at]
        self._path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def _lines(self) -> list[dict[str, float]]:
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        lines = []
        for line in text.splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:  # the last one, half written when the process was killed
                break
        return lines

    def add(self, line: Mapping[str, float]) -> None:
        """Append one line, with `step` and `loss` among its numbers."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def draw(self, *, at_once: bool) -> None:
        """Draw the curve, each line as a point and their running mean; unless `at_once`, once in a while is enough."""
        if not at_once and time.monotonic() - self._drawn_s < DRAW_EVERY_S:
            return
        lines = self._lines()
        if not lines:
            return
        self._drawn_s = time.monotonic()
        from matplotlib.figure import Figure

        steps, losses = [line["step"] for line in lines], [line["loss"] for line in lines]
        span = max(1, len(losses) // 50)
        means = [sum(losses[max(0, i - span) : i + 1]) / min(i + 1, span + 1) for i in range(len(losses))]
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel="loss")
        axes.plot(steps, losses, ".", color="0.7", markersize=2)
        axes.plot(steps, means, color="tab:blue")
        if min(losses) > 0:
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        figure.savefig(self._picture, dpi=100)


class Meta:
    """`meta.json`: the run's tags, plan and origin, its state, and the hours spent on it over all its starts."""

    def __init__(self, folder: Path, tags: Tags, plan: Mapping[str, Any], processes: int, *, hours: float) -> None:
        self._path = folder / "meta.json"
        self._known = {"tags": dict(tags), "plan": dict(plan), "processes": processes, **origin()}
        self._started, self._hours = datetime.now(UTC), hours

    @property
    def hours(self) -> float:
        """Return the hours of computing up to now."""
        return self._hours + (datetime.now(UTC) - self._started).total_seconds() / 3_600

    def write(self, *, step: int, parameters: int, losses: Mapping[str, float]) -> None:
        """Write the file."""
        state = {
            "step": step,
            "trainable_parameters": parameters,
            "losses": dict(losses),
            "hours": round(self.hours, 6),
            "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_json(self._path, self._known | state)
