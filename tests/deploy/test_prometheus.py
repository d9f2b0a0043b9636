import re
import shutil
import subprocess
from typing import Any

import pytest
from prometheus_client import Counter, Gauge, Histogram

from shared import metrics
from shared.settings import Settings
from tests.deploy.composition import ROOT, compose, load

FOLDER = ROOT / "deploy/prometheus"
RULES = [rule for group in load((FOLDER / "rules.yml").read_text())["groups"] for rule in group["rules"]]
promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def check(*arguments: str) -> None:
    run = subprocess.run(["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr


@promtool
def test_prometheus_takes_the_configuration() -> None:
    check("check", "config", "prometheus.yml")


@promtool
def test_alerts_fire_when_they_should_and_not_otherwise() -> None:
    check("test", "rules", "rules_test.yml")


def jobs() -> dict[str, dict[str, Any]]:
    configuration = load((FOLDER / "prometheus.yml").read_text())
    return {job["job_name"]: job for job in configuration["scrape_configs"]}


@pytest.mark.parametrize(
    ("job", "service", "port"),
    [
        ("gateway", "gateway", Settings().gateway.metrics_port),
        ("mllm", "mllm", Settings().mllm.metrics_port),
        ("diffusion", "diffusion", Settings().diffusion.metrics_port),
        ("vllm", "mllm", Settings().mllm.port),
    ],
)
def test_every_process_is_scraped_where_it_serves_metrics(job: str, service: str, port: int) -> None:
    (found,) = jobs()[job]["dns_sd_configs"]
    assert (found["names"], found["port"], found["type"]) == ([service], port, "A")
    assert jobs()[job].get("metrics_path", "/metrics") == "/metrics"
    assert service in compose()["services"]


def test_the_folder_is_mounted_where_the_command_looks() -> None:
    service = compose()["services"]["prometheus"]
    assert "./deploy/prometheus:/etc/prometheus:ro" in service["volumes"]
    assert "--config.file=/etc/prometheus/prometheus.yml" in service["command"]
    assert "--storage.tsdb.path=/prometheus" in service["command"]
    assert "prometheus-data:/prometheus" in service["volumes"]


def series() -> dict[str, tuple[str, ...]]:
    """Return every series that the code exports, with its labels."""
    found: dict[str, tuple[str, ...]] = {}
    for metric in vars(metrics).values():
        if isinstance(metric, Counter | Gauge | Histogram):
            (family,) = metric.describe()
            ends = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
            found |= {family.name + end: metric._labelnames for end in ends}
    return found


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_series_and_labels_that_exist(rule: dict[str, Any]) -> None:
    known = series()
    asked = re.findall(r"\b(llmga_\w+)(?:\{([^}]*)\})?", rule["expr"])
    assert asked or rule["expr"].startswith("up")
    for name, selector in asked:
        assert name in known
        assert set(re.findall(r"(\w+)\s*=", selector)) <= set(known[name])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(rule["annotations"]) == {"summary", "description"}
    assert rule["annotations"]["description"].endswith(".")
