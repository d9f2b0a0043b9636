import json
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest

from clients.local.errors import LaunchError
from clients.local.models import Pair
from clients.local.plan import Plan, make_plan
from shared.settings import Settings
from tests.ports import listening

PAIR = Pair(
    "a pair",
    mllm=Path("/models/mllm"),
    diffusion={"llmga-tiny-sd15": Path("/models/sd15")},
    restoration=Path("/models/restoration"),
)


def plan(home: Path, *, port: int | None = 0, workers: int = 1, **environ: str) -> Plan:
    (home / "valkey").mkdir(exist_ok=True)
    return make_plan(home, PAIR, port=port, workers=workers, environ=environ)


def settings(environment: Mapping[str, str]) -> Settings:
    return Settings.load(environment)


def test_every_service_gets_settings_that_it_accepts(tmp_path: Path) -> None:
    planned = plan(tmp_path, workers=2)
    for spec in (planned.gateway, *planned.workers):
        loaded = settings(spec.environment)
        assert loaded.home == tmp_path
        assert loaded.mllm.model == "/models/mllm"
        assert loaded.mllm.temperature == 0
        assert loaded.diffusion.models == {"llmga-tiny-sd15": "/models/sd15"}
        assert loaded.diffusion.restoration == "/models/restoration"
        assert loaded.redis.url == planned.redis_url


def test_no_two_processes_share_a_port(tmp_path: Path) -> None:
    planned = plan(tmp_path, workers=3)
    gateway = settings(planned.gateway.environment)
    ports = [gateway.gateway.port, gateway.gateway.metrics_port, gateway.mllm.port, gateway.mllm.metrics_port]
    ports += [settings(spec.environment).diffusion.metrics_port for spec in planned.workers[1:]]
    ports.append(int(planned.redis_url.rpartition(":")[2].partition("/")[0]))
    assert len(set(ports)) == len(ports) == 8


def test_the_users_settings_pass_through_and_win(tmp_path: Path) -> None:
    planned = plan(tmp_path, LLMGA_MLLM__TEMPERATURE="0.5", llmga_mllm__name="mine", PATH="/bin")
    loaded = settings(planned.workers[0].environment)
    assert loaded.mllm.temperature == 0.5
    assert loaded.mllm.name == "mine"
    assert planned.workers[0].environment["PATH"] == "/bin"


def test_a_gateway_on_loopback_asks_for_no_keys_and_any_other_does(tmp_path: Path) -> None:
    local = plan(tmp_path)
    assert not local.asks_for_keys
    assert settings(local.gateway.environment).auth.mode == "none"
    for planned in (plan(tmp_path, LLMGA_GATEWAY__HOST="0.0.0.0"), plan(tmp_path, LLMGA_AUTH__MODE="keys")):
        assert planned.asks_for_keys
        assert settings(planned.gateway.environment).auth.mode == "keys"
    assert not plan(tmp_path, LLMGA_GATEWAY__HOST="0.0.0.0", LLMGA_AUTH__MODE="none").asks_for_keys


def test_the_clients_key_is_not_told_to_the_services(tmp_path: Path) -> None:
    planned = plan(tmp_path, LLMGA_API_KEY="llmga_secret")
    for spec in planned.services:
        assert "llmga_secret" not in spec.environment.values()


def test_a_server_of_the_user_replaces_valkey(tmp_path: Path) -> None:
    planned = plan(tmp_path, LLMGA_REDIS__URL="redis://elsewhere:6379/1")
    assert planned.valkey is None
    assert settings(planned.gateway.environment).redis.url == "redis://elsewhere:6379/1"


def test_valkey_keeps_every_accepted_job_and_its_password_secret(tmp_path: Path) -> None:
    planned = plan(tmp_path)
    configuration = tmp_path / "valkey" / "valkey.conf"
    text = configuration.read_text()
    assert "appendfsync always" in text
    assert "maxmemory-policy noeviction" in text
    assert "bind 127.0.0.1" in text
    password = planned.redis_url.partition("://:")[2].partition("@")[0]
    assert f"requirepass {password}" in text
    assert stat.S_IMODE(configuration.stat().st_mode) == 0o600
    assert planned.valkey is not None
    assert password not in " ".join(planned.valkey.command)


def test_a_taken_port_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with listening() as taken:
        taken.listen()
        with pytest.raises(LaunchError, match="cannot be used") as caught:
            plan(tmp_path, port=taken.getsockname()[1])
    assert "--port" in caught.value.next_step


@pytest.mark.parametrize("port", ["none", "-1", "65536"])
def test_a_port_that_is_none_is_refused(tmp_path: Path, port: str) -> None:
    with pytest.raises(LaunchError, match="not a port"):
        plan(tmp_path, port=None, LLMGA_GATEWAY__PORT=port)


def test_the_flag_wins_over_the_setting_for_the_port(tmp_path: Path) -> None:
    planned = plan(tmp_path, port=0, LLMGA_GATEWAY__PORT="1")
    assert settings(planned.gateway.environment).gateway.port > 1


def test_libraries_keep_their_caches_in_the_home(tmp_path: Path) -> None:
    environment = plan(tmp_path, XDG_CACHE_HOME="/mine").workers[0].environment
    assert environment["VLLM_CACHE_ROOT"].startswith(str(tmp_path))
    assert environment["XDG_CACHE_HOME"] == "/mine"


def test_models_are_named_as_json(tmp_path: Path) -> None:
    environment = plan(tmp_path).workers[1].environment
    assert json.loads(environment["LLMGA_DIFFUSION__MODELS"]) == {"llmga-tiny-sd15": "/models/sd15"}
