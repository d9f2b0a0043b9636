"""Masks against the numbers of LLMGA.md §6.3, §7.2 and §7.3."""

from collections import Counter
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from training.data.masks import DIFFRIR, MLLM_STAGE1, SD_STAGE2, MaskKind, MaskSpec, draw_mask

DRAWS = 2_000
TOLERANCE = 0.05  # four and a half standard deviations of a share of 2,000


def only(kind: MaskKind, spec: MaskSpec = MLLM_STAGE1, **changes: object) -> MaskSpec:
    chosen = {name: float(name == kind) for name in ("irregular", "box", "outpainting")}
    numbers = {name: getattr(spec, name) for name in MaskSpec.__slots__}
    return MaskSpec(**{**numbers, "everything": 0.0, **chosen, **changes})


@pytest.mark.parametrize(
    ("spec", "shares"),
    [
        (MLLM_STAGE1, {"irregular": 0.25, "box": 0.25, "outpainting": 0.5}),
        (SD_STAGE2, {"irregular": 0.1875, "box": 0.1875, "outpainting": 0.375, "everything": 0.25}),
        (DIFFRIR, {"irregular": 0.35, "box": 0.30, "outpainting": 0.35}),
    ],
)
def test_kinds_come_in_the_published_shares(spec: MaskSpec, shares: dict[str, float]) -> None:
    generator = np.random.default_rng(0)
    kinds = Counter(draw_mask(64, 64, spec, generator)[1] for _ in range(DRAWS))
    assert {kind: count / DRAWS for kind, count in kinds.items()} == pytest.approx(shares, abs=TOLERANCE)


@pytest.mark.parametrize("spec", [MLLM_STAGE1, SD_STAGE2, DIFFRIR])
@pytest.mark.parametrize("size", [(512, 512), (128, 128), (33, 57), (400, 401), (8, 8)])
def test_every_mask_is_binary_and_paints_something(spec: MaskSpec, size: tuple[int, int]) -> None:
    generator = np.random.default_rng(1)
    for _ in range(40):
        mask, kind = draw_mask(*size, spec, generator)
        assert mask.shape == size
        assert mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {0, 255}
        assert mask.any()
        assert (kind == "everything") == bool(mask.all()) or kind == "irregular"  # strokes can cover a small picture


@pytest.mark.parametrize(
    ("spec", "least", "most"), [(MLLM_STAGE1, 0.35, 0.40), (SD_STAGE2, 0.25, 0.40), (DIFFRIR, 0.15, 0.40)]
)
def test_outpainting_pads_at_least_one_side_within_its_range(spec: MaskSpec, least: float, most: float) -> None:
    generator, spec = np.random.default_rng(2), only("outpainting", spec)
    sides, pads = Counter[int](), []
    for _ in range(DRAWS):
        mask, _ = draw_mask(200, 100, spec, generator)
        known_rows, known_columns = np.flatnonzero((mask == 0).any(axis=1)), np.flatnonzero((mask == 0).any(axis=0))
        drawn = [
            known_columns[0] / 100,
            (99 - known_columns[-1]) / 100,
            known_rows[0] / 200,
            (199 - known_rows[-1]) / 200,
        ]
        padded = [pad for pad in drawn if pad]
        assert padded
        sides.update(side for side, pad in enumerate(drawn) if pad)
        pads += padded
        inside = mask[known_rows[0] : known_rows[-1] + 1, known_columns[0] : known_columns[-1] + 1]
        assert not inside.any()
    # One side is added where none was drawn: 1/16 of the masks, a quarter of them each side.
    assert [sides[side] / DRAWS for side in range(4)] == pytest.approx([0.5 + 1 / 64] * 4, abs=TOLERANCE)
    assert least - 0.01 <= min(pads) <= least + 0.01  # rounded down to whole pixels
    assert most - 0.02 <= max(pads) <= most


def test_boxes_keep_margin_and_size() -> None:
    generator, spec = np.random.default_rng(3), only("box", boxes=(1, 1))
    widths = []
    for _ in range(400):
        mask, _ = draw_mask(512, 300, spec, generator)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert rows[0] >= 10
        assert rows[-1] < 502
        assert columns[0] >= 10
        assert columns[-1] < 290
        assert 35 <= len(rows) <= 160
        widths.append(len(columns))
    assert min(widths) <= 37
    assert max(widths) >= 158


def test_one_to_four_boxes_are_drawn() -> None:
    # Boxes of one pixel at random places of a large picture hardly ever meet, so painted pixels count boxes.
    generator, spec = np.random.default_rng(4), only("box", box_side=(1, 1))
    counts = Counter(int((draw_mask(600, 600, spec, generator)[0] > 0).sum()) for _ in range(1_000))
    assert {number: counts[number] / 1_000 for number in (1, 2, 3, 4)} == pytest.approx(
        dict.fromkeys((1, 2, 3, 4), 0.25), abs=TOLERANCE
    )
    assert sum(counts.values()) == 1_000


@pytest.mark.parametrize("spec", [MLLM_STAGE1, DIFFRIR])
def test_strokes_are_within_their_length_and_width(spec: MaskSpec) -> None:
    generator, single = np.random.default_rng(5), only("irregular", spec, strokes=(1, 1))
    for _ in range(200):
        mask, _ = draw_mask(1_500, 1_500, single, generator)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        longest = 5 * (10 + 239) + (5 + 99)  # five segments, and half a brush on each side
        assert max(np.ptp(rows), np.ptp(columns)) <= longest + 2
        assert min(np.ptp(rows), np.ptp(columns)) >= 2  # half of the narrowest brush, five pixels, at a border


@pytest.mark.parametrize("spec", [MLLM_STAGE1, SD_STAGE2, DIFFRIR])
def test_one_to_five_strokes_are_drawn(spec: MaskSpec) -> None:
    # Short thin strokes on a large picture hardly ever meet, so connected parts count strokes.
    generator, short = np.random.default_rng(6), only("irregular", spec, max_length=1, max_width=1)
    counts = Counter(cv2.connectedComponents(draw_mask(1_200, 1_200, short, generator)[0])[0] - 1 for _ in range(400))
    assert {number: counts[number] / 400 for number in counts} == pytest.approx(
        dict.fromkeys((1, 2, 3, 4, 5), 0.2), abs=0.09
    )


class Scripted:
    """A generator that gives what was written down, in this order."""

    def __init__(self, *values: object) -> None:
        self.values = list(values)

    def give(self, *_: object, **__: object) -> Any:
        return self.values.pop(0)

    choice = integers = random = uniform = give


def scripted(height: int, width: int, spec: MaskSpec, *values: object) -> NDArray[np.uint8]:
    generator = Scripted(*values)
    mask, _ = draw_mask(height, width, spec, generator)  # type: ignore[arg-type]
    assert not generator.values
    return mask


def test_strokes_turn_as_the_sheet_says() -> None:
    # Two strokes of one segment from (100, 100): 0.01 + 1 radians, 10 + 30 pixels long, 5 + 2 wide. The first is
    # mirrored: sin(-1.01) = -0.8468, so it ends 33 to the left; cos(1.01) = 0.5319 ends both 21 below.
    stroke = (100, 100, 0, 1, 30, 2)
    mask = scripted(200, 200, only("irregular"), 0, 2, *stroke, *stroke)
    expected = np.zeros((200, 200), np.uint8)
    for x in (66, 133):
        cv2.line(expected, (100, 100), (x, 121), 255, 7)
    assert np.array_equal(mask, expected)


def test_segments_go_on_from_each_other_and_stop_at_the_border() -> None:
    # 0.01 + 0 radians go down, mirrored a hundredth to the left: 10 pixels from (50, 50), then 249 that do not fit.
    mask = scripted(100, 100, only("irregular"), 0, 1, 50, 50, 1, 0, 0, 0, 0, 239, 0)
    expected = np.zeros((100, 100), np.uint8)
    for start, end in (((50, 50), (49, 59)), ((49, 59), (46, 99))):
        cv2.line(expected, start, end, 255, 5)
    assert np.array_equal(mask, expected)


def test_box_is_where_its_draws_say() -> None:
    mask = scripted(100, 200, only("box"), 1, 1, 40, 35, 60, 15)  # one box: width, height, left, top
    expected = np.zeros((100, 200), np.uint8)
    expected[15:50, 60:100] = 255
    assert np.array_equal(mask, expected)


def test_borders_are_shares_of_their_own_side() -> None:
    # Left and bottom of 200 x 100 are drawn: 0.36 of 100 columns and 0.37 of 200 rows.
    mask = scripted(200, 100, only("outpainting"), 2, np.array([0.1, 0.6, 0.5, 0.4]), 0.36, 0.37)
    expected = np.zeros((200, 100), np.uint8)
    expected[:, :36] = expected[200 - 74 :] = 255
    assert np.array_equal(mask, expected)


def test_scaled_spec_draws_the_same_picture_smaller() -> None:
    full = [draw_mask(512, 512, DIFFRIR, np.random.default_rng(seed))[0].mean() for seed in range(200)]
    small = [draw_mask(128, 128, DIFFRIR.scaled(0.25), np.random.default_rng(seed))[0].mean() for seed in range(200)]
    assert np.mean(small) == pytest.approx(np.mean(full), rel=0.1)
    unscaled = [draw_mask(128, 128, DIFFRIR, np.random.default_rng(seed))[0].mean() for seed in range(200)]
    assert np.mean(unscaled) > 1.5 * np.mean(full)


def test_equal_seeds_draw_equal_masks_and_others_do_not() -> None:
    first, again, other = (
        [draw_mask(96, 80, SD_STAGE2, generator) for _ in range(20)]
        for generator in (np.random.default_rng(7), np.random.default_rng(7), np.random.default_rng(8))
    )
    assert all(np.array_equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a[0], b[0]) for a, b in zip(first, other, strict=True))


def test_probabilities_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValueError, match="add up to 1"):
        MaskSpec(irregular=0.5, box=0.5, outpainting=0.5, padding=(0.1, 0.2))


def test_padding_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="below half a side"):
        MaskSpec(irregular=0, box=0, outpainting=1, padding=(0.4, 0.5))
