"""`python -m services.mllm`: prepare the checkpoint, then run vLLM's own server in this process.

`--help` and faults in the settings answer at once: neither torch nor vLLM is imported before they are needed.
Exit status: 0 after SIGTERM, 2 for what the operator has to set right, 3 when the engine died.
"""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from shared.logs import configure
from shared.settings import Settings, SettingsError, describe

if TYPE_CHECKING:
    from services.mllm.service import Service

_log = logging.getLogger("llmga.mllm")

EXIT_REFUSED = 2
PREFIXES = ("LLMGA_HOME", "LLMGA_DEVICE", "LLMGA_REDIS", "LLMGA_QUEUE", "LLMGA_ARTIFACTS", "LLMGA_MLLM", "LLMGA_LOG")


class Refused(Exception):
    """The operator has to set something right."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the service; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m services.mllm",
        description="The LLMGA language model service: vLLM's server with our endpoint and job consumer.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="environment:\n"
        + "\n".join(
            f"  {name} [{default}] {description}".rstrip()
            for name, default, description in describe()
            if name.startswith(PREFIXES)
        ),
    )
    parser.parse_args(arguments)
    try:
        settings = Settings.load()
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_REFUSED
    configure(settings.log, service="mllm")
    if settings.log.level != "DEBUG":
        logging.getLogger("vllm").setLevel(logging.WARNING)  # thousands of lines about its own start
    try:
        return _run(settings)
    except (Refused, SettingsError) as error:
        _log.error("%s", error)
        return EXIT_REFUSED


def _run(settings: Settings) -> int:
    from services.mllm.announcing import StartupAnnouncer
    from services.mllm.ending import end_on_signals
    from services.mllm.service import Service, install
    from shared.artifacts import open_store
    from shared.jobs import UnfitServer
    from shared.status import serve_status

    if not settings.mllm.model:
        raise Refused("LLMGA_MLLM__MODEL is not set: give the folder or the hub id of an LLMGA checkpoint")
    service = Service(settings)
    service.artifacts = open_store(settings)
    install(service)

    def refused(error: UnfitServer) -> None:
        _log.error("%s", error)
        service.exit_status = EXIT_REFUSED
        os.kill(os.getpid(), signal.SIGTERM)

    end_on_signals(lambda: service.exit_status)  # until the server is up: then our plugin drains
    with ExitStack() as closing:
        if port := settings.mllm.metrics_port:
            try:
                status = serve_status(
                    port, live=lambda: service.is_live(), ready=service.ready, host=settings.metrics_host
                )
            except OSError:
                raise Refused(f"port {port} is taken: set LLMGA_MLLM__METRICS_PORT to a free one") from None
            closing.callback(status.close)
        announcer = StartupAnnouncer(service, refused)
        closing.callback(announcer.close)
        service.taken_over = announcer.close
        _serve(service)
    return service.exit_status


def _serve(service: "Service") -> None:
    from services.mllm.checkpoints import CheckpointError, prepare
    from services.mllm.options import OptionsRefused
    from services.mllm.server import DeviceMissing, resolve_options, serve
    from shared.contracts import Phase

    settings = service.settings
    service.enter(Phase.CONVERTING)
    try:
        service.prepared = prepare(
            settings.mllm.model,
            settings.home / "cache" / "mllm",
            tower=settings.mllm.tower,
            progress=lambda text: service.enter(Phase.CONVERTING, text),
        )
        service.enter(Phase.LOADING, f"loading {service.model}")
        service.options = resolve_options(settings, service.prepared)
        serve(settings, service.options, service.prepared, model=service.model)
    except (CheckpointError, DeviceMissing, OptionsRefused) as error:
        raise Refused(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
