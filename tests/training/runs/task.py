"""A small learning task with every kind of randomness, runnable as a process of its own.

`python -m tests.training.runs.task FOLDER STEPS GLOBAL_BATCH MICRO_BATCH KILL_AT`: fits a noisy regression with
dropout; at the forward pass numbered KILL_AT (0: never) the process kills itself, as the out-of-memory killer would.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from training.runs import Batch, Fitted, Plan, fit, seed_of


class Numbers:
    """Twenty-three fixed points, each with fresh noise on every visit."""

    def __len__(self) -> int:
        return 23

    def example(self, position: int, seed: int) -> torch.Tensor:
        point = torch.randn(4, generator=torch.Generator().manual_seed(seed_of(position)))
        return point + 0.1 * torch.randn(4, generator=torch.Generator().manual_seed(seed))


def collate(points: list[torch.Tensor], seeds: list[int]) -> Batch:
    noise = torch.stack([torch.randn(1, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    x = torch.stack(points)
    return {"x": x, "y": x.sum(1, keepdim=True) + 0.1 * noise, "learned": (x > 0).float()}


def weight_of(batch: Batch) -> float:
    return float(batch["learned"].sum())


def loss_of(model: Any, batch: Batch) -> dict[str, torch.Tensor]:
    error = (model(batch["x"]) - batch["y"]) ** 2
    loss = (error * batch["learned"]).sum() / batch["learned"].sum()  # a mean over what counts, as for tokens
    return {"loss": loss, "error": error.mean()}


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.GELU(), torch.nn.Dropout(0.2), torch.nn.Linear(16, 1))


def plan(steps: int, **numbers: Any) -> Plan:
    given: dict[str, Any] = {
        "global_batch": 8,
        "micro_batch": 4,
        "learning_rate": 1e-2,
        "schedule": "cosine",
        "warmup_steps": 2,
        "weight_decay": 0.01,
        "ema_decay": 0.9,
        "checkpoint_every": 4,
        "log_every": 3,
    }
    return Plan(steps=steps, **(given | numbers))


def run(folder: Path, steps: int, *, kill_at: int | None = None, **numbers: Any) -> Fitted:
    calls = 0

    def loss_until_killed(model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        nonlocal calls
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss_of(model, batch)

    made = plan(steps, **numbers)
    return fit(network(), loss_until_killed, Numbers(), collate, made, folder, weight_of=weight_of)


if __name__ == "__main__":
    folder, steps, global_batch, micro_batch, kill_at = Path(sys.argv[1]), *map(int, sys.argv[2:6])
    run(folder, steps, global_batch=global_batch, micro_batch=micro_batch, kill_at=kill_at or None)
