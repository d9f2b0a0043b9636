from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

import training.accelerate
from training.runs import Plan

FOLDER = Path(training.accelerate.__file__).parent
KINDS = {
    "cpu": "MULTI_GPU",
    "fsdp": "FSDP",
    "gpus": "MULTI_GPU",
    "zero2": "DEEPSPEED",
    "zero3": "DEEPSPEED",
    "zero3_offload": "DEEPSPEED",
}


@pytest.mark.parametrize("name", sorted(KINDS))
def test_accelerate_takes_the_configuration(name: str) -> None:
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert config.distributed_type.value == KINDS[name]
    assert Plan(steps=1, global_batch=128, micro_batch=4, learning_rate=1.0).accumulation(config.num_processes) >= 4


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_key_means_something_to_the_launcher(name: str) -> None:
    content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    known = vars(launch_command_parser().parse_args(["script.py"]))
    for section in ("deepspeed_config", "fsdp_config"):
        assert set(content.get(section, {})) <= set(known)


def test_every_configuration_is_described() -> None:
    assert sorted(KINDS) == sorted(path.stem for path in FOLDER.glob("*.yaml"))
    assert training.accelerate.__doc__ is not None
    assert all(f"`{name}.yaml`" in training.accelerate.__doc__ for name in KINDS)
