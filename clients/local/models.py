"""Which pair of models a local system runs: the one the user names, the trained one, or a mini one made here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

NAME = "llmga-tiny"
SHIPPED = Path(__file__).resolve().parents[2] / "models" / NAME


@dataclass(frozen=True, slots=True)
class Pair:
    """A language model and diffusion models by name, with the network that hides their seams.

    None and empty where the user's own settings name one.
    """

    title: str
    mllm: Path | None
    diffusion: Mapping[str, Path] = field(default_factory=dict)
    restoration: Path | None = None
    build_into: Path | None = None  # set when the pair is (re)made before it is used


def choose_pair(home: Path, settings: Mapping[str, str], *, shipped: Path = SHIPPED) -> Pair:
    """Return the pair to run; `settings` are the user's own `LLMGA_*` variables, by upper-case name."""
    has_mllm, has_diffusion = "LLMGA_MLLM__MODEL" in settings, "LLMGA_DIFFUSION__MODELS" in settings
    if has_mllm and has_diffusion:
        return Pair("the models that your settings name", None)
    folder, build_into = shipped, None
    title = f"the trained pair {NAME}"
    if not ((shipped / "mllm" / "config.json").exists() and (shipped / "sd15" / "model_index.json").exists()):
        folder = build_into = home / "models" / "random"
        title = f"a mini pair made here, whose pictures are noise (no trained pair is in {shipped})"
    if has_mllm or has_diffusion:
        title = f"your own {'language' if has_mllm else 'diffusion'} model; for the other, {title}"
    diffusion = {} if has_diffusion else {f"{NAME}-{part}": folder / part for part in _diffusion_parts(folder)}
    has_restoration = not has_diffusion and (folder / "restoration" / "config.json").exists()
    return Pair(
        title,
        mllm=None if has_mllm else folder / "mllm",
        diffusion=diffusion,
        restoration=folder / "restoration" if has_restoration else None,
        build_into=build_into,
    )


def _diffusion_parts(folder: Path) -> list[str]:
    """Return the text-to-image model, and the inpainting one where there is one."""
    return ["sd15", *(["sd15-inpainting"] if (folder / "sd15-inpainting" / "model_index.json").exists() else [])]
