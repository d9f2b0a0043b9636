"""What the gateway answers is what its description says, whatever it is sent.

schemathesis makes the cases from `/openapi.json`: valid ones, ones that break a rule, ones without a key, other
methods, and chains of calls that follow from each other. Every check that it has is on. Two of them are told which
refusals are meant: a body of the right shape may still ask for what the models do not do or for a picture that is not
there (422; OpenAI's clients are told 400), and one that breaks a rule may be too large to be looked at (413).
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from schemathesis.engine import events, from_schema

from gateway import describing, fleet
from gateway.problems import OPENAI_PATHS
from shared.contracts.limits import UNLIMITED
from shared.settings import GatewaySettings, QueueSettings, Settings
from tests.gateway.conftest import PATIENCE_S, House
from tests.gateway.language_model import talking
from tests.gateway.tenants import new_key, with_keys

STATEFUL_CHAINS = 10  # they take longest
ACCEPTED = ["2xx", "304", "404", "409"]
REFUSED = ["400", "401", "404", "405", "409", "413", "415", "422"]


@dataclass
class Findings:
    """What became of the cases of a run."""

    cases: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    faults: dict[tuple[str, str], str] = field(default_factory=dict)

    def take(self, event: events.EngineEvent) -> None:
        """Take in what the engine tells."""
        if isinstance(event, events.FatalError | events.NonFatalError):
            self.faults["engine", type(event).__name__] = str(event)
        if not isinstance(event, events.ScenarioFinished):
            return
        self.cases[event.phase.value] += len(event.recorder.interactions)
        for interaction in event.recorder.interactions.values():
            self.statuses[0 if interaction.response is None else interaction.response.status_code] += 1
        for case_id, checks in event.recorder.checks.items():
            for check in checks:
                if (found := check.failure_info) is not None:
                    response = event.recorder.interactions[case_id].response
                    answer = b"" if response is None else response.content[:1_000]
                    where = str(event.label or found.failure.operation)
                    self.faults[where, f"{check.name}: {found.failure.message}"] = f"{found.code_sample}\n{answer!r}"


@pytest.fixture
def gateway_settings() -> GatewaySettings:
    """Return the settings of a gateway that takes bodies of any usual size."""
    return GatewaySettings(metrics_port=0)


@pytest.fixture
def queue_settings() -> QueueSettings:
    """Return the settings of a queue that takes all jobs of a run."""
    return QueueSettings(max_queued=100_000)


@pytest.fixture
def key(tmp_path: Path) -> str:
    """Return an API key of the gateway."""
    return new_key(tmp_path, "acme")


@pytest.fixture
def settings(settings: Settings, key: str) -> Settings:
    """Return the settings of a gateway that asks for keys, and counts nothing."""
    return with_keys(settings).model_copy(update={"limits": UNLIMITED})


@pytest.fixture
async def served(house: House, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    """Yield a whole system, with a language model that chats."""
    monkeypatch.setattr(fleet, "STALE_S", PATIENCE_S)  # on a machine that is busy the queue is late, not gone
    async with talking(house):
        yield house


def _config(key: str, *, max_examples: int) -> schemathesis.Config:
    positive = {"expected-statuses": [*ACCEPTED, "422"]}
    negative = {"expected-statuses": REFUSED}
    openai = [
        {"include-path": path, "checks": {"positive_data_acceptance": {"expected-statuses": [*ACCEPTED, "422", "400"]}}}
        for path in sorted(OPENAI_PATHS)
    ]
    return schemathesis.Config.from_dict(
        {
            "seed": 1,
            "auth": {"openapi": {"api_key": {"bearer": key}}},
            "request-timeout": PATIENCE_S,
            "continue-on-failure": True,
            "generation": {"max-examples": max_examples, "deterministic": True, "no-shrink": True, "database": "none"},
            "phases": {"stateful": {"generation": {"max-examples": min(max_examples, STATEFUL_CHAINS)}}},
            "cache": {"enabled": False},
            "checks": {"positive_data_acceptance": positive, "negative_data_rejection": negative},
            "operations": openai,
        }
    )


@pytest.fixture
def own_keys() -> Iterator[None]:
    """Let no case be refused because another one used its idempotency key."""
    numbers = itertools.count()

    @schemathesis.hook
    def before_call(context: Any, case: schemathesis.Case[Any], kwargs: Any) -> None:
        given = case.headers.get("Idempotency-Key")
        if given == describing.IDEMPOTENCY_KEY["example"]:
            case.headers["Idempotency-Key"] = f"{given}-{next(numbers)}"

    yield
    schemathesis.hooks.unregister(before_call)


async def _found(house: House, key: str, *, max_examples: int) -> Findings:
    schema = schemathesis.openapi.from_dict(house.server.app.openapi(), config=_config(key, max_examples=max_examples))
    schema.config.update(base_url=house.url)
    findings = Findings()

    def run() -> None:
        for event in from_schema(schema).execute():
            findings.take(event)

    await asyncio.to_thread(run)
    return findings


def _check(findings: Findings, *, at_least: int) -> None:
    told = "\n\n".join(f"{where}: {what}\n{sample}" for (where, what), sample in findings.faults.items())
    assert not findings.faults, f"{len(findings.faults)} faults\n\n{told}"
    assert findings.cases.total() >= at_least, findings.cases
    assert findings.statuses[0] == 0
    assert not [status for status in findings.statuses if status >= 500]
    assert {200, 201, 202, 400, 401, 404, 405, 409, 415, 422} <= findings.statuses.keys()


@pytest.mark.usefixtures("own_keys")
async def test_three_thousand_generated_calls_are_answered_as_described(served: House, key: str) -> None:
    _check(await _found(served, key, max_examples=25), at_least=3_000)


@pytest.mark.deep
@pytest.mark.usefixtures("own_keys")
@pytest.mark.timeout(3_600)
async def test_ten_thousand_generated_calls_are_answered_as_described(served: House, key: str) -> None:
    _check(await _found(served, key, max_examples=360), at_least=10_000)
