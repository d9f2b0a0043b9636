"""Where measurements are kept: the numbers in `results/NAME.json`, the table in README.md between NAME's marks."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def store(name: str, result: Mapping[str, Any], *, packages: Sequence[str], note: str, table: str) -> None:
    """Write a result with the machine and the versions that it was measured with, and its table with a note."""
    cpus, cpu = os.cpu_count(), _cpu()
    machine = {"cpus": cpus, "cpu": cpu, "system": platform.platform(), "python": platform.python_version()}
    whole = {"machine": machine, "versions": {package: version(package) for package in packages}, **result}
    path = HERE / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(whole, indent=2) + "\n")
    readme = HERE / "README.md"
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, _, rest = readme.read_text().partition(begin)
    _, _, after = rest.partition(end)
    readme.write_text(f"{before}{begin}\n{cpus} CPUs ({cpu}), {note}.\n\n{table}\n{end}{after}")


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
