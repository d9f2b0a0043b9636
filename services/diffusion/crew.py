"""A UNet whose calls are shared out among threads by rows, on a CPU.

OpenMP divides each of a UNet's hundreds of loops among its threads, and all of them meet at the end of each. Two half
calls of one thread each meet once. Rows do not see each other, so a call's parts have the bits of the whole, as long as
each has rows enough for the same kernels; which split is fastest is measured for each bucket at start
(`profile.worthwhile`).
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import torch


class Split(NamedTuple):
    """How many parts a call's rows are divided into, and how many threads each of them has."""

    parts: int
    threads: int


class CrewedUNet:
    """A UNet that answers as the one inside does; one call at a time has all the threads.

    `splits`: of calls, by their rows; any other goes undivided to the UNet, with all threads.
    """

    def __init__(self, unet: Any, threads: int) -> None:
        """`threads`: all that torch may use."""
        self.unet = unet
        self.splits: dict[int, Split] = {}
        self._threads = threads
        self._others = ThreadPoolExecutor(max(1, threads - 1), thread_name_prefix="llmga-crew")

    def candidates(self, rows: int, least: int) -> Iterator[Split]:
        """Yield the splits that a call of so many rows may have, undivided first; a part has `least` rows or more."""
        threads = self._threads
        while True:
            parts = 1
            while parts * 2 * threads <= self._threads and rows >= parts * 2 * least:
                parts *= 2
            yield Split(parts, threads)
            if threads == 1:
                return
            threads //= 2

    def __call__(self, sample: torch.Tensor, timesteps: torch.Tensor, **options: Any) -> tuple[torch.Tensor]:
        """Return the UNet's answer, without gradients; the options are those of diffusers' UNet, in tensors by rows."""
        rows = len(sample)
        parts, threads = self.splits.get(rows, Split(1, self._threads))
        size = rows // parts
        calls = [
            _rows((sample, timesteps, options), slice(start, start + size), rows) for start in range(0, rows, size)
        ]
        others = [self._others.submit(self._part, threads, *call) for call in calls[1:]]
        try:
            answers = [self._part(threads, *calls[0])]
        finally:
            wait(others)
            _use(self._threads)
        answers += [other.result() for other in others]
        return (answers[0] if parts == 1 else torch.cat(answers),)

    def _part(self, threads: int, sample: torch.Tensor, timesteps: torch.Tensor, options: Any) -> torch.Tensor:
        _use(threads)
        with torch.inference_mode():
            answer: torch.Tensor = self.unet(sample, timesteps, **options)[0]
        return answer


def _use(threads: int) -> None:
    """Let torch compute with so many threads in the calling one (OpenMP and MKL each keep the number by thread)."""
    if torch.get_num_threads() != threads:  # asking also makes the thread's own setting, which would come later
        torch.set_num_threads(threads)


def _rows(value: Any, part: slice, rows: int) -> Any:
    """Return some rows of all tensors in a structure that have a call's rows."""
    if isinstance(value, torch.Tensor):
        return value[part] if value.ndim and len(value) == rows else value
    if isinstance(value, dict):
        return {name: _rows(one, part, rows) for name, one in value.items()}
    if isinstance(value, tuple):
        return tuple(_rows(one, part, rows) for one in value)
    return value
