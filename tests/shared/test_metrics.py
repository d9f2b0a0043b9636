import re
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from shared import metrics

# Every label, and what bounds it.
BOUNDED = {
    "method": "the methods that routes have, or `other`",
    "route": "route templates",
    "status": "HTTP statuses, or a job's",
    "task": "an enumeration",
    "lane": "an enumeration",
    "stage": "an enumeration",
    "phase": "an enumeration",
    "rule": "the fall-back rules of the prompt parser",
    "model": "configured names",
    "format": "an enumeration",
    "limit": "the limits that a tenant has",
    "restoration": "an enumeration",
    "outcome": "how an attempt can end",
}
UNITS = {
    "requests",
    "seconds",
    "followers",
    "jobs",
    "leases",
    "previews",
    "workers",
    "tokens",
    "prompts",
    "rows",
    "steps",
    "images",
    "bytes",
    "recompiles",
    "deliveries",
    "levels",
}
KINDS = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}


def ours() -> dict[str, Any]:
    return {name: value for name, value in vars(metrics).items() if isinstance(value, Counter | Gauge | Histogram)}


@pytest.mark.parametrize(("name", "metric"), ours().items(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_metric_is_named_by_the_rule_labelled_boundedly_and_explained(name: str, metric: Any) -> None:
    (family,) = metric.describe()
    full = family.name + ("_total" if family.type == "counter" else "")
    assert re.fullmatch(r"llmga_[a-z]+(_[a-z]+)*", full)
    assert full.removesuffix("_total").rpartition("_")[2] in UNITS
    assert full.endswith("_total") == (family.type == "counter")
    assert set(metric._labelnames) <= set(BOUNDED)
    assert family.documentation.endswith(".")
    if full.endswith("_seconds"):
        assert family.documentation.startswith("Seconds ")


@pytest.mark.parametrize("metric", [metric for metric in ours().values() if isinstance(metric, Histogram)])
def test_buckets_ascend_and_are_few(metric: Any) -> None:
    bounds = list(metric._upper_bounds)
    assert bounds == sorted(set(bounds))
    assert 8 <= len(bounds) <= 20


def families(registry: CollectorRegistry) -> Iterator[str]:
    for family in registry.collect():
        yield family.name


def test_the_registry_holds_ours_and_the_process_and_nothing_else() -> None:
    expected = {metric.describe()[0].name for metric in ours().values()}
    names = {name for name in families(metrics.REGISTRY) if not name.startswith("process_")}
    assert names == expected
    assert "process_resident_memory" in " ".join(families(metrics.REGISTRY))


def test_the_registry_can_be_scraped() -> None:
    metrics.JOBS_SUBMITTED.labels(task="prompt", lane="batch").inc()
    text = generate_latest(metrics.REGISTRY).decode()
    assert 'llmga_submitted_jobs_total{lane="batch",task="prompt"}' in text
    assert "# HELP llmga_queue_wait_seconds Seconds that a job waited" in text


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("HTTP_REQUESTS", ("method", "route", "status")),
        ("HTTP_SECONDS", ("method", "route")),
        ("SSE_FOLLOWERS", ()),
        ("JOBS_SUBMITTED", ("task", "lane")),
        ("JOBS_FINISHED", ("stage", "status")),
        ("QUEUE_DEPTH_JOBS", ("stage", "lane")),
        ("QUEUE_WAIT_SECONDS", ("stage",)),
        ("STAGE_SECONDS", ("stage",)),
        ("LEASES_LOST", ("stage",)),
        ("JOBS_RECLAIMED", ("stage",)),
        ("DEAD_LETTERS_JOBS", ()),
        ("WORKERS", ("stage", "phase")),
        ("PROMPT_TOKENS", ()),
        ("PROMPT_FALLBACKS", ("rule",)),
        ("TIME_TO_FIRST_DELTA_SECONDS", ()),
        ("UNET_ROWS", ()),
        ("UNET_SECONDS", ()),
        ("DIFFUSION_STEPS", ("model",)),
        ("IMAGES", ("model", "format")),
        ("ENCODE_SECONDS", ()),
        ("VAE_SECONDS", ()),
    ],
)
def test_labels_are_those_that_dashboards_rely_on(name: str, labels: tuple[str, ...]) -> None:
    assert getattr(metrics, name)._labelnames == labels
