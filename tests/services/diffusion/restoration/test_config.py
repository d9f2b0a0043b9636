"""Configurations of restoration networks."""

import pytest
from pydantic import ValidationError

from services.diffusion.restoration.config import RestorationConfig


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"scale": 3}, "scale"),
        ({"dim": 12, "heads": (1, 2, 5, 8)}, "heads"),
        ({"num_blocks": (1, 1, 1)}, "num_blocks"),
        ({"width": 3}, "width"),
        ({"linear_end": 1.0}, "linear_end"),
    ],
)
def test_impossible_networks_are_refused_by_name(changes: dict[str, object], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        RestorationConfig.model_validate({"scale": 1, **changes})


def test_defaults_are_the_published_numbers() -> None:
    config = RestorationConfig(scale=4)
    assert config.model_dump() == {
        "scale": 4,
        "dim": 64,
        "num_blocks": (13, 1, 1, 1),
        "num_refinement_blocks": 13,
        "heads": (1, 2, 4, 8),
        "ffn_expansion_factor": 2.2,
        "n_feats": 64,
        "n_encoder_res": 9,
        "n_denoise_res": 1,
        "timesteps": 4,
        "linear_start": 0.1,
        "linear_end": 0.99,
    }
    assert config.ipr_channels == 256
