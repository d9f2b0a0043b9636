"""The compose file and Dockerfiles as data, with what compose would fill in."""

import re
from pathlib import Path
from typing import Any

import yaml  # PyYAML ships no types

ROOT = Path(__file__).resolve().parents[2]
_VARIABLE = re.compile(r"\$\{(?P<name>[A-Z_]+)(?::-(?P<default>[^}]*))?\}")


def interpolated(text: str, environ: dict[str, str] | None = None) -> str:
    """Return the text with `${NAME:-default}` filled in as compose does."""

    def value(match: re.Match[str]) -> str:
        return (environ or {}).get(match["name"]) or match["default"] or ""

    return _VARIABLE.sub(value, text)


def load(text: str) -> dict[str, Any]:
    """Return a YAML mapping as data."""
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def compose() -> dict[str, Any]:
    """Return docker-compose.yml with nothing set by the shell."""
    return load(interpolated((ROOT / "docker-compose.yml").read_text()))


def variables() -> set[str]:
    """Return the names that the shell may set."""
    return {match["name"] for match in _VARIABLE.finditer((ROOT / "docker-compose.yml").read_text())}


def env_file(path: Path) -> dict[str, str]:
    """Return the variables of an env file."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    pairs = (line.partition("=") for line in lines)
    return {name: value[1:-1] if value[:1] == "'" == value[-1:] else value for name, _, value in pairs}


class Dockerfile:
    """The instructions of a Dockerfile, in order, with continued lines joined."""

    def __init__(self, path: Path) -> None:
        text = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
        joined = re.sub(r"\\\n\s*", " ", text)
        self.instructions = [
            (word.upper(), rest.strip())
            for word, _, rest in (line.partition(" ") for line in joined.splitlines())
            if word
        ]

    def all(self, instruction: str) -> list[str]:
        """Return what follows each instruction of this kind."""
        return [rest for word, rest in self.instructions if word == instruction]

    def last_stage(self) -> list[tuple[str, str]]:
        """Return the instructions of the image that is shipped."""
        start = max(i for i, (word, _) in enumerate(self.instructions) if word == "FROM")
        return self.instructions[start:]

    def only(self, instruction: str) -> str:
        """Return what follows the one instruction of this kind in the last stage."""
        (rest,) = [rest for word, rest in self.last_stage() if word == instruction]
        return rest

    def arguments(self) -> dict[str, str]:
        """Return the build arguments that have a default."""
        pairs = (rest.partition("=") for rest in self.all("ARG"))
        return {name: value.strip('"') for name, _, value in pairs}

    def environment(self) -> dict[str, str]:
        """Return the variables of the last stage."""
        found: dict[str, str] = {}
        for word, rest in self.last_stage():
            if word == "ENV":
                found |= dict(pair.split("=", 1) for pair in rest.split())
        return found
