"""What the process says of itself: to the queue, and to who asks `/readyz?verbose`."""

from dataclasses import replace
from pathlib import Path

from services.mllm.checkpoints import Prepared
from services.mllm.options import resolve
from services.mllm.service import Service
from shared.contracts import Phase
from shared.settings import Settings
from tests.services.mllm.test_launch import CONFIG, FACTS, GPU


def service(source: str = "llmga-cn-Qwen2-0.5B-full-finetune", **settings: str) -> Service:
    """Return a service whose checkpoint is prepared and whose options are known."""
    loaded = Settings.load(settings)
    service = Service(loaded)
    service.prepared = Prepared(Path("/models/x"), replace(FACTS, source=source))
    service.options = resolve(loaded, CONFIG, service.facts, GPU)
    return service


def test_facts_of_the_model_are_announced() -> None:
    (model,) = service(LLMGA_MLLM__NAME="writer", LLMGA_MLLM__QUANTIZATION="fp8").announcement().models
    assert (model.name, model.source, model.kind) == ("writer", "llmga-cn-Qwen2-0.5B-full-finetune", "qwen2")
    assert model.languages == ["en", "zh"]
    assert (model.dtype, model.quantization, model.max_model_len) == ("bfloat16", "fp8", 2_048)


def test_nothing_is_said_of_the_languages_of_a_checkpoint_that_was_not_published() -> None:
    (model,) = service("my-own").announcement().models
    assert model.name == "my-own"
    assert model.languages is None
    assert model.quantization is None


def test_places_are_offered_only_when_jobs_are_taken() -> None:
    process = service()
    process.enter(Phase.LOADING)
    assert process.announcement(free=5).free == 0
    process.enter(Phase.READY)
    assert process.announcement(running=3, free=5).free == 5
    assert process.announcement(running=3, free=5).running == 3


def test_options_are_shown_as_they_were_resolved() -> None:
    _, details = service(LLMGA_MLLM__KV_CACHE_GB="2").ready()
    assert details["options"]["device"] == "GPU"
    assert details["options"]["kv_cache_gb"] == 2
    assert details["options"]["execution"] == "compiled"
    assert "options" not in Service(Settings.load({})).ready()[1]
