"""Work for the device thread that belongs to no picture in the engine: one call, one result.

It is side work as encoding and decoding are: between steps, in order of urgency, within their share of time.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch

from services.diffusion.failures import outcome_of

_log = logging.getLogger("llmga.diffusion.engine")

Result = TypeVar("Result")


@dataclass(slots=True, eq=False)
class Errand(Generic[Result]):
    """A call that waits for the device; `order` counts admissions to the engine."""

    work: Callable[[], Result]
    device: torch.device
    is_interactive: bool
    order: int
    future: Future[Result] = field(default_factory=Future)

    def run(self) -> None:
        """Make the call, unless it was canceled, and tell its future.

        Raises:
            DeviceLost: the device cannot be used any more.
        """
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self.work()
        except Exception as error:
            outcome = outcome_of(error, self.device)
            _log.warning("an errand failed: %s", outcome.code, exc_info=error)
            self.future.set_exception(outcome)
        else:
            self.future.set_result(result)

    def drop(self, outcome: Exception) -> None:
        """Tell its future that the call will not be made."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(outcome)
