import asyncio
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from clients.local.plan import WORKER_STOP_S
from shared.jobs import check_server, connect
from shared.settings import CLIENT_VARIABLES, PREFIX, RedisSettings, Settings, describe
from tests.deploy.composition import ROOT, Dockerfile, compose, env_file, interpolated, variables
from tests.valkey import valkey_binary

SERVICES: dict[str, dict[str, Any]] = compose()["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
NAMES = sorted(SERVICES)


def settings_of(name: str) -> Settings:
    """Return what the code makes of the environment that the container gets."""
    service = OURS[name]
    image = Dockerfile(ROOT / service["build"]["dockerfile"]).environment()
    everything = image | env_file(ROOT / "deploy/example.env") | service["environment"]
    return Settings.load({key: str(value) for key, value in everything.items() if key.startswith(PREFIX)})


def test_the_services_are_those_of_the_two_profiles() -> None:
    profiles = {name: tuple(service.get("profiles", ["always"])) for name, service in SERVICES.items()}
    assert profiles == {
        "redis": ("always",),
        "gateway": ("always",),
        "prometheus": ("always",),
        "mllm": ("gpu",),
        "diffusion": ("gpu",),
        "mllm-cpu": ("cpu",),
        "diffusion-cpu": ("cpu",),
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_container_is_boxed_in(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
    limits = service["deploy"]["resources"]["limits"]
    assert re.fullmatch(r"\d+g", limits["memory"])
    assert 0 < limits["pids"] <= 4_096
    assert {"privileged", "cap_add", "pid", "ipc", "network_mode", "devices"} & set(service) == set()
    assert "docker.sock" not in str(service)
    assert int(service["logging"]["options"]["max-file"]) <= 10
    assert all(re.search(r":size=\d+[mg]\b", mount) for mount in service["tmpfs"])


def test_only_the_gateway_is_published_and_on_loopback_unless_told_otherwise() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"gateway": ["127.0.0.1:8080:8080"]}
    assert int(published["gateway"][0].rpartition(":")[2]) == settings_of("gateway").gateway.port


def networks(name: str) -> set[str]:
    return set(SERVICES[name]["networks"])


def test_networks_keep_apart_what_need_not_meet() -> None:
    assert {name for name, network in compose()["networks"].items() if network.get("internal")} == {"queue", "metrics"}
    assert networks("redis") == {"queue"}
    assert networks("prometheus") == {"metrics"}
    assert networks("gateway") == {"front", "queue", "metrics"}
    for name in ("mllm", "diffusion", "mllm-cpu", "diffusion-cpu"):
        assert networks(name) == {"queue", "metrics"}


@pytest.mark.parametrize("name", NAMES)
def test_images_are_pinned(name: str) -> None:
    image = SERVICES[name]["image"]
    if name in OURS:
        assert (ROOT / SERVICES[name]["build"]["dockerfile"]).is_file()
    else:
        assert re.search(r":v?\d+\.\d+", image)


@pytest.mark.parametrize("name", NAMES)
def test_health_is_checked(name: str) -> None:
    if name in OURS:
        assert Dockerfile(ROOT / OURS[name]["build"]["dockerfile"]).only("HEALTHCHECK")
    else:
        assert SERVICES[name]["healthcheck"]["test"]


@pytest.mark.parametrize("name", NAMES)
def test_what_a_service_waits_for_exists_and_is_waited_for_until_healthy(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        assert other in SERVICES
        assert how == {"condition": "service_healthy"}
    if name in OURS:
        assert "redis" in SERVICES[name]["depends_on"]


@pytest.mark.parametrize("name", sorted(OURS))
def test_there_is_time_to_drain(name: str) -> None:
    assert int(OURS[name]["stop_grace_period"].removesuffix("s")) > WORKER_STOP_S


@pytest.mark.parametrize("name", sorted(OURS))
def test_the_environment_is_one_that_the_code_takes(name: str) -> None:
    settings = settings_of(name)
    assert settings.redis.url.startswith("redis://redis:6379/")
    assert settings.redis.durability == "always"
    assert settings.home == Path("/var/lib/llmga")
    assert settings.artifacts.url == "file:///srv/artifacts"
    assert settings.metrics_host == "0.0.0.0"
    assert settings.device == ("cpu" if name.endswith("-cpu") else "cuda" if name != "gateway" else "auto")


def test_every_variable_of_the_project_is_a_setting() -> None:
    known = {name for name, _, _ in describe()}
    files = [ROOT / "docker-compose.yml", *(ROOT / "deploy").rglob("*"), ROOT / "docs/deployment.md"]
    named = {
        name
        for path in files
        if path.is_file()
        for name in re.findall(r"\bLLMGA_[A-Z0-9_]+", path.read_text())
        if name != "LLMGA_"
    }
    assert len(named) > 10
    assert named <= known | CLIENT_VARIABLES


def test_the_shells_variables_are_documented_and_not_mistaken_for_settings() -> None:
    page = (ROOT / "docs/deployment.md").read_text()
    for name in variables():
        assert f"`{name}`" in page
        assert not name.startswith(PREFIX)


def test_the_shells_variables_reach_their_place() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    changed = interpolated(
        text, {"BIND_ADDRESS": "10.0.0.1", "PORT": "80", "MODELS_DIR": "/data", "DIFFUSION_GPU": "3"}
    )
    assert "10.0.0.1:80:8080" in changed
    assert "/data:/models:ro" in changed
    assert '"3"' in changed


def mounts(name: str) -> dict[str, tuple[str, bool]]:
    """Return target -> (source, whether it is read-only)."""
    parts = [mount.split(":") for mount in SERVICES[name].get("volumes", [])]
    return {part[1]: (part[0], part[2:] == ["ro"]) for part in parts}


@pytest.mark.parametrize("name", NAMES)
def test_folders_of_the_host_are_read_only_and_volumes_are_declared(name: str) -> None:
    for source, is_read_only in mounts(name).values():
        if source.startswith((".", "/")):
            assert is_read_only
            assert (ROOT / source).is_dir() or source == "./models"
        else:
            assert source in compose()["volumes"]
            assert not is_read_only


def test_every_volume_is_used() -> None:
    used = {source for name in NAMES for source, _ in mounts(name).values()}
    assert set(compose()["volumes"]) <= used


@pytest.mark.parametrize("name", sorted(OURS))
def test_what_a_service_writes_lies_on_a_volume(name: str) -> None:
    settings = settings_of(name)
    assert mounts(name)[settings.artifacts.url.removeprefix("file://")] == ("artifacts", False)
    assert str(settings.home) in mounts(name)


def test_the_gateway_asks_for_keys_that_outlive_its_container() -> None:
    settings = settings_of("gateway")
    assert settings.auth.mode == "keys"
    assert mounts("gateway")[str(settings.keys_path.parent)] == ("gateway-home", False)


@pytest.mark.parametrize("name", ["mllm", "mllm-cpu", "diffusion", "diffusion-cpu"])
def test_models_are_where_the_example_says(name: str) -> None:
    settings = settings_of(name)
    assert mounts(name)["/models"] == ("./models", True)
    assert settings.mllm.model.startswith("/models/")
    assert all(folder.startswith("/models/") for folder in settings.diffusion.models.values())


@pytest.mark.parametrize("name", ["mllm", "diffusion"])
def test_the_gpu_profile_reserves_a_gpu_and_the_cpu_profile_none(name: str) -> None:
    (device,) = SERVICES[name]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}
    assert "reservations" not in SERVICES[f"{name}-cpu"]["deploy"]["resources"]


@pytest.mark.parametrize("name", ["mllm", "diffusion"])
def test_the_profiles_differ_in_the_device_alone(name: str) -> None:
    changing = {"profiles", "deploy", "networks", "image", "build", "environment"}
    gpu, cpu = SERVICES[name], SERVICES[f"{name}-cpu"]
    assert {key: gpu[key] for key in gpu.keys() - changing} == {key: cpu[key] for key in cpu.keys() - changing}
    assert cpu["networks"]["metrics"]["aliases"] == [name]  # Prometheus finds both under one name


def test_two_services_share_one_gpu_by_default() -> None:
    assert settings_of("mllm").mllm.gpu_memory_utilization <= 0.6


async def test_redis_as_it_is_started_here_is_fit_for_the_queue(tmp_path: Path) -> None:
    program, *arguments = SERVICES["redis"]["command"]
    assert program == "valkey-server"
    assert mounts("redis")["/data"] == ("redis-data", False)
    socket = (
        Path("/tmp") / f"llmga-{tmp_path.name[-20:]}-{time.monotonic_ns()}.sock"
    )  # a path of at most 107 characters
    own = ["--port", "0", "--unixsocket", str(socket), "--dir", str(tmp_path)]
    with (tmp_path / "log").open("wb") as log:
        server = await asyncio.create_subprocess_exec(
            str(valkey_binary()), *arguments, *own, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        settings = RedisSettings(url=f"unix://{socket}", durability="always")
        client = await connect(settings, wait_s=60)
        try:
            await check_server(client, settings)
            configuration = await client.config_get("maxmemory*", "save")
        finally:
            await client.aclose()
    finally:
        server.terminate()
        await server.wait()
        socket.unlink(missing_ok=True)
    assert configuration["maxmemory"] == str(1024**3)
    assert configuration["maxmemory-policy"] == "noeviction"
    assert configuration["save"] == ""


def test_the_limit_of_redis_leaves_room_beside_its_data() -> None:
    assert SERVICES["redis"]["deploy"]["resources"]["limits"]["memory"] == "2g"
