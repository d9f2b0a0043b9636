"""Which checkpoints are loaded, who makes room for whom, and that nobody waits for ever."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from services.diffusion.checkpoints import UnfitCheckpoint
from services.diffusion.library import PATIENCE_S, ModelLibrary, Shelf
from services.diffusion.loading import LoadedModel, expected_bytes, weight_bytes
from services.diffusion.memory import machine_bytes, weight_budget
from shared.errors import ModelUnavailable
from tests.services.diffusion.jobs import eventually

SIZE = 100
WAIT_S = 60.0


class Disk:
    """Loads models of `SIZE` bytes, each when the test allows it; some are broken."""

    def __init__(self, model: LoadedModel, *names: str, budget: int | None, clock: Callable[[], float] | None = None):
        self.model = model
        self.loads: list[str] = []
        self.broken: dict[str, Exception] = {}
        self.gates = {name: threading.Event() for name in names}
        for gate in self.gates.values():
            gate.set()
        more: dict[str, Any] = {} if clock is None else {"clock": clock}
        shelves = {name: Shelf(model.files, SIZE) for name in names}
        self.library = ModelLibrary(shelves, self.load, budget_bytes=budget, **more)

    def load(self, name: str, _: Shelf) -> LoadedModel:
        self.loads.append(name)
        assert self.gates[name].wait(WAIT_S)
        if name in self.broken:
            raise self.broken[name]
        return replace(self.model, name=name, bytes=SIZE)

    async def use(self, name: str) -> LoadedModel:
        async with self.library.hold(name) as model:
            return model

    def start(self, name: str) -> tuple[asyncio.Task[None], asyncio.Event]:
        """Hold a model until the event is set."""
        done = asyncio.Event()

        async def hold() -> None:
            async with self.library.hold(name):
                await done.wait()

        return asyncio.create_task(hold()), done


async def settle() -> None:
    """Let everything that can go on go on."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_checkpoint_is_loaded_once_for_all_who_ask(model: LoadedModel) -> None:
    disk = Disk(model, "a", "b", budget=None)
    found = await asyncio.gather(*(disk.use("a") for _ in range(5)))
    assert {one.name for one in found} == {"a"}
    await disk.use("b")
    await disk.use("a")
    assert disk.loads == ["a", "b"]
    assert disk.library.used_bytes == 2 * SIZE


async def test_the_least_recently_used_makes_room(model: LoadedModel) -> None:
    disk = Disk(model, "a", "b", "c", budget=2 * SIZE)
    for name in ("a", "b", "a", "c"):
        await disk.use(name)
    assert list(disk.library.loaded) == ["a", "c"]
    await disk.use("b")
    assert list(disk.library.loaded) == ["c", "b"]
    assert disk.loads == ["a", "b", "c", "b"]


async def test_what_a_request_holds_stays_until_it_is_let_go(model: LoadedModel) -> None:
    disk = Disk(model, "a", "b", budget=SIZE)
    holder, done = disk.start("a")
    await eventually(lambda: "a" in disk.library.loaded)
    other = asyncio.create_task(disk.use("b"))
    await settle()
    assert list(disk.library.loaded) == ["a"]
    done.set()
    assert (await other).name == "b"
    assert list(disk.library.loaded) == ["b"]
    await holder


async def test_an_idle_checkpoint_leaves_before_one_that_is_held(model: LoadedModel) -> None:
    disk = Disk(model, "a", "b", "c", budget=2 * SIZE)
    holder, done = disk.start("a")
    await eventually(lambda: "a" in disk.library.loaded)
    await disk.use("b")
    await disk.use("c")
    assert list(disk.library.loaded) == ["a", "c"]
    done.set()
    await holder


async def test_steady_work_with_one_checkpoint_does_not_keep_another_out(model: LoadedModel) -> None:
    disk = Disk(model, "a", "b", budget=SIZE)
    first, first_done = disk.start("a")
    await eventually(lambda: "a" in disk.library.loaded)
    other = asyncio.create_task(disk.use("b"))
    await settle()
    late, late_done = disk.start("a")  # comes while the other waits, and would keep the checkpoint held
    await settle()
    first_done.set()
    assert (await asyncio.wait_for(other, WAIT_S)).name == "b"
    late_done.set()
    await asyncio.gather(first, late)
    assert disk.loads == ["a", "b", "a"]


async def test_many_who_want_two_that_do_not_fit_together_all_come_to_their_turn(model: LoadedModel) -> None:
    disk = Disk(model, "a", "b", budget=SIZE)
    found = await asyncio.wait_for(asyncio.gather(*(disk.use(name) for name in "abababab")), WAIT_S)
    assert [one.name for one in found] == list("abababab")
    assert len(disk.loads) <= 3, "those who waited for a checkpoint all had it before it left"


async def test_what_is_loaded_can_be_used_while_another_loads(model: LoadedModel) -> None:
    disk = Disk(model, "a", "b", budget=None)
    await disk.use("a")
    disk.gates["b"].clear()
    other = asyncio.create_task(disk.use("b"))
    await eventually(lambda: disk.loads == ["a", "b"])
    assert (await disk.use("a")).name == "a"
    assert not other.done()
    disk.gates["b"].set()
    await other


@pytest.mark.parametrize(
    ("error", "words"),
    [(UnfitCheckpoint("/secret/b is damaged"), "could not be loaded"), (MemoryError(), "does not fit the memory")],
)
async def test_a_checkpoint_that_does_not_load_fails_those_who_want_it_and_nobody_else(
    model: LoadedModel, error: Exception, words: str
) -> None:
    disk = Disk(model, "a", "b", budget=2 * SIZE)
    holder, done = disk.start("a")
    disk.broken["b"] = error
    for outcome in await asyncio.gather(disk.use("b"), disk.use("b"), return_exceptions=True):
        assert isinstance(outcome, ModelUnavailable)
        assert words in outcome.detail
        assert "/secret" not in outcome.detail
    assert not holder.done()
    del disk.broken["b"]
    assert (await disk.use("b")).name == "b", "the next one tries again"
    done.set()
    await holder


async def test_a_job_that_is_canceled_while_it_waits_leaves_nothing_behind(model: LoadedModel) -> None:
    disk = Disk(model, "a", "b", budget=SIZE)
    disk.gates["a"].clear()
    waiting = asyncio.create_task(disk.use("a"))
    await eventually(lambda: disk.loads == ["a"])
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    disk.gates["a"].set()
    assert (await asyncio.wait_for(disk.use("b"), WAIT_S)).name == "b"
    assert list(disk.library.loaded) == ["b"]


async def test_jobs_of_loaded_checkpoints_are_preferred_but_not_for_ever(model: LoadedModel) -> None:
    now = [0.0]
    disk = Disk(model, "a", "b", budget=None, clock=lambda: now[0])
    assert disk.library.wanted() == [["a", "b"]], "nothing is loaded: whatever comes first"
    await disk.use("a")
    assert disk.library.wanted() == [["a"], ["a", "b"]]
    now[0] += PATIENCE_S
    assert disk.library.wanted() == [["a", "b"]], "the job whose turn it is, whatever its checkpoint"
    assert disk.library.wanted() == [["a"], ["a", "b"]]
    await disk.use("b")
    assert disk.library.wanted() == [["a", "b"]]


async def test_no_jobs_are_looked_for_in_favour_of_a_checkpoint_that_leaves(model: LoadedModel) -> None:
    disk = Disk(model, "a", "b", "c", budget=2 * SIZE)
    holders = [disk.start(name) for name in ("a", "b")]
    await eventually(lambda: len(disk.library.loaded) == 2)
    other = asyncio.create_task(disk.use("c"))
    await settle()
    assert disk.library.wanted() == [["b"], ["a", "b", "c"]]
    for _, done in holders:
        done.set()
    await asyncio.gather(other, *(task for task, _ in holders))


async def test_the_worker_is_told_when_others_are_loaded(model: LoadedModel) -> None:
    disk = Disk(model, "a", "b", budget=SIZE)
    changes: list[list[str]] = []
    disk.library.on_change = lambda: changes.append(list(disk.library.loaded))
    await disk.use("a")
    await disk.use("b")
    assert changes == [["a"], [], ["b"]]


def test_bytes_are_those_of_the_tensors(model: LoadedModel, sdxl_model: LoadedModel) -> None:
    for one in (model, sdxl_model):
        counted = sum(weight_bytes(part) for part in (one.unet, one.vae, *one.text_encoders))
        assert one.bytes == counted
        expected = expected_bytes(one.files, torch.float32)
        assert abs(one.bytes - expected) < 4_096, "but for buffers that no file holds"
        assert expected_bytes(one.files, torch.bfloat16) * 2 == expected
        assert expected_bytes(one.files, torch.float32, "bitsandbytes-8bit") < expected


def test_the_budget_is_the_settings_or_a_share_of_the_machine(tmp_path: Any) -> None:
    cpu = torch.device("cpu")
    assert weight_budget(1.5, cpu) == 3 * 2**29
    limit = tmp_path / "memory.max"
    limit.write_text("1073741824\n")
    assert machine_bytes(limit) == 2**30
    limit.write_text("max\n")
    assert machine_bytes(limit) == machine_bytes(tmp_path / "none") > 2**30
    assert 0 < weight_budget(None, cpu) < machine_bytes()
