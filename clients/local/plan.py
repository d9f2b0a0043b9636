"""What will run: every process, its environment and its ports, decided before anything starts.

The user's own `LLMGA_*` settings are passed through and win over what is chosen here. Everything that a service
writes goes under the home folder, caches of libraries too.
"""

import json
import secrets
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from clients.client import API_KEY_VARIABLE
from clients.local import valkey
from clients.local.errors import LaunchError
from clients.local.models import NAME, Pair
from clients.local.probes import live_probe, status_probe, valkey_probe
from clients.local.service import Spec

DEFAULT_PORT = 8080
LOOPBACK = "127.0.0.1"
LOOPBACK_HOSTS = frozenset({LOOPBACK, "::1", "localhost"})
VALKEY_STOP_S = 15.0
GATEWAY_STOP_S = 15.0
WORKER_STOP_S = 40.0  # a job in hand may end; what does not is given back to the queue

_CACHES = {
    "XDG_CACHE_HOME": "",
    "VLLM_CACHE_ROOT": "vllm",
    "VLLM_CONFIG_ROOT": "vllm",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "MPLCONFIGDIR": "matplotlib",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """All processes, in the order in which they start."""

    url: str
    redis_url: str
    asks_for_keys: bool  # whether the gateway lets in only who holds an API key
    valkey: Spec | None  # None: the user has a server already
    gateway: Spec
    workers: Sequence[Spec]

    @property
    def services(self) -> list[Spec]:
        """Every process of the plan."""
        return [*([self.valkey] if self.valkey else []), self.gateway, *self.workers]


def own_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the settings among the variables by upper-case name; the client's API key is none of the services'."""
    return {
        name.upper(): value
        for name, value in environ.items()
        if name.upper().startswith("LLMGA_") and name.upper() != API_KEY_VARIABLE
    }


def make_plan(home: Path, pair: Pair, *, port: int | None, workers: int, environ: Mapping[str, str]) -> Plan:
    """Decide what runs; `port` wins over `LLMGA_GATEWAY__PORT`, and 0 means any free one.

    Raises:
        LaunchError: the gateway's port is taken, or not a port.
    """
    given = own_settings(environ)
    base = {name: value for name, value in environ.items() if not name.upper().startswith("LLMGA_")}
    for name, folder in _CACHES.items():
        base.setdefault(name, str(home / "cache" / folder))
    base["PYTHONUNBUFFERED"] = "1"
    # The services share the cores, and a thread that spins while it waits takes one from those it waits for: on two
    # busy cores the models were made thirty times slower with the default.
    base.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    free = iter(free_ports(5 + workers))
    host = given.get("LLMGA_GATEWAY__HOST", LOOPBACK)
    public_port = _public_port(host, port, given, free_port=next(free))
    valkey_port, password = next(free), secrets.token_hex(16)
    chosen = {
        "LLMGA_HOME": str(home),
        "LLMGA_REDIS__URL": f"redis://:{password}@{LOOPBACK}:{valkey_port}/0",
        "LLMGA_GATEWAY__METRICS_PORT": str(next(free)),
        "LLMGA_MLLM__PORT": str(next(free)),
        "LLMGA_MLLM__METRICS_PORT": str(next(free)),
        "LLMGA_LOG__FORMAT": "text",
    }
    if host in LOOPBACK_HOSTS:  # whoever reaches it sits at this machine; elsewhere, keys are asked for
        chosen["LLMGA_AUTH__MODE"] = "none"
    if pair.mllm is not None:
        # Greedy: of a model as small as this, sampling at LLMGA's 0.2 draws mistakes rather than variety.
        chosen |= {"LLMGA_MLLM__MODEL": str(pair.mllm), "LLMGA_MLLM__NAME": NAME, "LLMGA_MLLM__TEMPERATURE": "0"}
    if pair.diffusion:
        chosen["LLMGA_DIFFUSION__MODELS"] = json.dumps({name: str(folder) for name, folder in pair.diffusion.items()})
    if pair.restoration is not None:
        chosen["LLMGA_DIFFUSION__RESTORATION"] = str(pair.restoration)
    settings = chosen | given | {"LLMGA_HOME": str(home), "LLMGA_GATEWAY__PORT": str(public_port)}
    everything = base | settings

    reachable = LOOPBACK if host in ("0.0.0.0", "::", "") else host
    gateway = _python("gateway", "gateway", everything, settings["LLMGA_GATEWAY__METRICS_PORT"], GATEWAY_STOP_S)
    gateway = replace(gateway, probe=live_probe(reachable, public_port))
    mllm = _python("mllm", "services.mllm", everything, settings["LLMGA_MLLM__METRICS_PORT"], WORKER_STOP_S)
    diffusion = []
    for number in range(1, workers + 1):
        first_port = given.get("LLMGA_DIFFUSION__METRICS_PORT") if number == 1 else None
        status_port = first_port or str(next(free))
        name = "diffusion" if workers == 1 else f"diffusion-{number}"
        own = everything | {"LLMGA_DIFFUSION__METRICS_PORT": status_port}
        diffusion.append(_python(name, "services.diffusion", own, status_port, WORKER_STOP_S))
    server = None
    if "LLMGA_REDIS__URL" not in given:
        configuration = valkey.write_configuration(home / "valkey", port=valkey_port, password=password)
        server = Spec(
            name="valkey",
            command=[str(valkey.binary()), str(configuration)],
            environment=base,
            probe=valkey_probe(valkey_port, password),
            stop_s=VALKEY_STOP_S,
        )
    return Plan(
        url=f"http://{reachable}:{public_port}",
        redis_url=settings["LLMGA_REDIS__URL"],
        asks_for_keys=settings.get("LLMGA_AUTH__MODE") != "none",
        valkey=server,
        gateway=gateway,
        workers=[mllm, *diffusion],
    )


def _python(name: str, module: str, environment: Mapping[str, str], port: str, stop_s: float) -> Spec:
    return Spec(
        name=name,
        command=[sys.executable, "-m", module],
        environment=environment,
        probe=status_probe(LOOPBACK, int(port) if port.isdigit() else 0),
        stop_s=stop_s,
        status_url=f"http://{LOOPBACK}:{port}",
    )


def _public_port(host: str, port: int | None, given: Mapping[str, str], *, free_port: int) -> int:
    text = given.get("LLMGA_GATEWAY__PORT", str(DEFAULT_PORT)) if port is None else str(port)
    if not text.isdigit() or int(text) > 65_535:
        raise LaunchError(f"{text} is not a port", "Give a number from 1 to 65535, or 0 for any free port.")
    if int(text) == 0:
        return free_port
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(text)))
        except OSError as error:
            raise LaunchError(
                f"port {text} cannot be used ({error.strerror})",
                f"Stop what uses it, or choose another: --port {free_port}.",
            ) from error
    return int(text)


def free_ports(count: int) -> list[int]:
    """Return different ports that nothing listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]
