"""The end of this process: streams and waiting calls get a short grace, then end; their clients go on elsewhere."""

import asyncio
from functools import cached_property

GRACE_S = 2.0  # long enough for a job that is about to finish, short against every orchestrator's patience


class Drain:
    """Whether this process is about to end, and when answers that take their time must stop."""

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self._grace_s = grace_s
        self.begun = False

    @cached_property
    def over(self) -> asyncio.Future[None]:
        """Done when the grace is over; one future for all who wait, which costs less than an event with a task each."""
        return asyncio.get_running_loop().create_future()

    def begin(self) -> None:
        """Start the grace; idempotent. Must be called in the event loop."""
        if not self.begun:
            self.begun = True
            asyncio.get_running_loop().call_later(self._grace_s, self._end)

    def _end(self) -> None:
        self.over.set_result(None)
