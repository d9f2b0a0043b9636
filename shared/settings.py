"""Settings: `LLMGA_*` environment variables, nested with `__` (`LLMGA_REDIS__URL`).

Every process reads the same tree, so a name that none of them knows is a mistake somewhere: it is refused, and all
problems are reported at once. `describe()` lists every variable for documentation and `--help`.
"""

import difflib
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "LLMGA_"
DELIMITER = "__"


class SettingsError(Exception):
    """The environment does not make sense; `problems` lists every fault found."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(
            "the settings have problems:\n" + "\n".join(f"  - {problem}" for problem in problems)
        )
        self.problems = problems


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RedisSettings(_Group):
    """The Redis or Valkey server that holds the queue."""

    url: str = Field(
        default="redis://127.0.0.1:6379/0", description="redis:// or rediss:// URL of the server."
    )
    namespace: str = Field(
        default="llmga",
        pattern=r"^[a-z0-9_-]{1,32}$",
        description="Prefix of all keys; also their hash slot.",
    )
    durability: Literal["always", "everysec", "none"] = Field(
        default="always",
        description="Least durability demanded of the server: always = accepted means on disk; everysec may lose a second.",
    )
    socket_timeout_s: float = Field(default=5.0, gt=0, le=60, description="Longest wait for an answer.")


class QueueSettings(_Group):
    """Bounds and clocks of the job queue."""

    lease_ms: int = Field(
        default=15_000, ge=300, le=600_000, description="A silent worker loses its job after this."
    )
    max_attempts: int = Field(default=3, ge=1, le=10, description="Starts of a stage before the job fails.")
    max_queued: int = Field(
        default=1_000, ge=1, le=1_000_000, description="Jobs waiting per stage before 429."
    )
    max_job_bytes: int = Field(
        default=65_536, ge=4_096, le=1_048_576, description="Largest request of a job."
    )
    max_events: int = Field(
        default=4_096, ge=64, le=100_000, description="Events kept per job; the oldest go first."
    )
    retention_s: int = Field(
        default=86_400, ge=60, description="How long finished jobs and dead letters are kept."
    )
    idempotency_s: int = Field(
        default=86_400, ge=60, description="How long an Idempotency-Key is remembered."
    )
    ageing_ms: int = Field(
        default=30_000, ge=0, description="Batch work that waited longer gets every fourth claim."
    )


class ArtifactSettings(_Group):
    """Where pictures are kept."""

    url: str = Field(default="", description="Folder (path or file://); empty means `<home>/artifacts`.")
    retention_s: int = Field(default=86_400, ge=60, description="How long pictures are kept.")


class GatewaySettings(_Group):
    """The public REST server."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=1, le=65_535)
    metrics_port: int = Field(default=9101, ge=0, le=65_535, description="0 turns the metrics port off.")
    max_body_bytes: int = Field(default=1_048_576, ge=1_024, description="Largest request body.")
    max_wait_s: float = Field(default=300.0, gt=0, le=3_600, description="Longest `Prefer: wait`.")
    sse_ping_s: float = Field(default=15.0, gt=0, le=300, description="Comment sent on an idle event stream.")


class MLLMSettings(_Group):
    """The language model service (vLLM)."""

    model: str = Field(
        default="", description="Folder or hub id of an LLMGA checkpoint (published or LLaVA layout)."
    )
    name: str = Field(
        default="", description="Name it is served under; empty: the folder's or repository's name."
    )
    host: str = "127.0.0.1"
    port: int = Field(default=8001, ge=1, le=65_535)
    metrics_port: int = Field(default=9102, ge=0, le=65_535)
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    max_model_len: int = Field(default=2_048, ge=128, le=131_072)
    max_concurrency: int = Field(default=32, ge=1, le=1_024, description="Jobs in vLLM at once.")
    kv_cache_gb: float = Field(default=1.0, gt=0, description="KV cache on a CPU, in GiB.")
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    temperature: float = Field(default=0.2, ge=0, le=2, description="LLMGA's serving default (LLMGA.md §2).")
    max_tokens: int = Field(default=512, ge=1, le=4_096, description="Longest answer in tokens.")
    system_prompt: Literal["trained", "cli"] = Field(
        default="trained", description="The system prompt of training, or that of the released command line."
    )


class DiffusionSettings(_Group):
    """The diffusion service."""

    models: dict[str, str] = Field(
        default_factory=dict, description="JSON: name -> folder in diffusers layout."
    )
    default_model: str = Field(default="", description="Model for requests that name none; empty: the first.")
    metrics_port: int = Field(default=9103, ge=0, le=65_535)
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    max_rows: int = Field(
        default=16, ge=4, le=256, description="Most UNet rows per call; a guided picture takes two."
    )
    max_jobs: int = Field(default=16, ge=1, le=256, description="Jobs held at once.")


class LogSettings(_Group):
    """Logs on standard error."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Literal["json", "text"] = "json"
    prompts: bool = Field(default=False, description="Write instructions and prompts to the log.")


class Settings(BaseSettings):
    """The whole tree."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter=DELIMITER, extra="forbid", frozen=True, case_sensitive=False
    )

    home: Path = Field(default=Path(".llmga"), description="Folder for everything that this machine keeps.")
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    redis: RedisSettings = Field(default_factory=RedisSettings)
    queue: QueueSettings = Field(default_factory=QueueSettings)
    artifacts: ArtifactSettings = Field(default_factory=ArtifactSettings)
    gateway: GatewaySettings = Field(default_factory=GatewaySettings)
    mllm: MLLMSettings = Field(default_factory=MLLMSettings)
    diffusion: DiffusionSettings = Field(default_factory=DiffusionSettings)
    log: LogSettings = Field(default_factory=LogSettings)

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None) -> "Settings":
        """Read the environment.

        Raises:
            SettingsError: unknown names or values that do not fit, all of them.
        """
        environ = os.environ if environ is None else environ
        ours = {name.upper(): value for name, value in environ.items() if name.upper().startswith(PREFIX)}
        known = dict(_variables(cls))
        problems: list[str] = []
        values: dict[str, Any] = {}
        for name, value in sorted(ours.items()):
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                problems.append(f"{name} is not a setting" + (f"; did you mean {near[0]}?" if near else ""))
                continue
            group, _, leaf = name.removeprefix(PREFIX).lower().partition(DELIMITER)
            if leaf:
                values.setdefault(group, {})[leaf] = value
            else:
                values[group] = value
        models = values.get("diffusion", {}).get("models")
        if models is not None:
            try:
                values["diffusion"]["models"] = _json_object(models)
            except ValueError as error:
                problems.append(f"LLMGA_DIFFUSION__MODELS {error}")
                del values["diffusion"]["models"]
        try:
            settings = cls.model_validate(values)
        except ValidationError as error:
            for fault in error.errors(include_url=False):
                name = PREFIX + DELIMITER.join(str(part) for part in fault["loc"]).upper()
                problems.append(f"{name}: {fault['msg']}")
        if problems:
            raise SettingsError(problems)
        return settings


def _json_object(text: str) -> dict[str, Any]:
    import json

    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError('must be a JSON object, for example {"sd15": "/models/sd15"}')
    return value


def _variables(model: type[BaseModel], prefix: str = PREFIX) -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _variables(field.annotation, f"{prefix}{name.upper()}{DELIMITER}")
        else:
            yield prefix + name.upper(), field


def describe() -> list[tuple[str, str, str]]:
    """Return (variable, default, description) of every setting."""
    rows = []
    for name, field in _variables(Settings):
        default = field.get_default(call_default_factory=True)
        rows.append((name, "" if default is PydanticUndefined else str(default), field.description or ""))
    return rows


def worker_name() -> str:
    """Return a name for this process that is new at each start: `<host>-<pid>-<random>`."""
    return f"{socket.gethostname()[:40]}-{os.getpid()}-{os.urandom(3).hex()}"
