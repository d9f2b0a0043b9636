"""From examples to the batches of a step, made ahead of time by threads while the model computes."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from training.plan import Plan
from training.runs.order import drawn, seed_of

Batch = dict[str, Any]
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Examples(Protocol[T_co]):
    """A numbered set of examples; a set without end gives a large length and draws from the seed alone."""

    def __len__(self) -> int: ...

    def example(self, position: int, seed: int) -> T_co:
        """Return the example at a position; all that is random about it comes from the seed."""
        ...


Collate = Callable[[list[T], list[int]], Batch]
"""Examples and one seed for each of them, for the noise that the loss needs -> tensors of one forward pass."""


def batches(
    examples: Examples[T],
    collate: Collate[T],
    plan: Plan,
    *,
    start: int,
    process: int,
    processes: int,
    loaders: int,
) -> Iterator[list[Batch]]:
    """Yield the micro-batches of this process for every step from `start` on.

    Micro-batch a of process p holds the places from (a * processes + p) * micro_batch on, so that the same places
    stand together whatever the number of processes. `loaders` threads work ahead; 0 means when asked.
    """
    numbers = range(plan.accumulation(processes))

    def make(step: int, number: int) -> Batch:
        first = (number * processes + process) * plan.micro_batch
        chosen, seeds = [], []
        for place in range(first, first + plan.micro_batch):
            position, seed = drawn(plan.seed, step, place, global_batch=plan.global_batch, length=len(examples))
            chosen.append(examples.example(position, seed))
            seeds.append(seed_of(plan.seed, step, place, "loss"))
        return collate(chosen, seeds)

    steps = iter(range(start, plan.steps))
    if loaders == 0:
        for step in steps:
            yield [make(step, number) for number in numbers]
        return
    with ThreadPoolExecutor(loaders, thread_name_prefix="examples") as pool:
        ahead: deque[Sequence[Future[Batch]]] = deque()

        def order(step: int | None) -> None:
            if step is not None:
                ahead.append([pool.submit(make, step, number) for number in numbers])

        try:
            for _ in range(loaders + 1):
                order(next(steps, None))
            while ahead:
                yield [future.result() for future in ahead.popleft()]
                order(next(steps, None))
        finally:
            for futures in ahead:
                for future in futures:
                    future.cancel()
