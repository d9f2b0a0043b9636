"""vLLM's own server, run in this process. One of the few files that touch vLLM.

The Python entry is used, not `vllm serve`: the command looks for a distribution named `vllm`, which the CPU
build is not.
"""

import asyncio
import json
import os
import shutil
from importlib.metadata import entry_points
from pathlib import Path

from services.mllm.checkpoints import Prepared
from services.mllm.launch import BITSANDBYTES_PLUGIN, vllm_arguments, vllm_environment
from services.mllm.options import Device, Options, resolve
from shared.settings import Settings

KEEP_CONNECTIONS_S = 5  # open streams, once the server was told to end


class DeviceMissing(Exception):
    """The settings ask for a device that is not there."""


def resolve_options(settings: Settings, prepared: Prepared) -> Options:
    """Return what the settings come to on this machine.

    Raises:
        DeviceMissing: a GPU was asked for and there is none.
        OptionsRefused: something cannot work here.
    """
    config = json.loads((prepared.folder / "config.json").read_text(encoding="utf-8"))
    return resolve(settings, config, prepared.facts, find_device(settings.device))


def find_device(wanted: str) -> Device:
    """Return the device that a setting names.

    Raises:
        DeviceMissing: a GPU was asked for and there is none.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = int(wanted.partition(":")[2] or 0)
    if wanted.startswith("cuda") and number >= count:
        raise DeviceMissing(
            f"LLMGA_DEVICE is {wanted} and torch finds {count or 'no'} CUDA device{'s' if count > 1 else ''}: "
            "set it to auto or cpu"
        )
    if wanted == "cpu" or not count:
        memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Device("cpu", "cpu", memory_bytes, has_compiler=shutil.which("g++") is not None)
    found = torch.cuda.get_device_properties(number)
    return Device(
        "cuda",
        found.name,
        found.total_memory,
        count=count,
        capability=(found.major, found.minor),
        has_bitsandbytes=bool(entry_points(group="vllm.general_plugins", name=BITSANDBYTES_PLUGIN)),
    )


def serve(settings: Settings, options: Options, prepared: Prepared, *, model: str) -> None:
    """Run the server until it ends."""
    python_path = os.environ.get("PYTHONPATH", "")
    os.environ.update(
        vllm_environment(settings, options, parameters=prepared.facts.parameters, python_path=python_path)
    )

    from services.mllm.torchvision_schemas import register

    register()  # vLLM imports torchvision before it runs its plugins
    import uvloop
    from vllm.entrypoints.launchers.api_server.entry import run_server_worker, setup_server
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    if options.device_kind == "cpu":
        _import_model(prepared.folder)
    arguments = vllm_arguments(settings, options, prepared, model=model)
    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(arguments)
    validate_parsed_serve_args(parsed)
    address, sock = setup_server(parsed, reuse_port=False)
    # The records of uvicorn reach our handler, as all others do.
    server = run_server_worker(address, sock, parsed, log_config=None, timeout_graceful_shutdown=KEEP_CONNECTIONS_S)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(server)


def _import_model(folder: Path) -> None:
    """Import the model's class in this process.

    vLLM asks another process what the class can do, as importing one may begin to use a GPU. That process imports all
    of vLLM again, in the first start of each home, and without a GPU it is not needed.
    """
    from vllm import ModelRegistry

    for architecture in json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]:
        if (registered := ModelRegistry.models.get(architecture)) is not None:
            ModelRegistry.register_model(architecture, registered.load_model_cls())
