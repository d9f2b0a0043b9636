"""How many more jobs vLLM takes now, so that it is always full and never drowned.

vLLM runs at most `max_running` requests, fewer when its KV cache is full, and queues the rest. What it queues
is lost to other workers and to the queue's own order, so only a few wait in vLLM: just enough that a place
that becomes free is filled in the same step, without a way to the queue and back. Requests of the direct
routes count as well.
"""

from collections.abc import Callable
from dataclasses import dataclass

AHEAD_SHARE = 8  # one waiting request for this many running ones


@dataclass(frozen=True)
class Load:
    """vLLM's requests: `unfinished` now, `running` and `waiting` as of its latest step."""

    unfinished: int
    running: int
    waiting: int


class Flow:
    """Decides from vLLM's load."""

    def __init__(self, max_running: int, load: Callable[[], Load]) -> None:
        self._max_running = max_running
        self._load = load
        self.ahead = max(max_running // AHEAD_SHARE, 1)

    @property
    def capacity(self) -> int:
        """The most jobs that are ever in hand: those in vLLM, and as many that tell the queue of their end."""
        return 2 * self._max_running

    def room(self) -> int:
        """Return how many more requests to give to vLLM."""
        load = self._load()
        if load.waiting and load.unfinished:
            # It could not start all of them: what runs is all that fits.
            return max(self.ahead - max(load.unfinished - load.running, 0), 0)
        return max(self._max_running + self.ahead - load.unfinished, 0)
