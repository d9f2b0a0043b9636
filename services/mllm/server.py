"""vLLM's own server, run in this process. One of the few files that touch vLLM.

The Python entry is used, not `vllm serve`: the command looks for a distribution named `vllm`, which the CPU
build is not.
"""

import asyncio
import os

from services.mllm.checkpoints import Prepared
from services.mllm.launch import vllm_arguments, vllm_environment
from shared.settings import Settings

KEEP_CONNECTIONS_S = 5  # open streams, once the server was told to end


class DeviceMissing(Exception):
    """The settings ask for a device that is not there."""


def serve(settings: Settings, prepared: Prepared, *, model: str) -> None:
    """Run the server until it ends.

    Raises:
        DeviceMissing: a GPU was asked for and there is none.
    """
    import torch

    has_gpu = torch.cuda.is_available()
    if settings.device.startswith("cuda") and not has_gpu:
        raise DeviceMissing(f"LLMGA_DEVICE is {settings.device} and torch finds no CUDA device: set it to auto or cpu")
    is_cpu = settings.device == "cpu" or not has_gpu
    python_path = os.environ.get("PYTHONPATH", "")
    os.environ.update(
        vllm_environment(settings, is_cpu=is_cpu, parameters=prepared.facts.parameters, python_path=python_path)
    )

    from services.mllm.torchvision_schemas import register

    register()  # vLLM imports torchvision before it runs its plugins
    import uvloop
    from vllm.entrypoints.launchers.api_server.entry import run_server_worker, setup_server
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    arguments = vllm_arguments(settings, prepared, model=model, is_cpu=is_cpu)
    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(arguments)
    validate_parsed_serve_args(parsed)
    address, sock = setup_server(parsed, reuse_port=False)
    # The records of uvicorn reach our handler, as all others do.
    server = run_server_worker(address, sock, parsed, log_config=None, timeout_graceful_shutdown=KEEP_CONNECTIONS_S)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(server)
