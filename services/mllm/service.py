"""The state of this process: its phase, the checkpoint that it serves, how it ends.

vLLM makes our plugin by a function without arguments, so the state that `__main__` prepared is found through
`current`.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

from services.mllm.checkpoints import Facts, Prepared
from services.mllm.options import Options
from shared.artifacts import ArtifactStore
from shared.contracts import Announcement, Phase, ServedModel, Stage, Task
from shared.contracts.published import find_published
from shared.settings import Settings, worker_name

_PHASES = list(Phase)


class Service:
    """What the process is doing now; safe to use from any thread."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.worker = worker_name()
        self.artifacts: ArtifactStore | None = None
        self.prepared: Prepared | None = None
        self.options: Options | None = None
        self.exit_status = 0
        self.is_live: Callable[[], bool] = lambda: True  # the consumer's progress, once there is one
        self.taken_over: Callable[[], None] = lambda: None  # called when the consumer announces from then on
        self._lock = threading.Lock()
        self._phase = Phase.STARTING
        self._detail = ""
        self._since = time.monotonic()

    @property
    def phase(self) -> Phase:
        """The start-up phase."""
        return self._phase

    @property
    def facts(self) -> Facts:
        """Facts of the checkpoint, once it is prepared."""
        assert self.prepared is not None
        return self.prepared.facts

    @property
    def model(self) -> str:
        """The name under which the model is served."""
        if self.settings.mllm.name:
            return self.settings.mllm.name
        return self.facts.source if self.prepared else ""

    def enter(self, phase: Phase, detail: str = "") -> None:
        """Go on to a phase, never back to an earlier one."""
        with self._lock:
            if _PHASES.index(phase) < _PHASES.index(self._phase):
                return
            if phase is not self._phase:
                self._since = time.monotonic()
            self._phase, self._detail = phase, detail

    def announcement(self, *, running: int = 0, free: int = 0) -> Announcement:
        """Return what this worker says of itself."""
        with self._lock:
            phase, detail = self._phase, self._detail
        models = []
        if self.prepared is not None:
            models = [self._served()]
        return Announcement(
            worker=self.worker,
            stage=Stage.PROMPT,
            phase=phase,
            detail=detail,
            models=models,
            free=free if phase is Phase.READY else 0,
            running=running,
            url=self.settings.mllm.reachable_url,
        )

    def _served(self) -> ServedModel:
        facts, options = self.facts, self.options
        published = find_published(facts.source)
        return ServedModel(
            name=self.model,
            default=True,
            tasks=list(Task),
            kind=facts.family,
            source=facts.source,
            languages=list(published.languages) if published else None,
            parameters=facts.parameters,
            dtype=options.dtype if options else None,
            quantization=options.quantization if options else None,
            max_model_len=options.max_model_len if options else None,
        )

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Return whether jobs can be taken, and what `/readyz?verbose` shows."""
        with self._lock:
            phase, detail, since_s = self._phase, self._detail, time.monotonic() - self._since
        details: dict[str, Any] = {"phase": phase, "detail": detail, "phase_s": round(since_s, 1)}
        if self.prepared is not None:
            facts = self.facts
            details |= {
                "model": self.model,
                "source": facts.source,
                "family": facts.family,
                "parameters": facts.parameters,
                "fingerprint": facts.fingerprint,
                "worker": self.worker,
            }
        if self.options is not None:
            details["options"] = self.options.details()
        return phase is Phase.READY, details


_current: Service | None = None


def install(service: Service) -> None:
    """Make this the process's service."""
    global _current
    _current = service


def current() -> Service:
    """Return the process's service.

    Raises:
        RuntimeError: the process was not started by `python -m services.mllm`.
    """
    if _current is None:
        raise RuntimeError("this plugin works in the server that `python -m services.mllm` starts")
    return _current
