import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import get_origin

import pytest
from pydantic import BaseModel

from shared.settings import DELIMITER, PREFIX, Settings, SettingsError, describe, help_text, markdown, worker_name
from shared.webhooks.settings import WebhookSettings

ROOT = Path(__file__).resolve().parents[2]


def problems(environ: dict[str, str]) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        Settings.load(environ)
    return caught.value.problems


def test_an_empty_environment_gives_the_defaults() -> None:
    assert Settings.load({}) == Settings()


def test_nested_names_reach_their_group() -> None:
    settings = Settings.load(
        {
            "LLMGA_REDIS__URL": "rediss://queue:6380/1",
            "LLMGA_GATEWAY__PORT": "9000",
            "LLMGA_LOG__PROMPTS": "true",
            "LLMGA_HOME": "/var/lib/llmga",
        }
    )
    assert settings.redis.url == "rediss://queue:6380/1"
    assert settings.gateway.port == 9000
    assert settings.log.prompts
    assert settings.home == Path("/var/lib/llmga")


def test_the_clients_key_in_the_same_shell_is_no_setting_and_no_mistake() -> None:
    assert Settings.load({"LLMGA_API_KEY": "llmga_secret"}) == Settings()


def test_keys_are_in_the_home_unless_another_file_is_named() -> None:
    assert Settings.load({"LLMGA_HOME": "/var/lib/llmga"}).keys_path == Path("/var/lib/llmga/keys.json")
    named = {"LLMGA_HOME": "/var/lib/llmga", "LLMGA_AUTH__KEYS_FILE": "/etc/llmga/keys.json"}
    assert Settings.load(named).keys_path == Path("/etc/llmga/keys.json")


def test_models_are_a_json_object() -> None:
    settings = Settings.load({"LLMGA_DIFFUSION__MODELS": '{"sd15": "/models/sd15", "xl": "/models/xl"}'})
    assert settings.diffusion.models == {"sd15": "/models/sd15", "xl": "/models/xl"}


@pytest.mark.parametrize("text", ["", "sd15=/models", "[]", "null", "{", '"sd15"'])
def test_models_that_are_no_json_object_are_refused_with_an_example(text: str) -> None:
    (problem,) = problems({"LLMGA_DIFFUSION__MODELS": text})
    assert problem.startswith("LLMGA_DIFFUSION__MODELS: must be a JSON object, for example {")


@pytest.mark.parametrize("text", ['{"": "/m"}', '{"a b": "/m"}', '{"a/b": "/m"}', '{"a": ""}', '{"a": 1}', '{"a": {}}'])
def test_models_with_impossible_names_or_folders_are_refused(text: str) -> None:
    (problem,) = problems({"LLMGA_DIFFUSION__MODELS": text})
    assert problem.startswith("LLMGA_DIFFUSION__MODELS: ")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("LLMGA_REDIS_URL", "LLMGA_REDIS__URL"),
        ("LLMGA_GATEWAY__PROT", "LLMGA_GATEWAY__PORT"),
        ("llmga_home", "LLMGA_HOME"),
        ("LLMGA_DIFFUSION__MODELS__SD15", "LLMGA_DIFFUSION__MODELS"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_known_one(name: str, meant: str) -> None:
    assert problems({name: "x"}) == [f"{name} is not a setting; did you mean {meant}?"]


def test_a_group_cannot_be_set_as_a_whole() -> None:
    (problem,) = problems({"LLMGA_REDIS": '{"url": "redis://a"}'})
    assert "LLMGA_REDIS is not a setting" in problem


def test_names_of_others_are_ignored() -> None:
    assert Settings.load({"PATH": "/bin", "LLMGA": "x", "HOME": "/x", "REDIS__URL": "y"}) == Settings()


def test_all_faults_are_reported_at_once() -> None:
    found = "\n".join(
        problems(
            {
                "LLMGA_TYPO": "1",
                "LLMGA_DEVICE": "tpu",
                "LLMGA_REDIS__URL": "http://queue",
                "LLMGA_QUEUE__LEASE_MS": "soon",
                "LLMGA_DIFFUSION__MODELS": "{",
                "LLMGA_GATEWAY__PORT": "9101",
                "LLMGA_MLLM__MAX_TOKENS": "4096",
            }
        )
    )
    for name in (
        "TYPO",
        "DEVICE",
        "REDIS__URL",
        "QUEUE__LEASE_MS",
        "DIFFUSION__MODELS",
        "GATEWAY__PORT",
        "MLLM__MAX_TOKENS",
    ):
        assert PREFIX + name in found
    assert len(found.splitlines()) == 7


def test_an_explicit_environment_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMGA_GATEWAY__PORT", "1234")
    monkeypatch.setenv("LLMGA_NONSENSE", "1")
    monkeypatch.setenv("LLMGA_REDIS", '{"namespace": "leak"}')
    assert Settings.load({}) == Settings()
    assert Settings().gateway.port == 8080


def test_without_a_mapping_the_environment_of_the_process_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LLMGA_GATEWAY__PORT", "1234")
    assert Settings.load().gateway.port == 1234


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "0", "1e309", "", "9" * 400, "0x10", "5s"])
@pytest.mark.parametrize("name", ["LLMGA_REDIS__SOCKET_TIMEOUT_S", "LLMGA_QUEUE__LEASE_MS", "LLMGA_MLLM__KV_CACHE_GB"])
def test_numbers_that_make_no_sense_are_refused(name: str, value: str) -> None:
    (problem,) = problems({name: value})
    assert problem.startswith(f"{name}: ")


@pytest.mark.parametrize("url", ["redis://:hunter2@h/0", "rediss://u:hunter2@h", "unix:///run/redis.sock"])
def test_every_kind_of_redis_url_is_taken(url: str) -> None:
    assert Settings.load({"LLMGA_REDIS__URL": url}).redis.url == url


def test_a_password_is_neither_in_the_representation_nor_in_a_problem() -> None:
    assert "hunter2" not in repr(Settings.load({"LLMGA_REDIS__URL": "redis://:hunter2@h/0"}))
    assert "hunter2" not in str(problems({"LLMGA_REDIS__URL": "http://:hunter2@h/0"}))


@pytest.mark.parametrize(
    "environ",
    [
        {"LLMGA_QUEUE__LEASE_MS": "60000", "LLMGA_QUEUE__RETENTION_S": "60", "LLMGA_QUEUE__IDEMPOTENCY_S": "60"},
        {"LLMGA_QUEUE__IDEMPOTENCY_S": "86401"},
        {"LLMGA_SESSIONS__RETENTION_S": "86401"},
        {"LLMGA_WEBHOOKS__HOSTS": "hooks.example.com"},
        {"LLMGA_GATEWAY__METRICS_PORT": "8080"},
        {"LLMGA_MLLM__METRICS_PORT": "8001"},
        {"LLMGA_MLLM__MAX_TOKENS": "2048"},
        {"LLMGA_DIFFUSION__C2PA_KEY": "/key.pem"},
        {"LLMGA_DIFFUSION__DEFAULT_MODEL": "xl", "LLMGA_DIFFUSION__MODELS": '{"sd15": "/m"}'},
    ],
    ids=lambda environ: "+".join(environ),
)
def test_settings_that_contradict_each_other_are_refused(environ: dict[str, str]) -> None:
    (problem,) = problems(environ)
    assert any(name in problem for name in environ)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("HOSTS", value) for value in ("hooks.example.com/x", "ftp://hooks.example.com", "*", "a b")),
        *(("SECRET", value) for value in ("hello", "whsec_", "whsec_AAAA", "whsec_!", "A" * 32)),
    ],
)
def test_what_webhooks_cannot_be_sent_or_signed_with_is_refused(name: str, value: str) -> None:
    (problem,) = problems({f"LLMGA_WEBHOOKS__{name}": value})
    assert problem.startswith(f"LLMGA_WEBHOOKS__{name}: ")


def test_hosts_of_webhooks_have_one_form() -> None:
    hosts = "Hooks.example.com, hooks.example.com:8443,http://10.0.0.5:8080, [2606:4700::1]"
    assert WebhookSettings(hosts=hosts).origins == {
        *("https://hooks.example.com:443", "https://hooks.example.com:8443"),
        *("http://10.0.0.5:8080", "https://[2606:4700::1]:443"),
    }


def test_sessions_are_kept_as_long_as_pictures_unless_it_is_said() -> None:
    assert Settings.load({"LLMGA_ARTIFACTS__RETENTION_S": "3600"}).session_retention_s == 3_600
    assert Settings.load({"LLMGA_SESSIONS__RETENTION_S": "60"}).session_retention_s == 60


def test_a_contradiction_that_a_fault_alone_makes_is_not_reported() -> None:
    (problem,) = problems({"LLMGA_DIFFUSION__DEFAULT_MODEL": "xl", "LLMGA_DIFFUSION__MODELS": "{"})
    assert "must be a JSON object" in problem


def test_settings_cannot_be_changed() -> None:
    settings = Settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.gateway.port = 1  # type: ignore[misc]  # that it is refused is the point


def test_every_setting_is_described_and_its_default_is_valid() -> None:
    rows = describe()
    assert len(rows) > 40
    for name, default, description in rows:
        assert description[0].isupper() or description.startswith("`")
        assert not description.startswith("None")
        if default:
            Settings.load({name: default})


def test_every_number_has_an_upper_bound_and_floats_are_finite() -> None:
    def fields(model: type[BaseModel]) -> None:
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                fields(field.annotation)
            elif field.annotation in {int, float} and get_origin(field.annotation) is None:
                assert any(getattr(rule, "le", None) is not None for rule in field.metadata), name
                variable_ends_in_unit_or_counts.append(name)

    variable_ends_in_unit_or_counts: list[str] = []
    fields(Settings)
    assert "lease_ms" in variable_ends_in_unit_or_counts


def test_the_help_text_names_every_setting() -> None:
    text = help_text()
    assert all(f"  {name}=" in text for name, _, _ in describe())


def test_the_page_on_configuration_is_current() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert page == markdown(), "run: python -m shared.settings > docs/configuration.md"


def test_the_module_prints_the_page() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "shared.settings"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout == markdown()


def test_variables_map_to_one_path_each() -> None:
    names = [name for name, _, _ in describe()]
    assert len(names) == len(set(names))
    assert all(name.startswith(PREFIX) and name.count(DELIMITER) <= 1 for name in names)


def test_worker_names_are_new_each_time() -> None:
    assert len({worker_name() for _ in range(10)}) == 10


def test_gateways_reach_a_language_model_where_it_listens_or_where_it_says() -> None:
    assert Settings.load({"LLMGA_MLLM__PORT": "9001"}).mllm.reachable_url == "http://127.0.0.1:9001"
    assert Settings.load({"LLMGA_MLLM__HOST": "::1"}).mllm.reachable_url == "http://[::1]:8001"
    assert Settings.load({"LLMGA_MLLM__URL": "http://pod:80"}).mllm.reachable_url == "http://pod:80"
    everywhere = Settings.load({"LLMGA_MLLM__HOST": "0.0.0.0"}).mllm.reachable_url
    assert everywhere == f"http://{socket.gethostname()}:8001"
    assert problems({"LLMGA_MLLM__URL": "pod:80"})
