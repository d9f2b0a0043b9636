"""Settings: `LLMGA_*` environment variables, nested with `__` (`LLMGA_REDIS__URL`).

Every process reads the same tree, so a name that none of them knows is a mistake somewhere: it is refused,
and all faults are reported at once. Only `Settings.load` reads an environment, the process's own or the
mapping that it is given; `Settings(...)` takes what it is given and the defaults. `describe()` lists every
variable: it is what `--help` and docs/configuration.md show (`python -m shared.settings` prints the
latter).
"""

import difflib
import json
import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from shared.contracts.keys import FILE_NAME
from shared.contracts.limits import Limits
from shared.contracts.sessions import MAX_TURNS
from shared.webhooks.settings import WebhookSettings

PREFIX = "LLMGA_"
DELIMITER = "__"
CLIENT_VARIABLES = frozenset({"LLMGA_API_KEY"})  # of the command line: in the same shells, and nothing to services
_CONTRADICTION = "contradiction"
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?")
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # names are labels of metrics, too


class SettingsError(Exception):
    """The environment does not make sense; `problems` lists every fault found."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("the settings have problems:\n" + "\n".join(f"  - {problem}" for problem in problems))
        self.problems = problems


def _redis_url(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in {"redis", "rediss", "unix"} or not rest:
        raise ValueError("must be a URL that starts with redis://, rediss:// (TLS) or unix://")
    return url


def _models(models: dict[str, str]) -> dict[str, str]:
    for name, folder in models.items():
        if not _MODEL_NAME.fullmatch(name):
            raise ValueError(f"the name {name!r} must be 1 to 128 letters, digits, '.', '_' or '-'")
        if not folder:
            raise ValueError(f"{name!r} has no folder")
    return models


def _origins(text: str) -> str:
    for origin in _split(text):
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ValueError(f"{origin!r} is no origin: scheme and host, and a port if there is one")
    return text


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RedisSettings(_Group):
    """The Redis or Valkey server that holds the queue."""

    url: Annotated[str, AfterValidator(_redis_url)] = Field(
        default="redis://127.0.0.1:6379/0",
        repr=False,  # it may hold a password
        description="URL of the server: redis://, rediss:// (TLS) or unix://.",
    )
    namespace: str = Field(
        default="llmga",
        pattern=r"^[a-z0-9_-]{1,32}$",
        description="Prefix of all keys; also their hash slot.",
    )
    durability: Literal["always", "everysec", "none"] = Field(
        default="always",
        description="Least durability demanded of the server. `always`: what was accepted is on disk; "
        "`everysec` may lose a second.",
    )
    socket_timeout_s: float = Field(
        default=5.0, gt=0, le=60, allow_inf_nan=False, description="Longest wait for an answer."
    )


class QueueSettings(_Group):
    """Bounds and clocks of the job queue."""

    lease_ms: int = Field(default=15_000, ge=300, le=600_000, description="A silent worker loses its job after this.")
    max_attempts: int = Field(default=3, ge=1, le=10, description="Starts of a stage before the job fails.")
    max_queued: int = Field(default=1_000, ge=1, le=1_000_000, description="Jobs waiting per stage before 429.")
    max_job_bytes: int = Field(default=65_536, ge=4_096, le=1_048_576, description="Largest request of a job.")
    max_events: int = Field(default=4_096, ge=64, le=100_000, description="Events kept per job; the oldest go first.")
    retention_s: int = Field(
        default=86_400, ge=60, le=31_536_000, description="How long finished jobs and dead letters are kept."
    )
    idempotency_s: int = Field(
        default=86_400, ge=60, le=31_536_000, description="How long an Idempotency-Key is remembered."
    )
    ageing_ms: int = Field(
        default=30_000,
        ge=0,
        le=86_400_000,
        description="Batch work that waited longer gets every fourth claim.",
    )


class ArtifactSettings(_Group):
    """Where pictures are kept."""

    url: str = Field(default="", description="Folder (path or file://); empty means `<home>/artifacts`.")
    retention_s: int = Field(
        default=86_400, ge=60, le=31_536_000, description="How long pictures are kept after their last use."
    )


class GatewaySettings(_Group):
    """The public REST server."""

    host: str = Field(default="127.0.0.1", min_length=1, description="Address that the server listens on.")
    port: int = Field(default=8080, ge=1, le=65_535, description="Port of the API.")
    metrics_port: int = Field(default=9101, ge=0, le=65_535, description="Port of the metrics; 0 turns it off.")
    max_chats: int = Field(
        default=64, ge=1, le=4_096, description="Chats that one gateway passes on at once; what is above gets 429."
    )
    public_url: str = Field(
        default="",
        pattern=r"^(https?://[^\s/?#]+(/[^\s?#]*)?)?$",
        description="URL under which clients reach the API, for the addresses of pictures in OpenAI's answers; empty: "
        "as each request says.",
    )
    max_body_bytes: int = Field(
        default=25_165_824,  # a picture of 16 MiB in base64, and the words
        ge=1_024,
        le=1_073_741_824,
        description="Largest request body.",
    )
    max_held_body_bytes: int = Field(
        default=134_217_728,  # five of the largest, each of which is copied some times while it is read
        ge=1_048_576,
        le=68_719_476_736,
        description="Request bodies that one gateway holds at once, in all; what is above gets 503.",
    )
    max_wait_s: float = Field(default=300.0, gt=0, le=3_600, allow_inf_nan=False, description="Longest `Prefer: wait`.")
    sse_ping_s: float = Field(
        default=15.0, gt=0, le=300, allow_inf_nan=False, description="Comment sent on an idle event stream."
    )
    cors_origins: Annotated[str, AfterValidator(_origins)] = Field(
        default="",
        description="Origins of the web pages that may call the API, separated by commas (`*`: any); empty: none.",
    )

    @property
    def allowed_origins(self) -> frozenset[str]:
        """The origins of `cors_origins`."""
        return frozenset(_split(self.cors_origins))


class AuthSettings(_Group):
    """Who may use the gateway."""

    mode: Literal["keys", "none"] = Field(
        default="keys", description="Whether requests need an API key. `none`: anyone may do anything, without limits."
    )
    keys_file: str = Field(
        default="", description=f"File of the API keys, made by `llmga keys create`; empty means `<home>/{FILE_NAME}`."
    )


class SessionSettings(_Group):
    """Bounds of conversations."""

    retention_s: int | None = Field(
        default=None,
        ge=60,
        le=31_536_000,
        description="How long sessions are kept after their latest turn; unset: as long as pictures are.",
    )
    max_turns: int = Field(default=100, ge=1, le=MAX_TURNS, description="Turns of a session.")
    max_bytes: int = Field(
        default=1_048_576,
        ge=65_536,
        le=16_777_216,
        description="Size of a session: requests, prompts and records of pictures, not the pictures.",
    )
    max_sessions: int = Field(default=1_000, ge=1, le=1_000_000, description="Sessions of a tenant.")


class MLLMSettings(_Group):
    """The language model service (vLLM)."""

    model: str = Field(default="", description="Folder or hub id of an LLMGA checkpoint (published or LLaVA layout).")
    name: str = Field(default="", description="Name it is served under; empty: the folder's or repository's name.")
    tower: str = Field(
        default="", description="Folder or hub id of a CLIP model to see with; empty: the checkpoint's copy of it."
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="Address that vLLM listens on.")
    port: int = Field(default=8001, ge=1, le=65_535, description="Port of vLLM; internal, never to be published.")
    url: str = Field(
        default="",
        pattern=r"^(https?://[^\s/?#]+)?$",
        description="URL under which gateways reach that port, for chats; empty: the host, or where that is every "
        "address of the machine, the machine's name.",
    )
    metrics_port: int = Field(default=9102, ge=0, le=65_535, description="Port of health and metrics; 0 turns it off.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto", description="Number format of the weights; `auto` follows the device."
    )
    quantization: Literal["auto", "bitsandbytes-4bit", "bitsandbytes-8bit", "fp8", "awq"] = Field(
        default="auto",
        description="Weights in fewer bits, on a GPU. `auto`: as the checkpoint stores them. `bitsandbytes-4bit` and "
        "`fp8` (8 bits) quantise while loading; `bitsandbytes-8bit` and `awq` take weights that are stored so.",
    )
    tensor_parallel_size: int = Field(default=1, ge=1, le=64, description="GPUs of this machine that share the model.")
    execution: Literal["auto", "eager", "compiled"] = Field(
        default="auto", description="`compiled` starts slower and writes faster; `auto`: eager on a CPU only."
    )
    prefix_caching: bool = Field(
        default=True, description="Compute once what prompts have in common: the system prompt, a conversation so far."
    )
    max_model_len: int = Field(
        default=2_048,
        ge=128,
        le=131_072,
        description="Context in tokens: conversation, picture (576 of them) and answer together.",
    )
    max_concurrency: int = Field(default=32, ge=1, le=1_024, description="Jobs in vLLM at once.")
    kv_cache_gb: float | None = Field(
        default=None,
        gt=0,
        le=4_096,
        allow_inf_nan=False,
        description="KV cache of each device in GiB; unset: 1 on a CPU, on a GPU what its share of the memory leaves.",
    )
    gpu_memory_utilization: float = Field(
        default=0.9, gt=0, le=1, allow_inf_nan=False, description="Share of the GPU's memory that vLLM takes."
    )
    temperature: float = Field(
        default=0.2, ge=0, le=2, allow_inf_nan=False, description="Sampling temperature; 0 is greedy."
    )  # LLMGA's serving default (LLMGA.md §2)
    max_tokens: int = Field(default=512, ge=1, le=4_096, description="Longest answer in tokens.")
    opening_tag: Literal["given", "written"] = Field(
        default="given",
        description="`<gen_image>`, with which an answer that asks for a picture begins: `given` to the model, so that "
        "the first words come some tokens sooner and every answer has it, or `written` by it. A checkpoint whose "
        "`serving.json` says `tells_changes` writes it by itself when it is asked for a change.",
    )
    system_prompt: Literal["trained", "cli"] = Field(
        default="trained", description="The system prompt of training, or that of the released command line."
    )

    @property
    def reachable_url(self) -> str:
        """The URL under which gateways reach this server."""
        if self.url:
            return self.url
        host = socket.gethostname() if self.host in {"0.0.0.0", "::"} else self.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


class DiffusionSettings(_Group):
    """The diffusion service."""

    models: Annotated[dict[str, str], AfterValidator(_models)] = Field(
        default_factory=dict,
        description='JSON object, name to folder in diffusers layout: `{"sd15": "/models/sd15"}`.',
    )
    adapters: Annotated[dict[str, str], AfterValidator(_models)] = Field(
        default_factory=dict,
        description="JSON object, name to LoRA adapter (safetensors file, or folder with one): "
        '`{"watercolor": "/models/watercolor.safetensors"}`. Each is loaded with the models that it fits.',
    )
    default_model: str = Field(default="", description="Model for requests that name none; empty: the first.")
    metrics_port: int = Field(default=9103, ge=0, le=65_535, description="Port of health and metrics; 0 turns it off.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto", description="Number format of the weights; `auto` follows the device."
    )
    taesd: dict[Literal["sd15", "sdxl"], str] = Field(
        default_factory=dict,
        description="JSON object, kind of checkpoint to folder of its tiny autoencoder (TAESD, diffusers layout), "
        'which then draws the previews: `{"sd15": "/models/taesd"}`. Without one, they are one pixel per latent.',
    )
    restoration: str = Field(
        default="",
        description="Folder of a restoration network (`config.json` and `model.safetensors`), which takes the seams "
        "from what is painted in part; empty: it is blended in.",
    )
    c2pa_certificates: str = Field(
        default="",
        description="PEM file with the certificate chain, leaf first, that signs every picture (C2PA); needs the key, "
        "and llmga-serve[c2pa]. Signed pictures hold times and random ids: a job that runs again stores another file.",
    )
    c2pa_key: str = Field(default="", description="PEM file with the private key of `c2pa_certificates`.")
    memory_gb: float | None = Field(
        default=None,
        gt=0,
        le=4_096,
        allow_inf_nan=False,
        description="GiB that the weights of loaded models may take; the least recently used makes room for the next. "
        "Unset: 60 % of the GPU's memory, on a CPU half of the machine's.",
    )
    attention: Literal["auto", "sdpa", "xformers"] = Field(
        default="auto",
        description="Kernels of attention; `auto`: those of xformers where they load, else PyTorch's (`sdpa`).",
    )
    offload: Literal["none", "encoders", "model"] = Field(
        default="none",
        description="What waits in the machine's memory until it is called. `encoders`: text encoders and autoencoder; "
        "`model`: the UNet, too, while one of those is at work. Without effect on a CPU.",
    )
    quantization: Literal["none", "bitsandbytes-8bit", "bitsandbytes-4bit"] = Field(
        default="none", description="Weights of UNet and text encoders in fewer bits."
    )
    compile: Literal["off", "on"] = Field(
        default="off",
        description="Compile the UNet for the model's own size, once per bucket and text length: minutes at start, "
        "faster steps. Other sizes, and pictures with adapters, are made without.",
    )
    max_rows: int = Field(
        default=32,
        ge=4,
        le=256,
        description="Most UNet rows per call; a guided picture takes two. A model gets fewer where more are hardly "
        "faster, as measured at its start.",
    )
    max_jobs: int = Field(default=32, ge=1, le=256, description="Jobs held at once.")


class LogSettings(_Group):
    """Logs on standard error."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="Least level that is written."
    )
    format: Literal["json", "text"] = Field(
        default="json", description="One JSON object per record, or text for people."
    )
    prompts: bool = Field(default=False, description="Write instructions and prompts to the log.")


class Settings(BaseSettings):
    """The whole tree."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter=DELIMITER, extra="forbid", frozen=True)

    home: Path = Field(default=Path(".llmga"), description="Folder for everything that this machine keeps.")
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="`auto`, `cpu`, `cuda` or `cuda:<number>`.",
    )
    metrics_host: str = Field(
        default="127.0.0.1", min_length=1, description="Address that the metrics ports listen on."
    )
    redis: RedisSettings = Field(default_factory=RedisSettings)
    queue: QueueSettings = Field(default_factory=QueueSettings)
    artifacts: ArtifactSettings = Field(default_factory=ArtifactSettings)
    gateway: GatewaySettings = Field(default_factory=GatewaySettings)
    auth: AuthSettings = Field(default_factory=AuthSettings)
    limits: Limits = Field(default_factory=Limits)
    sessions: SessionSettings = Field(default_factory=SessionSettings)
    webhooks: WebhookSettings = Field(default_factory=WebhookSettings)
    mllm: MLLMSettings = Field(default_factory=MLLMSettings)
    diffusion: DiffusionSettings = Field(default_factory=DiffusionSettings)
    log: LogSettings = Field(default_factory=LogSettings)

    @property
    def keys_path(self) -> Path:
        """The file of the API keys."""
        return Path(self.auth.keys_file).expanduser() if self.auth.keys_file else self.home / FILE_NAME

    @property
    def session_retention_s(self) -> int:
        """How long sessions are kept after their latest turn."""
        return self.sessions.retention_s or self.artifacts.retention_s

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let nothing but `load` read the environment."""
        return (init_settings,)

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read the `LLMGA_*` variables of the process's environment, or of the mapping given.

        Raises:
            SettingsError: unknown names, values that do not fit, settings that contradict each other: all
            of them.
        """
        environ = os.environ if environ is None else environ
        known = dict(_variables(cls))
        problems: list[str] = []
        ours: dict[str, str] = {}
        for name, value in sorted(environ.items()):
            if name in known:
                ours[name] = value
            elif name.upper().startswith(PREFIX) and name.upper() not in CLIENT_VARIABLES:
                near = difflib.get_close_matches(name.upper(), known, n=1)
                problems.append(f"{name} is not a setting" + (f"; did you mean {near[0]}?" if near else ""))
        for name in [name for name in ours if get_origin(known[name].annotation) is dict]:
            if not _is_json_object(ours[name]):
                problems.append(f'{name}: must be a JSON object, for example {{"sd15": "/models/sd15"}}')
                del ours[name]
        refused = set(known) & {problem.partition(":")[0] for problem in problems}
        while True:
            # Faulty values are taken out until the rest is valid: only then do contradictions show.
            source = EnvSettingsSource(cls)
            source.env_vars = {name.lower(): value for name, value in ours.items()}
            try:
                settings = cls(**source())
            except ValidationError as error:
                for fault in error.errors(include_url=False):
                    if fault["type"] == _CONTRADICTION:
                        problems += _still_meaningful(fault["ctx"]["contradictions"], refused)
                        continue
                    name = _variable_of(fault["loc"], known)
                    message = fault["msg"].removeprefix("Value error, ")
                    problems.append(f"{name}: {message[0].lower()}{message[1:]}")
                    refused.add(name)
                if refused & set(ours):
                    ours = {name: value for name, value in ours.items() if name not in refused}
                    continue
            if problems:
                raise SettingsError(problems)
            return settings

    @model_validator(mode="after")
    def _agree(self) -> Self:
        contradictions = list(self._contradictions())
        if contradictions:
            raise PydanticCustomError(
                _CONTRADICTION,
                "settings contradict each other",
                {"contradictions": contradictions},
            )
        return self

    def _contradictions(self) -> Iterator[str]:
        queue, gateway, mllm, diffusion = self.queue, self.gateway, self.mllm, self.diffusion
        if queue.lease_ms >= queue.retention_s * 1_000:
            yield (
                "LLMGA_QUEUE__LEASE_MS must be shorter than LLMGA_QUEUE__RETENTION_S: "
                "a job must not expire while a worker holds it"
            )
        if queue.idempotency_s > queue.retention_s:
            yield (
                "LLMGA_QUEUE__IDEMPOTENCY_S must not exceed LLMGA_QUEUE__RETENTION_S: "
                "a key would answer with a job that is gone"
            )
        if self.session_retention_s > self.artifacts.retention_s:
            yield (
                "LLMGA_SESSIONS__RETENTION_S must not exceed LLMGA_ARTIFACTS__RETENTION_S: "
                "a session would outlive its pictures"
            )
        if self.webhooks.hosts and not self.webhooks.secret:
            yield "LLMGA_WEBHOOKS__SECRET must be given with LLMGA_WEBHOOKS__HOSTS: webhooks are signed"
        if gateway.port == gateway.metrics_port:
            yield "LLMGA_GATEWAY__PORT and LLMGA_GATEWAY__METRICS_PORT must differ"
        if mllm.port == mllm.metrics_port:
            yield "LLMGA_MLLM__PORT and LLMGA_MLLM__METRICS_PORT must differ"
        if mllm.max_tokens >= mllm.max_model_len:
            yield (
                "LLMGA_MLLM__MAX_TOKENS must be smaller than LLMGA_MLLM__MAX_MODEL_LEN: "
                "the context holds the instruction too"
            )
        if bool(diffusion.c2pa_certificates) != bool(diffusion.c2pa_key):
            yield "LLMGA_DIFFUSION__C2PA_CERTIFICATES and LLMGA_DIFFUSION__C2PA_KEY must be given together"
        if diffusion.quantization != "none" and diffusion.offload != "none":
            yield (
                "LLMGA_DIFFUSION__OFFLOAD must be none with LLMGA_DIFFUSION__QUANTIZATION: "
                "weights in fewer bits stay on their device"
            )
        if diffusion.compile == "on" and (diffusion.quantization != "none" or diffusion.offload == "model"):
            yield (
                "LLMGA_DIFFUSION__COMPILE must be off with LLMGA_DIFFUSION__QUANTIZATION, and with "
                "LLMGA_DIFFUSION__OFFLOAD=model: such a UNet cannot be compiled as a whole"
            )
        if diffusion.default_model and diffusion.default_model not in diffusion.models:
            yield "LLMGA_DIFFUSION__DEFAULT_MODEL must be a name in LLMGA_DIFFUSION__MODELS"


def _still_meaningful(contradictions: list[str], refused: set[str]) -> list[str]:
    """Leave out those that only arise because a refused value was replaced by its default."""
    return [text for text in contradictions if not any(name in text for name in refused)]


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _variable_of(location: tuple[int | str, ...], known: Mapping[str, FieldInfo]) -> str:
    """Return the variable that a fault belongs to: its path without the keys within a JSON value."""
    name = PREFIX + DELIMITER.join(str(part) for part in location[:2]).upper()
    return name if name in known else PREFIX + str(location[0]).upper()


def _variables(model: type[BaseModel], prefix: str = PREFIX) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _variables(field.annotation, f"{prefix}{name.upper()}{DELIMITER}")
        else:
            yield prefix + name.upper(), field


def describe() -> list[tuple[str, str, str]]:
    """Return (variable, default, description with what is allowed) of every setting."""
    rows = []
    for name, field in _variables(Settings):
        default = field.get_default(call_default_factory=True)
        text = json.dumps(default) if isinstance(default, dict | bool) else str("" if default is None else default)
        allowed = _allowed(field)
        rows.append((name, text, f"{field.description}{f' ({allowed})' if allowed else ''}"))
    return rows


def _allowed(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(field.annotation))
    bounds = {
        name: value
        for constraint in field.metadata
        for name in ("ge", "gt", "le")
        if (value := getattr(constraint, name, None)) is not None
    }
    if "ge" in bounds:
        return f"{bounds['ge']:,} to {bounds['le']:,}"
    return f"above {bounds['gt']:,}, up to {bounds['le']:,}" if "gt" in bounds else ""


def help_text() -> str:
    """Return the list of all settings for `--help`."""
    lines = ["Settings are environment variables:"]
    for name, default, description in describe():
        lines += [f"  {name}={default}", f"      {description}"]
    return "\n".join(lines)


def markdown() -> str:
    """Return docs/configuration.md."""
    lines = [
        "# Configuration",
        "",
        "Every process reads the same environment variables and uses those that concern it. A name that",
        "starts with `LLMGA_` and is not in this table is refused, and so are values that do not fit: a process",
        "then exits with status 2 and a list of all faults. `__` leads into a group.",
        "",
        "This page is generated: `python -m shared.settings > docs/configuration.md`.",
        "",
        "| variable | default | meaning |",
        "|---|---|---|",
    ]
    for name, default, description in describe():
        lines.append(f"| `{name}` | {f'`{default}`' if default else '(empty)'} | {description} |")
    return "\n".join([*lines, ""])


def worker_name() -> str:
    """Return a name for this process that is new at each start: `<host>-<pid>-<random>`."""
    return f"{socket.gethostname()[:40]}-{os.getpid()}-{os.urandom(3).hex()}"


if __name__ == "__main__":
    sys.stdout.write(markdown())
